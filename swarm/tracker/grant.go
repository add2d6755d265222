package tracker

import (
	"cmp"
	"container/heap"
	"iter"
	"slices"
	"time"
)

type bar struct {
	until time.Time
	fails int
}

type lease struct {
	Lease
	to       *puller
	left     int // pieces still missing
	began    time.Time
	lastMove time.Time
	bytes    int64 // that have come, as its puller told
}

// leasesOn counts the leases on a holder, which may have been unlisted for a
// while.
func (l *Large) leasesOn(holder string) int {
	if n, ok := l.holders[holder]; ok {
		return n
	}
	n := 0
	for _, p := range l.pullers {
		for _, ls := range p.leases {
			if ls.Source == holder {
				n++
			}
		}
	}
	return n
}

// fail ends a lease that its puller could not fulfil.
func (l *Large) fail(p *puller, f Failure, now time.Time) {
	ls := p.leases[f.Lease]
	if ls == nil {
		return
	}
	switch {
	case f.Reason == FailNoRange && ls.Source == "" && !ls.Whole:
		l.noRange = true
	case f.Reason == FailNotFound && ls.Source != "":
		delete(l.holders, ls.Source)
	default:
		l.bar(p, ls.Source, now)
	}
	l.end(ls)
}

func (l *Large) bar(p *puller, source string, now time.Time) {
	b := p.bars[source]
	b.fails++
	b.until = now.Add(l.p.barFor(b.fails))
	p.bars[source] = b
	if b.until.After(l.barred) {
		l.barred = b.until
	}
}

func (p *puller) barred(source string, now time.Time) bool {
	b, ok := p.bars[source]
	return ok && now.Before(b.until)
}

// end takes a lease back; pieces that are still missing become free.
func (l *Large) end(ls *lease) {
	if ls.to.leases[ls.ID] != ls {
		return
	}
	delete(ls.to.leases, ls.ID)
	if ls.to.later {
		l.laterOut--
	}
	if ls.Source == "" {
		l.originOut--
	} else if n, ok := l.holders[ls.Source]; ok {
		l.holders[ls.Source] = n - 1
	}
	if l.wholeOut == ls {
		l.wholeOut = nil
	}
	for i := range l.missing(ls) {
		l.pieces[i].leased = nil
		l.freed(i)
	}
}

// missing are the pieces of a lease that have not come.
func (l *Large) missing(ls *lease) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := ls.First; i < ls.First+ls.Count; i++ {
			if l.pieces[i].leased == ls && !yield(i) {
				return
			}
		}
	}
}

// grant hands out leases, and tells the pullers when the last piece is leased for
// the first time: their next layers' turn has come.
func (l *Large) grant(now time.Time) []Out {
	out := l.handOut(now)
	if l.frees > 0 || l.dealt || l.lacking == 0 {
		return out
	}
	l.dealt = true
	for _, p := range l.sorted {
		if !p.complete {
			out = append(out, Out{p.id, Down{Beat: l.beat()}})
		}
	}
	return out
}

// handOut hands out leases while there is something free, a puller with room
// and a source with room. Most messages of a large swarm change none of these,
// so it looks at the pullers only if there may be something to grant.
func (l *Large) handOut(now time.Time) []Out {
	if l.frees == 0 {
		l.starved = false
		return nil
	}
	if !l.room(now) {
		return nil // which also says that leases are out: nobody starves
	}
	var out []Out
	per := streamsPerPuller(l.lacking)
	q := l.candidates(per)
	for {
		first := l.nextFree()
		if first < 0 {
			l.starved = false
			return out
		}
		if len(q) == 0 {
			return append(out, l.starve(now)...)
		}
		p := q[0]
		source, ok := l.source(p, now)
		if !ok || p.later && l.laterOut >= l.p.LaterStreams {
			heap.Pop(&q)
			continue
		}
		ls := l.lease(p, source, first, per, now)
		out = append(out, Out{p.id, Down{Grants: []Lease{ls.Lease}}})
		if p.room(per) {
			heap.Fix(&q, 0)
		} else {
			heap.Pop(&q)
		}
	}
}

// room says whether one more lease could be out: on a holder, or on the origin
// if there is somebody who would not rather wait for a holder.
func (l *Large) room(now time.Time) bool {
	everyones := false
	for h, n := range l.holders {
		if n < l.p.HolderStreams {
			return true
		}
		if p := l.pullers[h]; p == nil || p.complete {
			everyones = true
		}
	}
	if everyones && !now.Before(l.barred) {
		return false
	}
	return l.originRoom()
}

// originRoom says whether one more lease on the origin could be out.
func (l *Large) originRoom() bool {
	return l.originOut < l.p.OriginStreams && (!l.noRange || l.wholeOut == nil)
}

// nearlyOver says that the lease's last quarter, or last piece, is on its way. A
// lease of one piece is not nearly over before it is over.
func (ls *lease) nearlyOver() bool {
	return ls.left*4 <= ls.Count || ls.left == 1 && ls.Count > 1
}

// busy counts the puller's leases that are not nearly over.
func (p *puller) busy() int {
	n := 0
	for _, ls := range p.leases {
		if !ls.nearlyOver() {
			n++
		}
	}
	return n
}

