package tracker

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-dev/shoal/chunker"
)

// Large is the state of one blob's swarm. It is a pure state machine: not safe
// for concurrent use, no clock but the times passed in.
//
// Invariants, checked by the property tests:
//   - a piece is under at most one lease, and never under one while an
//     incomplete puller has it;
//   - a puller has a lease only while it is incomplete and in the session;
//   - leases on the origin never exceed OriginStreams, on a holder never
//     HolderStreams, and no puller is its own source;
//   - of pullers that have another layer to fetch before, no more than
//     LaterStreams get a lease (those that had one before may keep it);
//   - while something is missing and a source is usable by some puller, a
//     lease is out.
type Large struct {
	p       Params
	g       chunker.Geometry
	rng     *rand.Rand
	seed    uint64 // of affinity
	pullers map[string]*puller
	// sorted are the pullers in the order of joining, so that runs with the
	// same events give the same messages.
	sorted []*puller
	// lacking counts the pullers that are incomplete.
	lacking int
	// holders are the nodes that serve the whole blob, with the number of
	// leases on each.
	holders map[string]int
	pieces  []pieceState
	// frees counts the free pieces; none is before cursor.
	frees   int
	cursor  int
	nextID  uint64
	noRange bool
	// wholeOut is the lease of the one streaming fetcher of a registry that
	// ignores ranges.
	wholeOut *lease
	// originOut counts leases on the origin, laterOut those of later pullers.
	originOut, laterOut int
	// dealt: the pullers have heard that nothing is left to lease.
	dealt bool
	// barred is until when a source may be barred for some puller.
	barred   time.Time
	progress int64
	starved  bool
	told     time.Time // when the pullers heard last how things stand
}

type pieceState struct {
	// owners counts the pullers in session that have the piece, complete
	// ones only during their grace.
	owners int32
	known  bool
	leased *lease
	sum    chunker.Sum
	by     string
	// hurried is how often a lease on it was given to another early.
	hurried int8
}

type puller struct {
	id       string
	order    uint64
	have     chunker.Bitfield
	origin   bool
	later    bool // has another layer to fetch before
	complete bool
	// graceEnd is when a complete puller's pieces stop to count as owned;
	// zero when they do not count (any more).
	graceEnd time.Time
	leases   map[uint64]*lease
	granted  uint64 // id of the last lease, for round robin
	done     bool   // it was told that nobody needs it any more
	// met are those that it was introduced to, or that were to it.
	met  map[*puller]struct{}
	rate float64
	bars map[string]bar // by source; "" is the origin
}

// NewLarge returns the empty swarm of a blob of geometry g. rng decides which
// peers meet in a large swarm.
func NewLarge(p Params, g chunker.Geometry, rng *rand.Rand) *Large {
	return &Large{
		// Lease ids of one tracker mean nothing to the next.
		nextID: rng.Uint64() >> 16,
		p:      p.withDefaults(), g: g, rng: rng, seed: rng.Uint64(),
		pullers: map[string]*puller{}, holders: map[string]int{},
		pieces: make([]pieceState, g.NumPieces()), frees: g.NumPieces(),
	}
}

// Pieces is the number of pieces, for checking messages.
func (l *Large) Pieces() int { return len(l.pieces) }

// Idle says that nobody is in session: the state can be forgotten.
func (l *Large) Idle() bool { return len(l.pullers) == 0 }

// havers are the pullers that have n bytes from off, which are within the blob.
func (l *Large) havers(off, n int64) []string {
	var nodes []string
	for _, p := range l.sorted {
		has := true
		for i := l.g.PieceAt(off); has && i <= l.g.PieceAt(off+n-1); i++ {
			has = p.have.Has(i)
		}
		if has {
			nodes = append(nodes, p.id)
		}
	}
	return nodes
}

// Join adds the puller of a checked hello, or replaces an earlier session of
// the same node, and introduces it to others.
func (l *Large) Join(h *Hello, now time.Time) []Out {
	out := l.Leave(h.Node, now)
	l.nextID++
	have, err := chunker.BitfieldFromBytes(len(l.pieces), h.Have)
	if err != nil {
		have = chunker.NewBitfield(len(l.pieces))
	}
	p := &puller{
		id: h.Node, order: l.nextID, have: have, origin: h.Origin, later: h.Later,
		leases: map[uint64]*lease{}, bars: map[string]bar{}, met: map[*puller]struct{}{},
	}
	l.pullers[p.id] = p
	l.sorted = append(l.sorted, p)
	l.lacking++
	for i := range p.have.All() {
		l.own(i)
	}
	var d Down
	d.Peers = l.introduce(p, (l.p.MaxPeers+1)/2)
	for i := range l.pieces {
		if s := &l.pieces[i]; s.known {
			d.Sums = append(d.Sums, PieceSum{Index: i, Sum: s.sum, By: s.by})
		}
	}
	d.Beat = l.beat()
	out = append(out, Out{p.id, d})
	return append(out, l.grant(now)...)
}

