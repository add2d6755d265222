package picker

import (
	"cmp"
	"math/bits"
	"math/rand/v2"
	"time"

	"github.com/shoal-dev/shoal/chunker"
)

// Tuning of a Picker. Zero values are replaced by [Defaults].
type Tuning struct {
	// Ahead is for how long a peer is asked ahead, at the speed at which it
	// answers: longer than a round trip, and no longer than needed, since what
	// waits in the queue of one peer meanwhile comes to others, which could
	// send it sooner. The last of 100 simulated nodes at 1 Gbit/s took 1.06 of
	// the bound with 1 to 30 ms, even if they were 5 ms apart, 1.09 with 60 ms
	// and 1.15 with 250 ms.
	Ahead time.Duration
	// MinAhead and MaxAhead bound that, in bytes. The default least is one
	// chunk, the least that can be asked for; the most is what Ahead comes to
	// at 6.7 Gbit/s, and bounds what a peer may owe.
	MinAhead, MaxAhead int64
	// Rare is how often, of 1, the rarest piece goes before the first one if
	// others have that, too; less than 0 is never, whoever has it.
	// 100 simulated nodes at 200 Mbit/s: 1.090 of the bound with 1/16, 1.079
	// with 1/4, 1.071 with 1; the readable beginning is behind what was
	// received by 5.4 % of the blob with 1/16 to 1/2, and 7.6 % with 1.
	Rare float64
	// Window is of how many pieces the rarest is chosen, from the first one on.
	// It bounds the time that a choice takes.
	Window int
	// Late is how much later than a peer's own another peer's answer has to
	// be expected before the piece is asked of both. The default is longer than
	// peers of equal speed differ by, so that bytes come twice only when
	// something is wrong: none did in BenchmarkSwarm of package engine.
	Late time.Duration
}

// Defaults are what a node runs with.
var Defaults = Tuning{
	Ahead:    20 * time.Millisecond,
	MinAhead: 128 << 10,
	MaxAhead: 16 << 20,
	Rare:     1. / 4,
	Window:   64,
	Late:     250 * time.Millisecond,
}

// Picker is one blob's choice. The zero value is not usable; see [New].
type Picker struct {
	tune Tuning
	geo  chunker.Geometry
	rng  *rand.Rand

	wanted set     // pieces to get
	open   set     // of these, asked of nobody
	avail  []int32 // how many peers have a piece
	askers [][]*Peer
	peers  []*Peer
}

// New returns the choice for a blob of which nothing is wanted yet.
func New(t Tuning, g chunker.Geometry, rng *rand.Rand) *Picker {
	n := g.NumPieces()
	return &Picker{
		tune: t.withDefaults(), geo: g, rng: rng,
		wanted: newSet(n), open: newSet(n), avail: make([]int32, n), askers: make([][]*Peer, n),
	}
}

func (t Tuning) withDefaults() Tuning {
	d := Defaults
	t.Ahead = cmp.Or(t.Ahead, d.Ahead)
	t.MinAhead = cmp.Or(t.MinAhead, d.MinAhead)
	t.MaxAhead = cmp.Or(t.MaxAhead, d.MaxAhead)
	t.Rare = cmp.Or(t.Rare, d.Rare)
	t.Window = cmp.Or(t.Window, d.Window)
	t.Late = cmp.Or(t.Late, d.Late)
	return t
}

// Want notes that piece i is to be got from peers.
func (p *Picker) Want(i int) {
	if p.wanted.has(i) {
		return
	}
	p.wanted.set(i)
	if len(p.askers[i]) == 0 {
		p.open.set(i)
	}
}

// Wants says whether piece i is wanted.
func (p *Picker) Wants(i int) bool { return p.wanted.has(i) }

// Unwant notes that piece i has come, or is not to be got any more. It returns
// the peers of whom it was still asked: their requests are over for the picker,
// and should be cancelled.
func (p *Picker) Unwant(i int) []*Peer {
	p.wanted.clear(i)
	p.open.clear(i)
	askers := p.askers[i]
	p.askers[i] = nil
	for _, q := range askers {
		q.forget(i)
	}
	return askers
}

// Available is how many peers have piece i.
func (p *Picker) Available(i int) int { return int(p.avail[i]) }

