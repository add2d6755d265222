package main

import "time"

// link is a node's, or the registry's, access to the network: an uplink and a
// downlink that do not disturb each other.
//
// An uplink sends chunks, taking the streams that have something to send in
// turn. A stream that has [config.Inflight] bytes on their way is passed over
// until some of them have arrived. At the downlink the chunks queue in the order
// in which they were sent. Serving in turn with a window per stream is what
// makes the shares max-min fair over the whole network, in the long run (E.
// Hahne, "Round-robin scheduling for max-min fairness in data networks", IEEE
// JSAC 9(7), 1991); it costs two events per chunk, and no fixed point over all
// flows at each change. A chunk passes through both links at once, as packets
// do: it has arrived when the slower one is done with it.
type link struct {
	up, down float64 // bytes per second
	busy     bool
	current  *stream   // in the middle of a piece, if pieces go whole
	turn     []*stream // streams that can send, in turn
	downFree moment    // until when the downlink is taken

	sent, received int64
}

// stream is one direction of a connection between two nodes, or the body of a
// lease. Its queue is served first in, first out.
type stream struct {
	from, to *node
	queue    []request
	inflight int64
	turning  bool // it is in its link's turn
	closed   bool

	back *half // of a connection: the receiver's end
	own  *job  // of a lease
}

// request is a piece that was asked for.
type request struct {
	piece int32
	left  int32
}

// ready says whether the stream can send.
func (w *world) ready(s *stream) bool {
	return !s.closed && len(s.queue) > 0 && s.inflight < w.cfg.Inflight
}

// wake lets the stream send if it can.
func (w *world) wake(s *stream) {
	if s.turning || !w.ready(s) {
		return
	}
	s.turning = true
	l := &s.from.link
	l.turn = append(l.turn, s)
	if !l.busy {
		w.transmit(l)
	}
}

// transmit begins with the next chunk.
func (w *world) transmit(l *link) {
	s := l.next(w)
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
	}
	s.inflight += int64(n)
	if w.cfg.WholePieces && !e.last {
		l.current = s
	}
	w.wake(s)
	done := w.now.add(span(n, l.up))
	d := &s.to.link
	d.downFree = max(d.downFree, w.now).add(span(n, d.down))
	l.sent += int64(n)
	w.push(done, event{kind: evUplink, node: s.from})
	w.push(max(done, d.downFree).add(w.cfg.Latency), e)
}

// next takes the stream whose turn it is; nil: none can send.
func (l *link) next(w *world) *stream {
	if s := l.current; s != nil {
		l.current = nil
		if w.ready(s) {
			return s
		}
	}
	for len(l.turn) > 0 {
		s := l.turn[0]
		l.turn = l.turn[1:]
		s.turning = false
		if w.ready(s) {
			return s
		}
	}
	return nil
}

// close ends a stream; what is on its way still arrives.
func (s *stream) close() { s.closed, s.queue = true, nil }

// span is how long n bytes take.
func span(n int32, rate float64) time.Duration {
	return time.Duration(float64(n) / rate * float64(time.Second))
}
