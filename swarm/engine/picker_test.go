package engine

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/chunker"
)

// TestPicker checks the choice against a model, whatever happens in whatever
// order: what is shown is wanted; the window is respected; nothing available
// waits while there is a quarter of the window free; something is shown if
// anything is wanted.
func TestPicker(t *testing.T) {
	g := newContent(t, 64<<20).id.Geometry
	rapid.Check(t, func(t *rapid.T) {
		p := newPicker(g, 64<<10)
		p.window = rapid.IntRange(4, 40).Draw(t, "window")
		wanted, shown, avail := map[int]bool{}, map[int]bool{}, map[int]int{}
		piece := rapid.IntRange(0, 63)
		pick := func() {
			if stirred := p.stirred(); !stirred {
				if show, hide := p.pick(); show != nil || hide != nil {
					t.Fatalf("not stirred, but %v and %v", show, hide)
				}
			}
			show, hide := p.pick()
			for _, i := range hide {
				if !shown[i] || avail[i] > 0 {
					t.Fatalf("hides %d: shown %v, %d have it", i, shown[i], avail[i])
				}
				delete(shown, i)
			}
			for _, i := range show {
				if shown[i] || !wanted[i] {
					t.Fatalf("shows %d: shown %v, wanted %v", i, shown[i], wanted[i])
				}
				shown[i] = true
			}
			if !slices.IsSorted(show) {
				t.Fatalf("shows %v", show)
			}
			if len(shown) > p.window {
				t.Fatalf("%d shown, window %d", len(shown), p.window)
			}
			if len(wanted) > 0 && len(shown) == 0 {
				t.Fatal("wanted, and nothing is shown")
			}
			for i := range wanted {
				if avail[i] > 0 && !shown[i] && p.window-len(shown) > p.window/4 {
					t.Fatalf("%d waits, %d of %d shown", i, len(shown), p.window)
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
			"": func(*rapid.T) { pick() },
		})
	})
}

func TestPickerPrefersRarest(t *testing.T) {
	g := newContent(t, 64<<20).id.Geometry
	p := newPicker(g, 64<<10)
	p.window = 8
	for i := range g.NumPieces() {
		p.want(i)
		p.gained(i)
		if i%16 != 0 {
			p.gained(i)
		}
	}
	show, _ := p.pick()
	rare := 0
	for _, i := range show {
		if i%16 == 0 {
			rare++
		}
	}
	if len(show) != 8 || rare != 8 {
		t.Errorf("shows %v", show)
	}
}

// TestPickerPrefersHurried: a hurried piece goes first, and is forgotten once
// it has come.
func TestPickerPrefersHurried(t *testing.T) {
	g := newContent(t, 64<<20).id.Geometry
	p := newPicker(g, 64<<10)
	p.window = 8
	for i := range g.NumPieces() {
		p.want(i)
		p.gained(i)
		if i == 77 {
			p.gained(i)
		}
	}
	if p.hurry(77) {
		t.Error("shown before it was picked")
	}
	show, _ := p.pick()
	if !slices.Contains(show, 77) {
		t.Errorf("shows %v", show)
	}
	if !p.hurry(77) {
		t.Error("not shown")
	}
	p.unwant(77)
	if p.hurry(77) || p.late[77] {
		t.Error("hurried though not wanted")
	}
}

// BenchmarkPicker is a late joiner's choice from the largest blobs.
func BenchmarkPicker(b *testing.B) {
	g, err := chunker.GeometryOf(40 << 30)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p := newPicker(g, chunker.ChunkLength)
		for i := range g.NumPieces() {
			p.gained(i)
			p.want(i)
		}
		for p.wanted > 0 {
			show, _ := p.pick()
			for _, i := range show {
				p.unwant(i)
			}
		}
	}
}