// reopen notes that a peer was asked for piece i no longer.
func (p *Picker) reopen(i int, q *Peer) {
	for k, a := range p.askers[i] {
		if a == q {
			p.askers[i] = append(p.askers[i][:k:k], p.askers[i][k+1:]...)
			break
		}
	}
	if len(p.askers[i]) == 0 && p.wanted.has(i) {
		p.open.set(i)
	}
}

// Peer is one connected peer.
type Peer struct {
	p   *Picker
	at  int // in p.peers; -1: it left
	has set
	// count is how many it has, base how many it had at since; see Pace.
	count, base int
	since       time.Time

	asks []ask // in the order of asking, in which they are answered
	owed int64 // bytes that were asked and have not come
	rate rate
}

// ask is a piece that was asked of a peer.
type ask struct {
	piece int
	left  int64 // bytes of it that have not come
}

// Join adds a peer that has nothing yet.
func (p *Picker) Join() *Peer {
	q := &Peer{p: p, at: len(p.peers), has: newSet(p.geo.NumPieces())}
	p.peers = append(p.peers, q)
	return q
}

// Leave removes the peer. What it was asked for is asked of others.
func (q *Peer) Leave() {
	p := q.p
	if q.at < 0 {
		return
	}
	n := len(p.peers) - 1
	p.peers[q.at] = p.peers[n]
	p.peers[q.at].at = q.at
	p.peers[n] = nil
	p.peers = p.peers[:n]
	q.at = -1
	for i := range q.has.all() {
		p.avail[i]--
	}
	q.Drop()
}

// Drop forgets what the peer was asked for, so that others are asked, and
// returns the pieces.
func (q *Peer) Drop() (pieces []int) {
	asks := q.asks
	q.asks = nil
	q.owe(-q.owed)
	for _, a := range asks {
		pieces = append(pieces, a.piece)
		q.p.reopen(a.piece, q)
	}
	return pieces
}

// Gain notes that the peer has piece i.
func (q *Peer) Gain(i int) {
	if !q.has.has(i) {
		q.has.set(i)
		q.count++
		q.p.avail[i]++
	}
}

// Lose notes that the peer does not have piece i after all. If it was asked for
// it, others are asked.
func (q *Peer) Lose(i int) {
	if q.has.has(i) {
		q.has.clear(i)
		q.count--
		q.p.avail[i]--
	}
	q.Return(i)
}

// Has says whether the peer is known to have piece i.
func (q *Peer) Has(i int) bool { return q.has.has(i) }

// Asked says whether the peer owes piece i.
func (q *Peer) Asked(i int) bool {
	for _, a := range q.asks {
		if a.piece == i {
			return true
		}
	}
	return false
}

// Owed is how many bytes the peer was asked for and has not sent.
func (q *Peer) Owed() int64 { return q.owed }

// Came notes that n bytes of piece i arrived, in order.
func (q *Peer) Came(i int, n int64, now time.Time) {
	q.rate.add(n, now)
	for k := range q.asks {
		if a := &q.asks[k]; a.piece == i {
			n = min(n, a.left)
			a.left -= n
			q.owe(-n)
			return
		}
	}
}

// Return notes that piece i is over with this peer: it sent all of it, or
// refused. If the piece is still wanted others are asked.
func (q *Peer) Return(i int) {
	if q.forget(i) {
		q.p.reopen(i, q)
	}
}

func (q *Peer) forget(i int) bool {
	for k, a := range q.asks {
		if a.piece == i {
			q.owe(-a.left)
			q.asks = append(q.asks[:k:k], q.asks[k+1:]...)
			return true
		}
	}
	return false
}

func (q *Peer) owe(n int64) {
	if q.owed += n; q.owed == 0 {
		q.rate.idle()
	}
}

// Next chooses a piece to ask of the peer now and notes that it was asked.
// False: there is nothing to ask, or enough was asked.
func (q *Peer) Next(now time.Time) (piece int, ok bool) {
	if q.owed >= q.ahead(now) {
		return 0, false
	}
	i := q.choose()
	if i < 0 {
		i = q.late(now)
	}
	if i < 0 {
		return 0, false
	}
	_, n := q.p.geo.Piece(i)
	if q.owed == 0 {
		q.rate.busy(now)
	}
	q.asks = append(q.asks, ask{i, n})
	q.owed += n
	q.p.open.clear(i)
	q.p.askers[i] = append(q.p.askers[i], q)
	return i, true
}

