package picker

import (
	"math"
	"time"
)

// memory is how long a rate remembers: long enough to bridge the gap between
// two chunks of a peer that is one of many, short enough to notice a peer that
// fell silent before its neighbours have nothing else to do.
const memory = time.Second

// rate is the speed of a peer while it owes something: an exponentially
// weighted mean over memory.
type rate struct {
	perSecond float64
	last      time.Time // up to when it was computed
	owing     bool
	weight    float64 // of what was seen, below 1 while it is little
}

// settledWeight is reached after half of memory.
const settledWeight = 0.39

// settled says that the peer owed something for long enough to judge it by.
func (r *rate) settled(now time.Time) bool {
	r.decay(now)
	return r.weight >= settledWeight
}

// busy notes that the peer owes something from now on.
func (r *rate) busy(now time.Time) { r.owing, r.last = true, now }

// idle notes that the peer owes nothing any more.
func (r *rate) idle() { r.owing = false }

// add notes that n bytes came.
func (r *rate) add(n int64, now time.Time) {
	if !r.owing {
		return
	}
	r.decay(now)
	r.perSecond += float64(n) / memory.Seconds()
}

func (r *rate) decay(now time.Time) {
	if !r.owing {
		return
	}
	d := now.Sub(r.last)
	if d <= 0 {
		return
	}
	f := math.Exp(-d.Seconds() / memory.Seconds())
	r.perSecond *= f
	r.weight = 1 - (1-r.weight)*f
	r.last = now
}

// at is the rate in bytes per second.
func (r *rate) at(now time.Time) float64 {
	r.decay(now)
	if r.weight == 0 {
		return 0
	}
	return r.perSecond / r.weight
}

// wait is how many seconds n bytes take.
func (r *rate) wait(n int64, now time.Time) float64 {
	v := r.at(now)
	if v <= 0 {
		return math.Inf(1)
	}
	return float64(n) / v
}
