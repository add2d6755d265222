package main

import (
	"math"
	"time"
)

// link is a node's, or the registry's, access to the network: an uplink and a
// downlink that do not disturb each other.
//
// An uplink sends chunks. Up to [config.Slots] connections send at a time, and
// all leases, in turn; one that has [config.Inflight] bytes on their way is passed over until some of
// them have arrived. At the downlink the chunks queue in the order in which they
// were sent. Serving in turn with a window per stream is what makes the shares
// max-min fair over the whole network, in the long run (E. Hahne, "Round-robin
// scheduling for max-min fairness in data networks", IEEE JSAC 9(7), 1991); it
// costs two events per chunk, and no fixed point over all flows at each change.
// A chunk passes through both links at once, as packets do: it has arrived when
// the slower one is done with it.
type link struct {
	up, down float64 // bytes per second
	busy     bool
	active   []*stream // that send, in turn
	next     int       // of active
	slots    int       // that connections have, of active
	waiting  []*stream // for a slot, in the order of coming
	downFree moment    // until when the downlink is taken

	// owed are bytes that go before the next chunk: the tracker's messages.
	owed           int64
	sent, received int64
}

// stream is one direction of a connection between two nodes, or the body of a
// lease. Its queue is served first in, first out.
type stream struct {
	from, to *node
	queue    []request
	inflight int64
	listed   bool // it is in its link's active or waiting
	closed   bool

	back *half // of a connection: the receiver's end
	own  *job  // of a lease
}

// request is a piece that was asked for.
type request struct {
	piece int32
	left  int32
}

// wake lets the stream send if it can.
func (w *world) wake(s *stream) {
	if s.closed || len(s.queue) == 0 {
		return
	}
	l := &s.from.link
	if !s.listed {
		s.listed = true
		if s.own != nil {
			l.active = append(l.active, s)
		} else {
			l.waiting = append(l.waiting, s)
		}
	}
	if !l.busy {
		w.transmit(l)
	}
}

// transmit begins with the next chunk.
func (w *world) transmit(l *link) {
	s := w.turn(l)
	l.busy = s != nil
	if s == nil {
		return
	}
	r := &s.queue[0]
	n := min(r.left, int32(w.cfg.Chunk))
	r.left -= n
	e := event{kind: evChunk, stream: s, piece: r.piece, bytes: n, last: r.left == 0}
	if e.last {
		s.queue = s.queue[1:]
		if s.own == nil && w.cfg.Slots > 0 {
			// The slot goes to whoever has waited, or needs it most.
			l.next--
			l.retire(s)
			l.waiting = append(l.waiting, s)
		}
	}
	s.inflight += int64(n)
	done := w.now.add(span(int64(n)+l.owed, l.up))
	l.owed = 0
	d := &s.to.link
	d.downFree = max(d.downFree, w.now).add(span(int64(n), d.down))
	l.sent += int64(n)
	w.push(done, event{kind: evUplink, node: s.from})
	w.push(max(done, d.downFree).add(w.cfg.Latency), e)
}

// turn takes the stream whose turn it is; nil: none can send.
func (w *world) turn(l *link) *stream {
	for passed := 0; ; {
		w.admit(l)
		if passed >= len(l.active) {
			return nil
		}
		if l.next >= len(l.active) {
			l.next = 0
		}
		s := l.active[l.next]
		switch {
		case s.closed || len(s.queue) == 0:
			s.listed = false
			l.retire(s)
			continue
		case s.inflight < w.cfg.Inflight:
			l.next++
			return s
		}
		l.next++
		passed++
	}
}

// retire takes the next stream off the active ones.
func (l *link) retire(s *stream) {
	l.active = append(l.active[:l.next], l.active[l.next+1:]...)
	if s.own == nil {
		l.slots--
	}
}

// admit fills the slots of an uplink.
func (w *world) admit(l *link) {
	for len(l.waiting) > 0 && (w.cfg.Slots <= 0 || l.slots < w.cfg.Slots) {
		best := 0
		if w.cfg.SlowFirst {
			least := math.Inf(1)
			for i, s := range l.waiting {
				if v := s.back.other.peer.Pace(w.now.time()); v < least {
					best, least = i, v
				}
			}
		}
		s := l.waiting[best]
		l.waiting = append(l.waiting[:best], l.waiting[best+1:]...)
		if s.closed || len(s.queue) == 0 {
			s.listed = false
			continue
		}
		l.active = append(l.active, s)
		l.slots++
	}
}

// close ends a stream; what is on its way still arrives.
func (s *stream) close() { s.closed, s.queue = true, nil }

// span is how long n bytes take.
func span(n int64, rate float64) time.Duration {
	return time.Duration(float64(n) / rate * float64(time.Second))
}
