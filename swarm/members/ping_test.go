package members

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestPing: members answer who has their key and their cluster's id, and nobody
// becomes one by asking.
func TestPing(t *testing.T) {
	t.Parallel()
	log := &lines{}
	c := config("a")
	c.Log = zerolog.New(log).Level(zerolog.InfoLevel)
	a := create(t, c)
	to := netip.MustParseAddrPort(a.Addr())
	ping := func(c Config, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return Ping(ctx, c, to)
	}
	same := config("b")
	if err := ping(same, patience); err != nil {
		t.Error(err)
	}
	log.mu.Lock()
	if n := len(a.Live()); n != 1 || countLines(log) != 1 { // that it listens
		t.Errorf("%d members, and in the log:\n%s", n, &log.buf)
	}
	log.mu.Unlock()
	otherKey, otherCluster := config("b"), config("b")
	otherKey.SecretKey = make([]byte, KeyLength)
	otherCluster.Cluster = "another"
	for name, c := range map[string]Config{"key": otherKey, "cluster": otherCluster} {
		if err := ping(c, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

func countLines(l *lines) (n int) {
	for _, b := range l.buf.Bytes() {
		if b == '\n' {
			n++
		}
	}
	return n
}
