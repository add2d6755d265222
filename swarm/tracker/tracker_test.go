package tracker

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-dev/shoal/chunker"
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

// TestOneOrder: what the inventory says of a blob reaches its swarm in the order in
// which it came, whoever comes at the same moment. A node that joined with what was
// so before another one had the content, and was heard after that, was sent to the
// registry for it.
func TestOneOrder(t *testing.T) {
	tr := New(Config{Live: func(node string) bool { return node != "gone" }})
	for i := range 2000 {
		d := digest.FromString(fmt.Sprint("one order ", i))
		first, err := tr.Join(&Hello{Digest: d, Node: "first", Origin: true})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		all.Go(func() {
			if err := first.Handle(Up{Whole: true, WholeSize: 1}); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() { tr.Announce("gone", []Item{{Digest: d, Size: 1}}, nil) })
		all.Go(tr.refresh)
		for n := range 3 {
			all.Go(func() {
				next, err := tr.Join(&Hello{Digest: d, Node: fmt.Sprint("next ", n), Origin: true})
				if err != nil {
					t.Error(err)
					return
				}
				defer next.Close()
				down, _ := next.Next(t.Context())
				if g := down.Grants; len(g) != 1 || g[0].Source != "first" {
					t.Errorf("blob %d: the next node got %+v, want a lease on the first", i, down)
				}
			})
		}
		all.Wait()
		first.Close()
		if t.Failed() {
			return
		}
	}
}

// TestHavers: of those that pull, the ones that have all pieces of a range.
func TestHavers(t *testing.T) {
	const piece = chunker.MinPieceLength
	const size = 10*piece + 1
	tr := New(Config{Live: func(string) bool { return true }})
	for node, have := range map[string][]byte{
		"none": nil, "first two": {0xc0, 0}, "all but one": {0xef, 0xe0}, "last": {0, 0x20},
	} {
		s, err := tr.Join(&Hello{Digest: blobD, Size: size, Node: node, Have: have})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	for _, c := range []struct {
		off, n int64
		want   []string
	}{
		{0, 1, []string{"all but one", "first two"}},
		{piece - 1, piece + 1, []string{"all but one", "first two"}},
		{piece - 1, piece + 2, []string{"all but one"}},
		{3 * piece, piece, nil},
		{3*piece - 1, 2, nil},
		{size - 1, 1, []string{"all but one", "last"}},
		{0, size, nil},
		// Nonsense has nobody.
		{size, 1, nil}, {0, 0, nil}, {-1, 1, nil}, {0, -1, nil}, {1, 1<<63 - 1, nil}, {1<<63 - 1, 1<<63 - 1, nil},
	} {
		got := tr.Havers(blobD, c.off, c.n)
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%d bytes from byte %d: %q, want %q", c.n, c.off, got, c.want)
		}
	}
	if got := tr.Havers(digest.FromString("another"), 0, 1); len(got) > 0 {
		t.Errorf("%q have a blob that nobody pulls", got)
	}
}
