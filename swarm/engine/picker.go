package engine

import (
	"time"

	"github.com/shoal-dev/shoal/chunker"
)

const (
	// windowTimes is how much the library may choose from, as a multiple of
	// what is requested at a time. Each time that a peer has answered its
	// requests the library sorts every chunk it could ask of that peer, with
	// the client lock held: without a limit that was one and a half CPU
	// seconds per GiB for a blob of 1 GiB, and more in proportion for a larger
	// one.
	windowTimes = 4
	// windowMin is the least to choose from in bytes, and windowPieces in
	// pieces: peers trade whole pieces, so each needs some that others lack.
	windowMin    = 32 << 20
	windowPieces = 32
	// urgentPart is how much of what can be requested at a time goes to the
	// blob's first missing pieces. Measured with 8 nodes that are slower than
	// their source, by how much of the blob waits for something before it:
	// without it 33 % on average, at 60 to 85 % 2 to 3 %, at 110 % 8 %, all with 8
	// chunks requested of a peer; with 16, BenchmarkBacklog's 32 %. Below 60 %
	// peers take requests from each other and send the same chunk twice.
	urgentPart = 7. / 8
	// stuckAfter is how long a piece takes up room in the window. What comes
	// slower than that waits for a slow peer, and others need not wait for it.
	stuckAfter = 5 * time.Second
)

// picker chooses which of the wanted pieces the library gets to see, for one
// torrent: the first ones of the blob that some connected peer has, up to the
// window. Among these the library prefers the rarest, which are the newest, so
// the first few are raised above the others: then the blob becomes readable
// from its beginning while it comes. While a swarm keeps up with its source few
// pieces are wanted, and the library sees them all. At least one is shown if
// any is wanted, or the library would not look for peers. It is not safe for
// concurrent use.
type picker struct {
	pieceLength int64
	window      int     // pieces that the library may choose from
	urgent      int     // pieces that are raised
	avail       []int32 // how many connected peers have the piece
	state       []pieceState
	raised      chunker.Bitfield // shown pieces that go before all others
	wanted      int              // pieces that are waiting
	ready       int              // of these, available
	active      int              // pieces that are shown and take up room
	stuck       int              // pieces that are shown and do not
	first       int              // no piece before it is wanted
	lost        []int            // shown pieces that nobody has any more
	shown       []shown          // the active ones in the order of their time, and some that were
}

// shown is when a piece was shown to the library.
type shown struct {
	piece int
	since time.Time
}

type pieceState uint8

const (
	idle    pieceState = iota // not wanted, or complete
	waiting                   // wanted, not shown to the library
	active                    // shown to the library
	stuck                     // shown to the library for stuckAfter
)

func newPicker(g chunker.Geometry) *picker {
	n := g.NumPieces()
	p := &picker{
		pieceLength: g.PieceLength,
		avail:       make([]int32, n), state: make([]pieceState, n), raised: chunker.NewBitfield(n),
	}
	p.resize(0)
	return p
}

// resize notes how many bytes are requested at a time now, over all peers.
func (p *picker) resize(outstanding int) {
	p.window = max(windowPieces, int(max(windowMin, windowTimes*int64(outstanding))/p.pieceLength))
	p.urgent = max(1, int(urgentPart*float64(outstanding)/float64(p.pieceLength)))
}

// want notes that a piece is wanted.
func (p *picker) want(i int) {
	if p.state[i] == idle {
		p.wait(i)
	}
}

func (p *picker) wait(i int) {
	p.state[i] = waiting
	p.wanted++
	if p.avail[i] > 0 {
		p.ready++
	}
	p.first = min(p.first, i)
}

func (p *picker) show(i int, now time.Time) {
	p.state[i] = active
	p.active++
	p.wanted--
	if p.avail[i] > 0 {
		p.ready--
	}
	p.shown = append(p.shown, shown{i, now})
}

// unwant notes that a piece is complete, or not wanted for another reason.
func (p *picker) unwant(i int) {
	switch p.state[i] {
	case stuck:
		p.stuck--
	case active:
		p.active--
	case waiting:
		p.wanted--
		if p.avail[i] > 0 {
			p.ready--
		}
	}
	p.state[i] = idle
	p.raised.Clear(i)
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
	case active, stuck:
		// It would take up the window.
		p.lost = append(p.lost, i)
	}
}

// stirred says that pick has something to say.
func (p *picker) stirred() bool {
	room := p.window - p.active
	// A quarter at a time when there is more than fits, to look around less.
	return len(p.lost) > 0 || p.ready > 0 && room > 0 && (p.ready <= room || room >= p.window/4) ||
		p.active+p.stuck == 0 && p.wanted > 0
}

// age lets pieces that were shown for too long no longer take up room, and
// returns when the next one will be; zero: never.
func (p *picker) age(now time.Time) (next time.Time) {
	for len(p.shown) > 0 {
		s := p.shown[0]
		if p.state[s.piece] == active {
			if now.Sub(s.since) < stuckAfter {
				return s.since.Add(stuckAfter)
			}
			p.state[s.piece] = stuck
			p.active--
			p.stuck++
		}
		p.shown = p.shown[1:]
	}
	return time.Time{}
}

// pick returns the pieces that the library should see from now on, in order,
// and those that it no longer should.
func (p *picker) pick(now time.Time) (show, hide []int) {
	for _, i := range p.lost {
		if (p.state[i] == active || p.state[i] == stuck) && p.avail[i] == 0 && p.active+p.stuck > 1 {
			p.unwant(i)
			p.wait(i)
			hide = append(hide, i)
		}
	}
	p.lost = p.lost[:0]
	if !p.stirred() {
		return nil, hide
	}
	room, anyone := p.window-p.active, false
	if p.ready == 0 {
		room, anyone = 1, true
	}
	p.advance()
	for i := p.first; i < len(p.state) && len(show) < room; i++ {
		if p.state[i] == waiting && (anyone || p.avail[i] > 0) {
			p.show(i, now)
			show = append(show, i)
		}
	}
	return show, hide
}

func (p *picker) advance() {
	for p.first < len(p.state) && p.state[p.first] == idle {
		p.first++
	}
}

// raise returns the first of the shown pieces, as far as they are not raised
// yet.
func (p *picker) raise() (is []int) {
	p.advance()
	n := 0
	for i := p.first; i < len(p.state) && n < p.urgent; i++ {
		if p.state[i] != active && p.state[i] != stuck {
			continue
		}
		n++
		if !p.raised.Has(i) {
			p.raised.Set(i)
			is = append(is, i)
		}
	}
	return is
}