// ahead is how many bytes may be asked of the peer at a time.
func (q *Peer) ahead(now time.Time) int64 {
	t := q.p.tune
	return min(max(int64(q.rate.at(now)*t.Ahead.Seconds()), t.MinAhead), t.MaxAhead)
}

// choose returns a piece that nobody was asked for; -1: the peer has none.
func (q *Peer) choose() int {
	p := q.p
	first := p.open.nextIn(q.has, 0)
	if first < 0 || p.tune.Rare < 0 || !q.alone(first) && p.rng.Float64() >= p.tune.Rare {
		return first
	}
	best, ties := first, 1
	for i, n := first, 1; n < p.tune.Window; n++ {
		if i = p.open.nextIn(q.has, i+1); i < 0 {
			break
		}
		switch {
		case p.avail[i] < p.avail[best]:
			best, ties = i, 1
		case p.avail[i] == p.avail[best]:
			if ties++; p.rng.IntN(ties) == 0 {
				best = i
			}
		}
	}
	return best
}

// alone says that of several peers only this one has a piece. It is asked by all of
// them then, and if each asked for the first one it would send that many times while
// the others have nothing to trade: a node to whose streams the registry is kinder
// than to others' soon has a part of the blob to itself. Of 40 cold pulls of 10 MB by
// 8 containerd nodes at 100 Mbit/s 10 took more than 1.75 s so, and 6 where each asks
// for the rarest of these; the last of 100 simulated nodes took 1.66 to 1.68 of
// the bound instead of 1.74 and 1.85, and with 250 MB 1.071 instead of 1.075.
func (q *Peer) alone(i int) bool { return q.p.avail[i] == 1 && len(q.p.peers) > 1 }

// late returns the first piece that others were asked for, but would bring much
// later than this peer; -1: there is none.
func (q *Peer) late(now time.Time) int {
	p := q.p
	var own float64
	known := false
	best := -1
	for _, o := range p.peers {
		if o == q {
			continue
		}
		var ahead int64
		for _, a := range o.asks {
			ahead += a.left
			if best >= 0 && a.piece >= best || !q.has.has(a.piece) || len(p.askers[a.piece]) > 1 {
				continue
			}
			if !known {
				own, known = q.expect(p.geo.PieceLength, now), true
			}
			if o.rate.settled(now) && o.rate.wait(ahead, now) > 2*own+p.tune.Late.Seconds() {
				best = a.piece
			}
		}
	}
	return best
}

// expect is in how many seconds the peer would have sent n bytes more than it
// was asked for. A peer of whom little is known is taken to be as fast as the
// others; if those send nothing, any peer is better.
func (q *Peer) expect(n int64, now time.Time) float64 {
	if q.rate.settled(now) {
		return q.rate.wait(q.owed+n, now)
	}
	var sum, count float64
	for _, o := range q.p.peers {
		if o.rate.settled(now) {
			sum += o.rate.at(now)
			count++
		}
	}
	if sum == 0 {
		return 0
	}
	return float64(q.owed+n) / (sum / count)
}

// set is a set of pieces, made for finding the next one.
type set []uint64

func newSet(n int) set { return make(set, (n+63)/64) }

func (s set) has(i int) bool { return s[i/64]&(1<<(i%64)) != 0 }
func (s set) set(i int)      { s[i/64] |= 1 << (i % 64) }
func (s set) clear(i int)    { s[i/64] &^= 1 << (i % 64) }

// nextIn is the first element from i on that is in both sets; -1: none.
func (s set) nextIn(o set, i int) int {
	mask := ^uint64(0) << (i % 64)
	for w := i / 64; w < len(s); w++ {
		if b := s[w] & o[w] & mask; b != 0 {
			return w*64 + bits.TrailingZeros64(b)
		}
		mask = ^uint64(0)
	}
	return -1
}

// all yields the elements in order.
func (s set) all() func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for w, b := range s {
			for ; b != 0; b &= b - 1 {
				if !yield(w*64 + bits.TrailingZeros64(b)) {
					return
				}
			}
		}
	}
}