// Leave ends a node's session.
func (l *Large) Leave(node string, now time.Time) []Out {
	p := l.pullers[node]
	if p == nil {
		return nil
	}
	for _, ls := range p.leases {
		l.end(ls)
	}
	if !p.complete || !p.graceEnd.IsZero() {
		l.disown(p)
	}
	if !p.complete {
		l.lacking--
	}
	for q := range p.met {
		delete(q.met, p)
	}
	delete(l.pullers, node)
	l.sorted = slices.DeleteFunc(l.sorted, func(q *puller) bool { return q == p })
	return append(l.grant(now), l.finish()...)
}

// SetHolders replaces the set of nodes that serve the whole blob.
func (l *Large) SetHolders(nodes []string, now time.Time) []Out {
	next := make(map[string]int, len(nodes))
	for _, n := range nodes {
		next[n] = l.leasesOn(n)
	}
	l.holders = next
	return l.grant(now)
}

// Handle takes in a checked message of a puller in session.
func (l *Large) Handle(node string, u Up, now time.Time) []Out {
	p := l.pullers[node]
	if p == nil {
		return nil
	}
	var out []Out
	for _, pr := range u.Progress {
		if ls := p.leases[pr.Lease]; ls != nil && pr.Bytes > ls.bytes {
			ls.bytes, ls.lastMove = pr.Bytes, now
		}
	}
	out = append(out, l.sums(p, u.Have)...)
	for _, h := range u.Have {
		l.gain(p, h.Index, now)
	}
	for _, i := range u.Got {
		l.gain(p, i, now)
	}
	for _, i := range u.Lost {
		l.lose(p, i)
	}
	for _, d := range u.Disputes {
		out = append(out, l.dispute(d)...)
	}
	for _, f := range u.Failed {
		l.fail(p, f, now)
	}
	if u.Later != nil {
		l.later(p, *u.Later)
	}
	if u.MorePeers {
		// Whom it has met before it may not have reached, or lost again.
		peers := append(l.introduce(p, (l.p.MaxPeers+1)/2), p.acquaintances()...)
		if len(peers) > 0 {
			out = append(out, Out{p.id, Down{Peers: peers}})
		}
	}
	if u.Whole && !p.complete {
		for i := range l.pieces {
			l.gain(p, i, now)
		}
		for _, ls := range p.leases {
			l.end(ls)
		}
		p.complete, p.graceEnd = true, now.Add(l.p.Grace)
		l.lacking--
		l.holders[p.id] = l.leasesOn(p.id)
	}
	out = append(out, l.grant(now)...)
	return append(out, l.finish()...)
}

// later notes whether p has another layer to fetch before this one.
func (l *Large) later(p *puller, later bool) {
	switch {
	case later && !p.later:
		l.laterOut += len(p.leases)
	case !later && p.later:
		l.laterOut -= len(p.leases)
	}
	p.later = later
}

// finish tells the complete pullers, once, that no one needs them any more.
func (l *Large) finish() []Out {
	if l.lacking > 0 {
		return nil
	}
	var out []Out
	for _, p := range l.sorted {
		if !p.done {
			p.done = true
			out = append(out, Out{p.id, Down{Done: true}})
		}
	}
	return out
}

// introduce picks up to n incomplete pullers that p has not met, for it to
// connect to. Complete ones are left out: many pullers on one seed is what the
// leases avoid.
//
// Each is the one that has met fewest of three drawn at random. Of one drawn the
// first comers would meet several times as many as the last, and since every
// peer gets a share of an uplink, who meets few gets little: 200 simulated nodes
// took 1.25 of the bound that way, 1.17 this way. Of all, everyone would meet
// those that came just before and after, and a piece would have far to go: 1.4.
func (l *Large) introduce(p *puller, n int) []string {
	var ids []string
	for tries := 4 * n; len(ids) < n && tries > 0 && len(l.sorted) > 4*l.p.MaxPeers; tries-- {
		var best *puller
		for range 3 {
			q := l.sorted[l.rng.IntN(len(l.sorted))]
			if p.stranger(q) && (best == nil || len(q.met) < len(best.met)) {
				best = q
			}
		}
		if best != nil {
			ids = append(ids, meet(p, best))
		}
	}
	if len(ids) >= n {
		return ids
	}
	// Drawing finds too few: the swarm is small, or most are complete.
	var rest []*puller
	for _, q := range l.sorted {
		if p.stranger(q) {
			rest = append(rest, q)
		}
	}
	l.rng.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	for _, q := range rest[:min(n-len(ids), len(rest))] {
		ids = append(ids, meet(p, q))
	}
	return ids
}