// room says whether the puller, with per leases at a time, could have one more.
// The next one begins before the last one is over, so that the source's answer
// is there in time.
func (p *puller) room(per int) bool { return len(p.leases) < 2*per && p.busy() < per }

// lease creates the lease of the run of free pieces that begins at first.
func (l *Large) lease(p *puller, source string, first, per int, now time.Time) *lease {
	l.nextID++
	ls := &lease{Lease: Lease{ID: l.nextID, First: first, Source: source}, to: p, began: now, lastMove: now}
	if source == "" && l.noRange {
		ls.Whole = true
		ls.Count = len(l.pieces) - first
		l.wholeOut = ls
	} else {
		left := int64(l.frees) * l.g.PieceLength
		streams := min(per*l.lacking, max(l.p.OriginStreams, l.p.HolderStreams*len(l.holders)))
		want := int(max(l.p.leaseLength(p.rate, left, streams)/l.g.PieceLength, 1))
		for ls.Count < want && first+ls.Count < len(l.pieces) && l.free(first+ls.Count) {
			ls.Count++
		}
	}
	for i := first; i < first+ls.Count; i++ {
		if l.free(i) {
			l.pieces[i].leased = ls
			l.frees--
			ls.left++
		}
	}
	if source == "" {
		l.originOut++
	} else {
		l.holders[source]++
	}
	p.leases[ls.ID] = ls
	if p.later {
		l.laterOut++
	}
	p.granted = ls.ID
	l.starved = false
	return ls
}

// judge takes a lease that is over for a measure of its puller's speed.
//
// The shorter a lease, the more of its time is the wait for the first byte; so the
// speed rises quickly and falls slowly. But what comes at once was in a buffer, or
// a link that had been idle let it pass, and says nothing of a second. Of 80 cold
// pulls of 10 MB by 8 containerd nodes at 100 Mbit/s 13 took more than 1.5 s, up to
// 2.73 s: a first lease that was over after 5 ms got its puller the next one for 6 MB,
// and everybody waited for that one stream. So none did, and at most 1.39 s.
func (l *Large) judge(ls *lease, now time.Time) {
	_, last := l.g.Piece(ls.First + ls.Count - 1)
	n := int64(ls.Count-1)*l.g.PieceLength + last
	rate := float64(n) / max(now.Sub(ls.began), l.p.LeaseTime/4).Seconds()
	ls.to.rate = max(rate, (ls.to.rate+rate)/2)
}

func (l *Large) nextFree() int {
	for ; l.cursor < len(l.pieces); l.cursor++ {
		if l.free(l.cursor) {
			return l.cursor
		}
	}
	return -1
}

// candidates are the incomplete pullers with room for a lease: the one with the
// fewest leases first, the one served longest ago among equals, and those last
// that have another layer to fetch before.
func (l *Large) candidates(per int) candidates {
	q := make(candidates, 0, l.lacking)
	for _, p := range l.sorted {
		if !p.complete && p.room(per) {
			q = append(q, p)
		}
	}
	heap.Init(&q)
	return q
}

type candidates []*puller

func (q candidates) Len() int      { return len(q) }
func (q candidates) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q candidates) Less(i, j int) bool {
	a, b := q[i], q[j]
	if a.later != b.later {
		return b.later
	}
	return cmp.Or(cmp.Compare(a.busy(), b.busy()), cmp.Compare(a.granted, b.granted), cmp.Compare(a.order, b.order)) < 0
}

// Push is not used, but heap wants it.
func (q *candidates) Push(any) {}

// Pop implements heap.Interface.
func (q *candidates) Pop() any {
	p := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return p
}

// source picks where p fetches its next lease: the least busy holder that is
// not barred; the origin only when there is no such holder at all, so that a
// busy holder does not send pullers to the registry.
func (l *Large) source(p *puller, now time.Time) (string, bool) {
	best, usable := "", false
	for h, n := range l.holders {
		if h == p.id || p.barred(h, now) {
			continue
		}
		usable = true
		if n >= l.p.HolderStreams {
			continue
		}
		if best == "" || n < l.holders[best] || n == l.holders[best] && l.affinity(p.id, h) < l.affinity(p.id, best) {
			best = h
		}
	}
	if usable {
		return best, best != ""
	}
	return "", p.origin && !p.barred("", now) && l.originRoom()
}

// affinity spreads pullers over equally busy holders: FNV-1a of both names.
func (l *Large) affinity(p, h string) uint64 {
	const prime = 1099511628211
	x := l.seed
	for _, s := range [...]string{p, "\x00", h} {
		for i := range len(s) {
			x = (x ^ uint64(s[i])) * prime
		}
	}
	return x
}

// starve tells the pullers, once, that what is missing cannot come from
// anywhere: nothing is leased, and no puller can use any source.
func (l *Large) starve(now time.Time) []Out {
	var out []Out
	for _, p := range l.sorted {
		if p.complete {
			continue
		}
		if len(p.leases) > 0 {
			return nil
		}
		if _, ok := l.source(p, now); ok {
			return nil
		}
		out = append(out, Out{p.id, Down{Starved: true}})
	}
	if l.starved {
		return nil
	}
	l.starved = true
	return out
}

func sortedIDs(m map[uint64]*lease) []uint64 {
	ids := make([]uint64, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
