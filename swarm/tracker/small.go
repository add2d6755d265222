package tracker

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// Small is the state of one small blob or manifest that nodes are fetching
// whole. Like [Large] it is a pure state machine.
//
// Invariants, checked by the property tests: at most one lease on the origin;
// at most SmallStreams on a holder; a puller has at most one lease; while a
// puller waits and a source is usable for it, a lease is out.
type Small struct {
	p       Params
	pullers map[string]*smallPuller
	holders map[string]int // the leases on each
	out     int            // leases
	nextID  uint64
}

type smallPuller struct {
	id     string
	order  uint64
	origin bool
	whole  bool
	lease  Lease // ID 0: none
	began  time.Time
	bars   map[string]bar
	told   bool // that it is starved
}

// NewSmall returns the empty state; rng makes lease ids that mean nothing to
// the next tracker.
func NewSmall(p Params, rng *rand.Rand) *Small {
	return &Small{nextID: rng.Uint64() >> 16, p: p.withDefaults(), pullers: map[string]*smallPuller{}, holders: map[string]int{}}
}

// Pieces is 0: small content is not cut.
func (s *Small) Pieces() int { return 0 }

// Idle says that nobody is in session.
func (s *Small) Idle() bool { return len(s.pullers) == 0 }

// Join adds a puller.
func (s *Small) Join(h *Hello, now time.Time) []Out {
	out := s.Leave(h.Node, now)
	s.nextID++
	s.pullers[h.Node] = &smallPuller{id: h.Node, order: s.nextID, origin: h.Origin, bars: map[string]bar{}}
	return append(out, s.grant(now)...)
}

// Leave ends a node's session.
func (s *Small) Leave(node string, now time.Time) []Out {
	p := s.pullers[node]
	if p == nil {
		return nil
	}
	s.end(p)
	delete(s.pullers, node)
	return s.grant(now)
}

// SetHolders replaces the set of nodes that have the content.
func (s *Small) SetHolders(nodes []string, now time.Time) []Out {
	next := make(map[string]int, len(nodes))
	for _, n := range nodes {
		next[n] = s.leasesOn(n)
	}
	s.holders = next
	return s.grant(now)
}

// Handle takes in a checked message.
func (s *Small) Handle(node string, u Up, now time.Time) []Out {
	p := s.pullers[node]
	if p == nil {
		return nil
	}
	for _, f := range u.Failed {
		if f.Lease != p.lease.ID || p.lease.ID == 0 {
			continue
		}
		if f.Reason == FailNotFound && p.lease.Source != "" {
			delete(s.holders, p.lease.Source)
		}
		s.fail(p, now)
	}
	if u.Whole && !p.whole {
		s.end(p)
		p.whole = true
		s.holders[p.id] = s.leasesOn(p.id)
	}
	return s.grant(now)
}

// leasesOn counts the leases on a holder, which may have been unlisted for a
// while.
func (s *Small) leasesOn(holder string) int {
	n := 0
	for _, p := range s.pullers {
		if p.lease.ID != 0 && p.lease.Source == holder {
			n++
		}
	}
	return n
}

// Tick expires leases.
func (s *Small) Tick(now time.Time) []Out {
	var out []Out
	for _, p := range s.sorted() {
		if p.lease.ID == 0 || now.Sub(p.began) < s.p.LeaseTimeout {
			continue
		}
		out = append(out, Out{p.id, Down{Revoke: []uint64{p.lease.ID}}})
		s.fail(p, now)
	}
	return append(out, s.grant(now)...)
}

func (s *Small) fail(p *smallPuller, now time.Time) {
	b := p.bars[p.lease.Source]
	b.fails++
	b.until = now.Add(s.p.barFor(b.fails))
	p.bars[p.lease.Source] = b
	s.end(p)
}

func (s *Small) end(p *smallPuller) {
	if p.lease.ID == 0 {
		return
	}
	s.out--
	if n, ok := s.holders[p.lease.Source]; ok {
		s.holders[p.lease.Source] = n - 1
	}
	p.lease = Lease{}
}

func (s *Small) grant(now time.Time) []Out {
	var out []Out
	for _, p := range s.sorted() {
		if p.whole || p.lease.ID != 0 {
			continue
		}
		source, ok, wait := s.source(p, now)
		switch {
		case ok:
			s.nextID++
			p.lease, p.began, p.told = Lease{ID: s.nextID, Source: source}, now, false
			s.out++
			if source != "" {
				s.holders[source]++
			}
			out = append(out, Out{p.id, Down{Grants: []Lease{p.lease}}})
		case !wait && !p.told:
			p.told = true
			out = append(out, Out{p.id, Down{Starved: true}})
		}
	}
	return out
}

// source picks where p, which has no lease, fetches from; wait says that waiting is worth while.
func (s *Small) source(p *smallPuller, now time.Time) (source string, ok, wait bool) {
	best := ""
	for h, n := range s.holders {
		if b, barred := p.bars[h]; h == p.id || barred && now.Before(b.until) {
			continue
		}
		wait = true
		if n < s.p.SmallStreams && (best == "" || cmp.Or(cmp.Compare(n, s.holders[best]), cmp.Compare(h, best)) < 0) {
			best = h
		}
	}
	if best != "" {
		return best, true, true
	}
	// Whoever has a lease is a holder next, be it on the origin or on a holder that
	// failed p.
	if wait || s.out > 0 {
		return "", false, true
	}
	b, barred := p.bars[""]
	if p.origin && (!barred || !now.Before(b.until)) {
		return "", true, true
	}
	return "", false, false
}

func (s *Small) sorted() []*smallPuller {
	ps := make([]*smallPuller, 0, len(s.pullers))
	for _, p := range s.pullers {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b *smallPuller) int { return cmp.Compare(a.order, b.order) })
	return ps
}
