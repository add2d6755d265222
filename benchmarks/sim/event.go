package main

import (
	"time"

	"github.com/shoal-dev/shoal/swarm/tracker"
)

// epoch is the time at which simulations begin.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// moment is a simulated time, in nanoseconds since epoch.
type moment int64

func (m moment) time() time.Time            { return epoch.Add(time.Duration(m)) }
func (m moment) seconds() float64           { return time.Duration(m).Seconds() }
func (m moment) add(d time.Duration) moment { return m + moment(d) }

type kind uint8

const (
	evJoin      kind = iota // a node begins to pull
	evCrash                 // a node dies without a word
	evGone                  // the others have noticed
	evConnect               // a connection is ready
	evUplink                // a link has sent a chunk
	evChunk                 // a chunk has arrived
	evRequest               // a request has arrived
	evCancel                // the cancellation of a request has arrived
	evNews                  // a node tells its peers what it has got
	evHave                  // they hear of a piece
	evLease                 // a source begins to send a lease
	evBroken                // a lease's source turns out to be gone
	evUp                    // a message arrives at the tracker
	evDown                  // a message of the tracker arrives
	evFlushUp               // a node sends what it has to say to the tracker
	evFlushDown             // the tracker sends what it has to say to a node
	evTick                  // the tracker's clock
	evLook                  // a node looks whether peers are late
)

// event is something that happens at a moment. Which fields count depends on
// the kind.
type event struct {
	kind   kind
	last   bool  // of a chunk: the piece's last one
	piece  int32 // of chunks, requests, announcements
	bytes  int32
	node   *node
	stream *stream
	up     *tracker.Up
	down   *tracker.Down
}

// queue holds what is going to happen, in order of time; what is due at the
// same moment happens in the order of scheduling. It is a heap of four children
// each, of indices into a slab: the events themselves do not move.
type queue struct {
	heap []slot
	slab []event
	free []int32
	seq  uint64
}

type slot struct {
	at  moment
	seq uint64
	i   int32
}

func (s slot) before(o slot) bool { return s.at < o.at || s.at == o.at && s.seq < o.seq }

func (q *queue) push(at moment, e event) {
	var i int32
	if n := len(q.free); n > 0 {
		i, q.free = q.free[n-1], q.free[:n-1]
		q.slab[i] = e
	} else {
		i = int32(len(q.slab))
		q.slab = append(q.slab, e)
	}
	q.seq++
	s := slot{at, q.seq, i}
	q.heap = append(q.heap, s)
	k := len(q.heap) - 1
	for k > 0 {
		up := (k - 1) / 4
		if !s.before(q.heap[up]) {
			break
		}
		q.heap[k] = q.heap[up]
		k = up
	}
	q.heap[k] = s
}

func (q *queue) pop() (at moment, e event, ok bool) {
	if len(q.heap) == 0 {
		return 0, event{}, false
	}
	top := q.heap[0]
	n := len(q.heap) - 1
	s := q.heap[n]
	q.heap = q.heap[:n]
	for k := 0; n > 0; {
		best := -1
		for c := 4*k + 1; c <= 4*k+4 && c < n; c++ {
			if best < 0 || q.heap[c].before(q.heap[best]) {
				best = c
			}
		}
		if best < 0 || !q.heap[best].before(s) {
			q.heap[k] = s
			break
		}
		q.heap[k] = q.heap[best]
		k = best
	}
	e = q.slab[top.i]
	q.slab[top.i] = event{}
	q.free = append(q.free, top.i)
	return top.at, e, true
}