// stranger says whether p could be introduced to q.
func (p *puller) stranger(q *puller) bool {
	_, met := p.met[q]
	return q != p && !q.complete && !met
}

// Lonely says whether one of so many pullers that is connected to so many others
// should ask for more: half of whom it was introduced to are out of reach.
func Lonely(peers, pullers int) bool { return peers < min(pullers-1, 7) }

// acquaintances are those that p has met and that still pull, in order.
func (p *puller) acquaintances() []string {
	var ids []string
	for q := range p.met {
		if !q.complete {
			ids = append(ids, q.id)
		}
	}
	slices.Sort(ids)
	return ids
}

func meet(p, q *puller) string {
	p.met[q], q.met[p] = struct{}{}, struct{}{}
	return q.id
}

// sums takes in published sums; the first one of a piece stands.
func (l *Large) sums(p *puller, sums []PieceSum) []Out {
	var fresh, refused []PieceSum
	for _, h := range sums {
		s := &l.pieces[h.Index]
		switch {
		case !s.known:
			s.known, s.sum, s.by = true, h.Sum, p.id
			fresh = append(fresh, PieceSum{Index: h.Index, Sum: h.Sum, By: p.id})
		case s.sum != h.Sum:
			refused = append(refused, PieceSum{Index: h.Index, Sum: s.sum, By: s.by})
		}
	}
	var out []Out
	if len(fresh) > 0 {
		for _, q := range l.sorted {
			if q != p && !q.complete {
				out = append(out, Out{q.id, Down{Sums: fresh}})
			}
		}
	}
	if len(refused) > 0 {
		out = append(out, Out{p.id, Down{Refused: refused}})
	}
	return out
}

// dispute withdraws a sum that a puller has proved wrong, if it is still the
// voucher's. Whoever has the piece has wrong bytes, and is told to forget it.
func (l *Large) dispute(d Dispute) []Out {
	s := &l.pieces[d.Index]
	if !s.known || s.by != d.By {
		return nil
	}
	s.known, s.sum, s.by = false, chunker.Sum{}, ""
	var out []Out
	for _, q := range l.sorted {
		if q.complete {
			continue
		}
		l.lose(q, d.Index)
		out = append(out, Out{q.id, Down{Forget: []int{d.Index}}})
	}
	return out
}

// gain records that p has piece i.
func (l *Large) gain(p *puller, i int, now time.Time) {
	if p.complete || p.have.Has(i) {
		return
	}
	p.have.Set(i)
	l.own(i)
	ls := l.pieces[i].leased
	if ls == nil {
		return
	}
	// Whoever brought it in, the piece is in the swarm now.
	l.pieces[i].leased = nil // not free: it is owned
	ls.left--
	if ls.to == p {
		_, n := l.g.Piece(i)
		l.progress += n
		ls.lastMove = now
	}
	if ls.left == 0 {
		if ls.to == p {
			l.judge(ls, now)
			delete(p.bars, ls.Source)
		}
		l.end(ls)
	}
}

func (l *Large) lose(p *puller, i int) {
	if p.complete || !p.have.Has(i) {
		return
	}
	p.have.Clear(i)
	l.disownPiece(i)
}

// own notes that one puller more has piece i.
func (l *Large) own(i int) {
	if l.free(i) {
		l.frees--
	}
	l.pieces[i].owners++
}

func (l *Large) disown(p *puller) {
	for i := range p.have.All() {
		l.disownPiece(i)
	}
}

func (l *Large) disownPiece(i int) {
	l.pieces[i].owners--
	l.freed(i)
}

// freed notes that piece i lost an owner or its lease.
func (l *Large) freed(i int) {
	if l.free(i) {
		l.frees++
		l.cursor = min(l.cursor, i)
	}
}

func (l *Large) free(i int) bool { return l.pieces[i].owners == 0 && l.pieces[i].leased == nil }
