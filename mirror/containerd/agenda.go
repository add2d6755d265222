package containerd

import "time"

// pace is how fast hints turn into questions.
type pace struct {
	// settle collects the hints of one pull, or of one collection, into one
	// batch. The swarm collects announcements for 200 ms more.
	settle time.Duration
	// retries of a digest whose file is there while the metadata does not
	// name it: containerd moves the file into place before the transaction
	// that names it is on disk. The pauses double, from settle.
	retries int
	// maxChecks is how many digests are asked for one by one. Beyond that a
	// walk is cheaper: about 0.4 ms for each question, and 20 ms for a walk over
	// 1,000 blobs, measured against containerd 2.3.4.
	maxChecks int
	// followUp is how long after a hint of a collection without names
	// everything is compared once more: what is deleted asynchronously is
	// collected by itself.
	followUp time.Duration
	// minGap between two walks, and at least 20 times as long as the last one
	// took, up to reconcile: however much containerd holds, walks take 5 % of one
	// of its processors at most.
	minGap time.Duration
	// reconcile is the period of walks that nothing asked for.
	reconcile time.Duration
}

// check is a digest to ask for.
type check struct {
	// namespace that the hint named, asked first; "" if it named none.
	namespace string
	due       time.Time
	tried     int
	// probe: also read from the blob, as somebody could not.
	probe bool
}

// agenda is what to ask containerd, and when. It is a pure state machine;
// the follower feeds it with hints and does what is due.
type agenda struct {
	pace   pace
	checks map[key]check
	// walk and followUp are when everything is to be compared next. walk is
	// never zero.
	walk, followUp time.Time
	// earliest that a walk may begin.
	earliest time.Time
}

func newAgenda(p pace, now time.Time) *agenda {
	return &agenda{pace: p, checks: map[key]check{}, walk: now}
}

// look takes in a hint about one digest.
func (a *agenda) look(k key, namespace string, probe bool, now time.Time) {
	c, ok := a.checks[k]
	if !ok {
		if len(a.checks) >= a.pace.maxChecks {
			a.compare(now)
			return
		}
		c.due = now.Add(a.pace.settle)
	}
	if namespace != "" {
		c.namespace = namespace
	}
	c.probe = c.probe || probe
	c.tried = 0
	c.due = earlier(c.due, now.Add(a.pace.settle))
	a.checks[k] = c
}

// again puts a check off that found a file without metadata; it gives up after
// some tries.
func (a *agenda) again(k key, c check, now time.Time) {
	if _, ok := a.checks[k]; ok || c.tried >= a.pace.retries {
		return
	}
	c.tried++
	c.due = now.Add(a.pace.settle << c.tried)
	a.checks[k] = c
}

// compare takes in a hint that does not tell what has changed.
func (a *agenda) compare(now time.Time) {
	a.walk = earlier(a.walk, now.Add(a.pace.settle))
}

// collected takes in a hint that something may be collected, now or soon.
func (a *agenda) collected(now time.Time) {
	a.compare(now)
	a.followUp = now.Add(a.pace.followUp)
}

// next is when something is due.
func (a *agenda) next() time.Time {
	t := a.walk
	if !a.followUp.IsZero() {
		t = earlier(t, a.followUp)
	}
	if t.Before(a.earliest) {
		t = a.earliest
	}
	for _, c := range a.checks {
		t = earlier(t, c.due)
	}
	return t
}

// due takes what is due off the agenda. If a walk is, walked must follow.
func (a *agenda) due(now time.Time) (checks map[key]check, walk bool) {
	for k, c := range a.checks {
		if !c.due.After(now) {
			if checks == nil {
				checks = map[key]check{}
			}
			checks[k] = c
			delete(a.checks, k)
		}
	}
	if now.Before(a.earliest) {
		return checks, false
	}
	if !a.followUp.IsZero() && !a.followUp.After(now) {
		a.followUp, walk = time.Time{}, true
	}
	return checks, walk || !a.walk.After(now)
}

// walked notes a walk that is over.
func (a *agenda) walked(began, ended time.Time) {
	a.walk = ended.Add(a.pace.reconcile)
	a.earliest = ended.Add(max(a.pace.minGap, min(20*ended.Sub(began), a.pace.reconcile)))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
