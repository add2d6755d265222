package tracker

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestNewBytes: a blob counts as new once, whatever comes first, the session's
// word that it is whole or the node's announcement of it, and not at all if a
// node had it before.
func TestNewBytes(t *testing.T) {
	const size = 1 << 20
	for name, c := range map[string]struct {
		had       bool
		announced bool
		want      float64
	}{
		"new":                  {want: size},
		"new, announced first": {announced: true, want: size},
		"had":                  {had: true},
	} {
		t.Run(name, func(t *testing.T) {
			tr := New(Config{Live: func(string) bool { return true }})
			d := digest.FromString(name)
			item := []Item{{Digest: d, Size: size}}
			if c.had {
				tr.Announce("holder", item, nil)
			}
			var all []*Session
			for _, node := range []string{"one", "two"} {
				s, err := tr.Join(&Hello{Digest: d, Size: size, Node: node})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				all = append(all, s)
			}
			for _, s := range all {
				if c.announced {
					tr.Announce(s.node, item, nil)
				}
				if err := s.Handle(Up{Whole: true, WholeSize: size}); err != nil {
					t.Fatal(err)
				}
			}
			if n := testutil.ToFloat64(tr.met.fresh); n != c.want {
				t.Errorf("%v bytes counted as new, want %v", n, c.want)
			}
		})
	}
}
