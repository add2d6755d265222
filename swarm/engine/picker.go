package engine

import (
	"math/rand/v2"
	"slices"

	"github.com/shoal-dev/shoal/chunker"
)

const (
	// windowChunks is how many chunks the library may choose from. Each time
	// that a peer has answered all its requests the library sorts every chunk
	// it could ask of that peer, with the client lock held: without a limit
	// one CPU second and a half per GiB for a blob of 1 GiB, and more in
	// proportion for a larger one.
	windowChunks = 1024
	// windowPieces is the least number of pieces to choose from, so that
	// every peer has something that is asked of it.
	windowPieces = 64
)

// picker chooses which of the wanted pieces the library gets to see, for one
// torrent: those that some connected peer has, the hurried and the rarest first, up to
// the window. While a swarm keeps up with its source few pieces are wanted, and
// the library sees them all. At least one is shown if any is wanted, or the
// library would not look for peers. It is not safe for concurrent use.
type picker struct {
	window int
	avail  []int32 // how many connected peers have the piece
	state  []pieceState
	wanted int          // pieces that are waiting
	ready  int          // of these, available
	active int          // pieces that are shown
	lost   []int        // active pieces that nobody has any more
	late   map[int]bool // wanted pieces that go before all others
}

type pieceState uint8

const (
	idle    pieceState = iota // not wanted, or complete
	waiting                   // wanted, not shown to the library
	active                    // shown to the library
)

func newPicker(g chunker.Geometry, chunk int) *picker {
	perPiece := max(1, int(g.PieceLength)/chunk)
	n := g.NumPieces()
	return &picker{window: max(windowPieces, windowChunks/perPiece), avail: make([]int32, n), state: make([]pieceState, n), late: map[int]bool{}}
}

// want notes that a piece is wanted.
func (p *picker) want(i int) {
	if p.state[i] != idle {
		return
	}
	p.wait(i)
}

func (p *picker) wait(i int) {
	p.state[i] = waiting
	p.wanted++
	if p.avail[i] > 0 {
		p.ready++
	}
}

func (p *picker) show(i int) {
	p.state[i] = active
	p.active++
	p.wanted--
	if p.avail[i] > 0 {
		p.ready--
	}
}

// unwant notes that a piece is complete, or not wanted for another reason.
func (p *picker) unwant(i int) {
	switch p.state[i] {
	case active:
		p.active--
	case waiting:
		p.wanted--
		if p.avail[i] > 0 {
			p.ready--
		}
	}
	p.state[i] = idle
	delete(p.late, i)
}

// hurry notes that a wanted piece goes before all that are not hurried, and
// says whether it is shown already.
func (p *picker) hurry(i int) (shown bool) {
	if p.state[i] != idle {
		p.late[i] = true
	}
	return p.state[i] == active
}

// gained notes that one more peer has the piece.
func (p *picker) gained(i int) {
	p.avail[i]++
	if p.avail[i] == 1 && p.state[i] == waiting {
		p.ready++
	}
}

// dropped notes that a peer that has the piece is gone.
func (p *picker) dropped(i int) {
	p.avail[i]--
	if p.avail[i] > 0 {
		return
	}
	switch p.state[i] {
	case waiting:
		p.ready--
	case active:
		// It would take up the window.
		p.lost = append(p.lost, i)
	}
}

// stirred says that pick has something to say.
func (p *picker) stirred() bool {
	room := p.window - p.active
	// A quarter at a time when there is more than fits, to look around less.
	return len(p.lost) > 0 || p.ready > 0 && (p.ready <= room || room >= p.window/4) || p.active == 0 && p.wanted > 0
}

// pick returns the pieces that the library should see from now on, and those
// that it no longer should.
func (p *picker) pick() (show, hide []int) {
	for _, i := range p.lost {
		if p.state[i] == active && p.avail[i] == 0 && p.active > 1 {
			p.active--
			p.wait(i)
			hide = append(hide, i)
		}
	}
	p.lost = p.lost[:0]
	if !p.stirred() {
		return nil, hide
	}
	for i, s := range p.state {
		if s == waiting && (p.avail[i] > 0 || p.ready == 0) {
			show = append(show, i)
		}
	}
	room := p.window - p.active
	if p.ready == 0 {
		room = 1
	}
	if len(show) > room {
		// Ties are broken at random, or all nodes would want the same.
		rand.Shuffle(len(show), func(a, b int) { show[a], show[b] = show[b], show[a] })
		slices.SortStableFunc(show, func(a, b int) int {
			if x, y := p.late[a], p.late[b]; x != y {
				if x {
					return -1
				}
				return 1
			}
			return int(p.avail[a] - p.avail[b])
		})
		show = show[:room]
		slices.Sort(show)
	}
	for _, i := range show {
		p.show(i)
	}
	return show, hide
}
