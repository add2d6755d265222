package swarm

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// keeper is a local content that keeps everything, or nothing.
type keeper struct{ keeps atomic.Bool }

func (*keeper) Open(_ context.Context, d digest.Digest) (Reader, error) {
	return nil, fmt.Errorf("open %s: %w", d, ErrNotFound)
}

func (k *keeper) Keeps(digest.Digest) bool { return k.keeps.Load() }

func TestDoublesAreDroppedOnceContainerdKeepsThem(t *testing.T) {
	var local keeper
	c := newCluster(t, 1, func(cfg *Config) { cfg.Local = &local })
	n := c.nodes[0]
	data := []byte("a layer")
	d := digest.FromBytes(data)
	if err := n.store.PutBytes(d, data); err != nil {
		t.Fatal(err)
	}
	n.Announce([]Held{{Digest: d, Size: int64(len(data))}}, nil)
	if got := n.inv.doubles(time.Now()); len(got) != 0 {
		t.Errorf("%v would be dropped although containerd has just committed it", got)
	}
	if got := n.inv.doubles(time.Now().Add(dropAfter)); len(got) != 0 {
		t.Errorf("after %v %v would be dropped, which containerd has only for a pull", dropAfter, got)
	}
	local.keeps.Store(true)
	if got := n.inv.doubles(time.Now().Add(dropAfter)); len(got) != 1 || got[0] != d {
		t.Errorf("after %v %v would be dropped, want the blob", dropAfter, got)
	}
	// containerd discarded it: ours is the only copy, and stays announced.
	n.Announce(nil, []digest.Digest{d})
	if got := n.inv.doubles(time.Now().Add(dropAfter)); len(got) != 0 {
		t.Errorf("%v would be dropped although containerd no longer has it", got)
	}
	until(t, "the announcement", func() bool {
		_, nodes := n.tracker.Holders(d)
		return len(nodes) == 1
	})
}
