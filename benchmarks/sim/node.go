package main

import (
	"time"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/picker"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// stuckAfter is how long a peer that is dead, but not known to be, is asked for
// more; as in package engine, where any message would be a sign of life.
const stuckAfter = time.Second

// progressEvery is how often a lease tells the tracker that it moves; as in
// package swarm.
const progressEvery = 500 * time.Millisecond

// node is one puller, a holder, or the registry (which only has a link).
type node struct {
	id   string
	link link

	joined, done, died moment // -1: not (yet)
	dead               bool

	have  chunker.Bitfield
	known chunker.Bitfield // pieces of which the sum is
	count int
	pick  *picker.Picker
	conns []*half
	byID  map[string]*half
	asked []uint8 // of how many peers each piece is asked
	jobs  map[uint64]*job

	news     []int32 // pieces that the peers are to hear of
	newsPost post    // when they do

	session bool         // with the tracker
	out     tracker.Up   // what the tracker is to hear
	outPost post         // when it goes
	in      tracker.Down // at the tracker: what the node is to hear
	inPost  post
	pullers int    // as the tracker said last
	asking  moment // for more peers, last

	// For the result.
	prefix   int     // pieces before it are all there
	lagSince moment  // up to when lag was added up
	lag      float64 // byte-seconds by which the readable beginning was behind
	bytes    int64   // had of the blob
	maxConns int
}

// half is one node's end of a connection.
type half struct {
	self  *node
	other *half
	peer  *picker.Peer // as self sees the other
	in    *stream      // from the other to self
	heard moment       // when the last chunk came, or the first piece was asked
}

// job is a lease at work.
type job struct {
	lease  tracker.Lease
	node   *node
	stream *stream
	left   int // pieces
	bytes  int64
	told   moment
}

// leased says whether the node has a lease on piece i.
func (n *node) leased(i int) bool {
	for _, j := range n.jobs {
		if i >= j.lease.First && i < j.lease.First+j.lease.Count {
			return true
		}
	}
	return false
}

// newPicker begins a node's choice of pieces.
func (w *world) newPicker() *picker.Picker {
	return picker.New(w.cfg.Tuning, w.geo, w.split())
}

// connect makes a connection between two pullers.
func (w *world) connect(a, b *node) {
	if a == b || a.dead || b.dead || a.byID[b.id] != nil {
		return
	}
	x, y := &half{self: a}, &half{self: b}
	x.other, y.other = y, x
	for _, h := range []*half{x, y} {
		n, o := h.self, h.other.self
		h.peer = n.pick.Join()
		h.in = &stream{from: o, to: n, back: h}
		for i := range o.have.All() {
			h.peer.Gain(i)
		}
		n.conns = append(n.conns, h)
		n.byID[o.id] = h
		n.maxConns = max(n.maxConns, len(n.conns))
	}
	w.pump(x)
	w.pump(y)
}

// disconnect ends a connection at both ends.
func (w *world) disconnect(h *half) {
	for _, h := range []*half{h, h.other} {
		n := h.self
		h.in.close()
		for i, c := range n.conns {
			if c == h {
				n.conns = append(n.conns[:i:i], n.conns[i+1:]...)
				break
			}
		}
		delete(n.byID, h.other.self.id)
		for _, i := range h.peer.Drop() {
			n.asked[i]--
		}
		h.peer.Leave()
		if !n.dead {
			w.pumpAll(n)
		}
	}
}

// pump asks the peer at the other end for as much as is to be asked.
func (w *world) pump(h *half) {
	n := h.self
	if n.dead || n.done >= 0 {
		return
	}
	switch {
	case h.peer.Owed() == 0:
		h.heard = w.now
	case h.other.self.dead && w.now-h.heard >= moment(stuckAfter):
		return
	}
	for {
		i, ok := h.peer.Next(w.now.time())
		if !ok {
			return
		}
		n.asked[i]++
		w.push(w.now.add(w.cfg.Latency), event{kind: evRequest, stream: h.in, piece: int32(i)})
	}
}

func (w *world) pumpAll(n *node) {
	// The first ones get the choice; so not always the same ones.
	k := len(n.conns)
	if k == 0 {
		return
	}
	from := w.rng.IntN(k)
	for i := range k {
		w.pump(n.conns[(from+i)%k])
	}
}

// request takes in a request at the sender.
func (w *world) request(s *stream, i int32) {
	if s.closed || s.from.dead {
		return
	}
	_, n := w.geo.Piece(int(i))
	s.queue = append(s.queue, request{i, int32(n)})
	w.wake(s)
}

// cancel takes a request back at the sender.
func (w *world) cancel(s *stream, i int32) {
	for k, r := range s.queue {
		if r.piece == i {
			s.queue = append(s.queue[:k:k], s.queue[k+1:]...)
			return
		}
	}
}

// announced tells a node's peers that it has a piece.
func (w *world) announced(n *node, i int) {
	if n.dead {
		return
	}
	for _, h := range n.conns {
		o := h.other
		o.peer.Gain(i)
		if o.self.asked[i] == 0 && o.self.pick.Wants(i) {
			w.pump(o)
		}
	}
}

// chunk takes in what arrived.
func (w *world) chunk(s *stream, e event) {
	n := s.to
	n.link.received += int64(e.bytes)
	if n.dead {
		return // and never acknowledges
	}
	s.inflight -= int64(e.bytes)
	if s.closed || s.from.dead {
		return
	}
	w.wake(s)
	if s.own != nil {
		w.leased(s.own, e)
		return
	}
	i := int(e.piece)
	s.back.heard = w.now
	s.back.peer.Came(i, int64(e.bytes), w.now.time())
	if e.last {
		if s.back.peer.Asked(i) {
			s.back.peer.Return(i)
			n.asked[i]--
		}
		if !n.have.Has(i) {
			w.gain(n, i)
			n.out.Got = append(n.out.Got, i)
			w.say(n)
		}
	}
	w.pump(s.back)
}

// leased takes in what a lease brought.
func (w *world) leased(j *job, e event) {
	n, i := j.node, int(e.piece)
	if n.jobs[j.lease.ID] != j {
		return
	}
	j.bytes += int64(e.bytes)
	if w.now-j.told >= moment(progressEvery) {
		j.told = w.now
		n.out.Merge(tracker.Up{Progress: []tracker.Progress{{Lease: j.lease.ID, Bytes: j.bytes}}})
		w.say(n)
	}
	if !e.last {
		return
	}
	if !n.have.Has(i) {
		n.out.Have = append(n.out.Have, tracker.PieceSum{Index: i, Sum: sumOf(i)})
		w.say(n)
		w.gain(n, i)
	}
	if j.left--; j.left == 0 {
		delete(n.jobs, j.lease.ID)
		j.stream.close()
	}
}

// sumOf is the sum of a piece. All nodes are honest here.
func sumOf(i int) chunker.Sum { return chunker.Sum{byte(i), byte(i >> 8), byte(i >> 16)} }

// gain notes that a node has a piece.
func (w *world) gain(n *node, i int) {
	_, size := w.geo.Piece(i)
	w.lag(n)
	n.have.Set(i)
	n.count++
	n.bytes += size
	for n.prefix < w.geo.NumPieces() && n.have.Has(n.prefix) {
		n.prefix++
	}
	w.unwant(n, i)
	n.news = append(n.news, int32(i))
	at := w.now.add(w.cfg.Linger)
	if len(n.news) >= w.cfg.MaxNews {
		at = w.now
	}
	if n.newsPost.plan(at) {
		w.push(at, event{kind: evNews, node: n})
	}
	if n.count == w.geo.NumPieces() {
		n.done = w.now
		w.missing--
		n.out.Whole, n.out.WholeSize = true, w.geo.Size
		w.say(n)
	}
}

// tell sends a node's news to all its peers. With other messages they do not go here,
// as they do in package engine.
func (w *world) tell(n *node) {
	if !n.newsPost.due(w.now) {
		return
	}
	for _, i := range n.news {
		w.push(w.now.add(w.cfg.Latency), event{kind: evHave, node: n, piece: i})
	}
	n.news = n.news[:0]
}

// unwant takes a piece back from the peers that were asked for it.
func (w *world) unwant(n *node, i int) {
	for _, q := range n.pick.Unwant(i) {
		n.asked[i]--
		for _, h := range n.conns {
			if h.peer == q {
				w.push(w.now.add(w.cfg.Latency), event{kind: evCancel, stream: h.in, piece: int32(i)})
				w.pump(h)
			}
		}
	}
}

// fail ends a lease unfulfilled: what is left of it may come from peers again.
func (w *world) fail(j *job) {
	n := j.node
	delete(n.jobs, j.lease.ID)
	j.stream.close()
	for i := j.lease.First; i < j.lease.First+j.lease.Count; i++ {
		if n.known.Has(i) && !n.have.Has(i) {
			n.pick.Want(i)
		}
	}
	w.pumpAll(n)
}

// lag adds up by how much the beginning is behind what was received.
func (w *world) lag(n *node) {
	read := min(int64(n.prefix)*w.geo.PieceLength, w.geo.Size)
	n.lag += (w.now - n.lagSince).seconds() * float64(n.bytes-read)
	n.lagSince = w.now
}

// hear takes in a message of the tracker.
func (w *world) hear(n *node, d *tracker.Down) {
	if n.dead {
		return
	}
	for _, s := range d.Sums {
		n.known.Set(s.Index)
		if !n.have.Has(s.Index) && !n.leased(s.Index) {
			n.pick.Want(s.Index)
		}
	}
	if d.Beat != nil {
		n.pullers = d.Beat.Pullers
	}
	for _, id := range d.Revoke {
		if j := n.jobs[id]; j != nil {
			w.fail(j)
		}
	}
	for i := range d.Grants {
		ls := &d.Grants[i]
		j := &job{lease: *ls, node: n, told: w.now}
		from := w.registry
		first := w.cfg.RegistryLatency
		if ls.Source != "" {
			from, first = w.byID[ls.Source], 2*w.cfg.Latency
		}
		j.stream = &stream{from: from, to: n, own: j}
		n.jobs[ls.ID] = j
		for i := ls.First; i < ls.First+ls.Count; i++ {
			w.unwant(n, i) // it would come twice
		}
		w.push(w.now.add(first), event{kind: evLease, stream: j.stream})
	}
	for _, id := range d.Peers {
		// A connection costs a round trip of TCP and two of TLS.
		w.push(w.now.add(6*w.cfg.Latency), event{kind: evConnect, node: n, stream: &stream{from: w.byID[id]}})
	}
	if len(d.Sums) > 0 {
		w.pumpAll(n)
	}
}

// begin lets a lease's source send what is missing of it.
func (w *world) begin(s *stream) {
	j := s.own
	if s.closed || j.node.dead {
		return
	}
	if s.from.dead {
		// Nothing comes; once the network knows, nor does a connection.
		w.push(max(w.now, s.from.died.add(w.cfg.Notice)), event{kind: evBroken, stream: s})
		return
	}
	for i := j.lease.First; i < j.lease.First+j.lease.Count; i++ {
		if !j.node.have.Has(i) {
			_, n := w.geo.Piece(i)
			s.queue = append(s.queue, request{int32(i), int32(n)})
		}
	}
	if j.left = len(s.queue); j.left == 0 {
		delete(j.node.jobs, j.lease.ID)
		return
	}
	w.wake(s)
}

// broken ends a lease whose source is gone.
func (w *world) broken(s *stream) {
	j := s.own
	if s.closed || j.node.dead {
		return
	}
	w.fail(j)
	j.node.out.Failed = append(j.node.out.Failed, tracker.Failure{Lease: j.lease.ID, Reason: tracker.FailSource})
	w.say(j.node)
}

// look is done regularly: are peers late, are there enough?
func (w *world) look(n *node) {
	if n.dead || n.done >= 0 {
		return
	}
	w.pumpAll(n)
	if tracker.Lonely(len(n.conns), n.pullers) && w.now-n.asking >= moment(5*time.Second) {
		n.asking = w.now
		n.out.MorePeers = true
		w.say(n)
	}
	w.push(w.now.add(w.cfg.Look), event{kind: evLook, node: n})
}
