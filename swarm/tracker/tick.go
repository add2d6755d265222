package tracker

import "time"

// impatientFrom is with how many incomplete pullers a lease that stands still is
// given to another five times sooner once nothing else is left to lease: all wait
// for it, and there are others to fetch it. Of 50 simulated nodes of which 5 fell
// silent the last took 1.41 of the bound without that, and 1.29 so.
const impatientFrom = 4

const (
	// TickEvery is how often time is looked at: a quarter of the least that is
	// waited for, see hurry.
	TickEvery = 250 * time.Millisecond
	// beatEvery is how often pullers hear how things stand.
	beatEvery = time.Second
	// hurries is how often a lease on a piece goes to another early; for the next
	// one it would take longer than LeaseTimeout.
	hurries = 3
)

// Tick expires what time expires; call it each [TickEvery].
func (l *Large) Tick(now time.Time) []Out {
	var out []Out
	last := l.frees == 0 && l.lacking >= impatientFrom
	for _, p := range l.sorted {
		for _, id := range sortedIDs(p.leases) {
			ls := p.leases[id]
			still := now.Sub(ls.lastMove)
			switch {
			case still >= l.p.LeaseTimeout:
				l.bar(p, ls.Source, now)
			case last && still >= l.hurry(ls):
				// One stream that stands says little of its source. The puller's
				// turn comes after the others'.
				l.nextID++
				p.granted = l.nextID
				l.hurried(ls)
			default:
				continue
			}
			l.end(ls)
			out = append(out, Out{p.id, Down{Revoke: []uint64{id}}})
		}
		if p.complete && !p.graceEnd.IsZero() && now.After(p.graceEnd) {
			p.graceEnd = time.Time{}
			l.disown(p)
		}
	}
	out = append(out, l.grant(now)...)
	if now.Sub(l.told) < beatEvery-TickEvery/2 {
		return out
	}
	l.told = now
	for _, p := range l.sorted {
		if !p.complete {
			out = append(out, Out{p.id, Down{Beat: l.beat(), Peers: l.introduce(p, l.p.MaxPeers-len(p.met))}})
		}
	}
	return out
}

// hurry is for how long a lease may stand still when all wait for it. It doubles
// with each try for a piece, so that a source that takes its time to answer is
// given that. A registry that ignores ranges would have to begin anew.
func (l *Large) hurry(ls *lease) time.Duration {
	if ls.Whole {
		return l.p.LeaseTimeout
	}
	var tries int8
	for i := range l.missing(ls) {
		tries = max(tries, l.pieces[i].hurried)
	}
	return l.p.LeaseTimeout / 5 << tries
}

// hurried notes another try for what is missing of a lease.
func (l *Large) hurried(ls *lease) {
	for i := range l.missing(ls) {
		l.pieces[i].hurried = min(l.pieces[i].hurried+1, hurries)
	}
}

func (l *Large) beat() *Beat {
	return &Beat{Progress: l.progress, Pullers: l.lacking, Holders: len(l.holders), Free: l.frees}
}
