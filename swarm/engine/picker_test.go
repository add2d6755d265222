package engine

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/chunker"
)

// TestPicker checks the choice against a model, whatever happens in whatever
// order: what is shown is wanted, and goes before what waits; the window is
// respected; nothing available waits while there is a quarter of the window
// free; something is shown if anything is wanted; what is stuck makes room.
func TestPicker(t *testing.T) {
	g := newContent(t, 64<<20).id.Geometry
	rapid.Check(t, func(t *rapid.T) {
		p := newPicker(g)
		p.window = rapid.IntRange(4, 40).Draw(t, "window")
		now := time.Unix(0, 0)
		wanted, shown, avail := map[int]bool{}, map[int]time.Time{}, map[int]int{}
		piece := rapid.IntRange(0, 63)
		room := func() int { // at least
			n := p.window
			for _, at := range shown {
				if now.Sub(at) < stuckAfter {
					n--
				}
			}
			return n
		}
		pick := func() {
			next := p.age(now)
			if !next.IsZero() && !next.After(now) {
				t.Fatalf("ages at %v, now is %v", next, now)
			}
			if stirred := p.stirred(); !stirred {
				if show, hide := p.pick(now); show != nil || hide != nil {
					t.Fatalf("not stirred, but %v and %v", show, hide)
				}
			}
			before := room()
			show, hide := p.pick(now)
			for _, i := range hide {
				if _, ok := shown[i]; !ok || avail[i] > 0 {
					t.Fatalf("hides %d: shown %v, %d have it", i, ok, avail[i])
				}
				delete(shown, i)
			}
			for _, i := range show {
				if _, ok := shown[i]; ok || !wanted[i] {
					t.Fatalf("shows %d: shown %v, wanted %v", i, ok, wanted[i])
				}
				for j := range i {
					if _, ok := shown[j]; !ok && wanted[j] && avail[j] > 0 {
						t.Fatalf("shows %d before %d", i, j)
					}
				}
				shown[i] = now
			}
			if !slices.IsSorted(show) {
				t.Fatalf("shows %v", show)
			}
			// A piece that was shown, hidden and shown again may be taken for
			// stuck early.
			if p.active > p.window || p.active+p.stuck != len(shown) {
				t.Fatalf("%d active, %d stuck, %d shown, window %d", p.active, p.stuck, len(shown), p.window)
			}
			if len(wanted) > 0 && len(shown) == 0 {
				t.Fatal("wanted, and nothing is shown")
			}
			for i := range wanted {
				if _, ok := shown[i]; !ok && avail[i] > 0 && room() > p.window/4 {
					t.Fatalf("%d waits, %d of %d shown, room was %d", i, len(shown), p.window, before)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"want":   func(t *rapid.T) { i := piece.Draw(t, "i"); wanted[i] = true; p.want(i) },
			"unwant": func(t *rapid.T) { i := piece.Draw(t, "i"); delete(wanted, i); delete(shown, i); p.unwant(i) },
			"gained": func(t *rapid.T) { i := piece.Draw(t, "i"); avail[i]++; p.gained(i) },
			"dropped": func(t *rapid.T) {
				if i := piece.Draw(t, "i"); avail[i] > 0 {
					avail[i]--
					p.dropped(i)
				}
			},
			"time passes": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 7000).Draw(t, "ms")) * time.Millisecond)
			},
			"": func(*rapid.T) { pick() },
		})
	})
}

func TestPickerWindow(t *testing.T) {
	for _, c := range []struct {
		size           int64
		peers          int
		window, urgent int // pieces
	}{
		{64 << 20, 0, 128, 1}, // pieces of 256 KiB
		{64 << 20, 1, 128, 7},
		{1 << 30, 7, 112, 24}, // of 512 KiB
		{1 << 30, 24, 120, 26},
		{40 << 30, 7, 32, 3}, // of 4 MiB
		{40 << 30, 64, 32, 7},
	} {
		g, err := chunker.GeometryOf(c.size)
		if err != nil {
			t.Fatal(err)
		}
		p := newPicker(g)
		p.resize(c.peers * defaultTuning.depth(c.peers) * defaultTuning.chunk)
		if p.window != c.window || p.urgent != c.urgent {
			t.Errorf("%d bytes, %d peers: window %d, urgent %d pieces, want %d and %d", c.size, c.peers, p.window, p.urgent, c.window, c.urgent)
		}
	}
}

// BenchmarkPicker is a late joiner's choice from the largest blobs.
func BenchmarkPicker(b *testing.B) {
	g, err := chunker.GeometryOf(40 << 30)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p := newPicker(g)
		for i := range g.NumPieces() {
			p.gained(i)
			p.want(i)
		}
		for p.wanted > 0 {
			show, _ := p.pick(time.Time{})
			for _, i := range show {
				p.unwant(i)
			}
		}
	}
}
