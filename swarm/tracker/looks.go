package tracker

import "time"

// Looks are those at a clock, one each time Every has passed, by somebody who gives
// up what has not moved for a while. It is not safe for concurrent use.
//
// A process that stood still, since its machine was suspended or moved, or its
// processor time was used up, finds everything silent when it goes on: what came
// meanwhile is yet to be read. A tracker that gave up all leases then would bar all
// pullers from the registry at once, and have each of them help itself there.
type Looks struct {
	Every time.Duration
	last  time.Time
	until time.Time // of a rest; zero: there is none
}

// rest is how long it takes to read what came while the process stood still: twice
// what a lease that moves may wait with its news of that.
const rest = time.Second

// Skip says that this look comes soon after one that was so late that the process
// must have stood still, or is that one. The first look after that judges, late or
// not: a process that is always late has to decide nevertheless. now is the time of
// the look; a ticker tells when it was due.
func (l *Looks) Skip(now time.Time) bool {
	late := !l.last.IsZero() && now.Sub(l.last) > 2*l.Every
	l.last = now
	switch {
	case l.until.IsZero() && late:
		l.until = now.Add(rest)
	case !now.Before(l.until):
		l.until = time.Time{}
	}
	return !l.until.IsZero()
}
