package main

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm/tracker"
)

// rendezvous is the blob's tracker: the real state machine, and around it what
// [tracker.Tracker] and the sessions do: collect what is to be said to a node
// until it is time to say it, and keep the inventory of who has the blob.
type rendezvous struct {
	m        *tracker.Large
	host     *node // whose uplink the messages take
	sessions int
	holders  []string // sorted

	up, down traffic
	cpu      time.Duration // spent in m, on the machine that simulates
}

// post is when a box's contents go out next; -1: not planned.
type post struct{ next, last moment }

// paced is when the post may go at the soonest.
func (p *post) paced(now moment, pace time.Duration) moment { return max(now, p.last.add(pace)) }

// plan says whether to schedule the post for then: it does not go sooner already.
func (p *post) plan(at moment) bool {
	if p.next >= 0 && p.next <= at {
		return false
	}
	p.next = at
	return true
}

// due says whether the post goes now; otherwise it has gone before.
func (p *post) due(now moment) bool {
	if p.next != now {
		return false
	}
	p.next, p.last = -1, now
	return true
}

// traffic counts messages, in seconds of simulated time.
type traffic struct {
	messages []int
	bytes    int64
}

func (t *traffic) count(now moment, bytes int) {
	for sec := int(now / moment(time.Second)); len(t.messages) <= sec; {
		t.messages = append(t.messages, 0)
	}
	t.messages[now/moment(time.Second)]++
	t.bytes += int64(bytes)
}

// say lets a node send its box to the tracker, soon or at once.
func (w *world) say(n *node) {
	if !n.session {
		return
	}
	pace := time.Duration(w.cfg.Pace * float64(tracker.PaceUp(n.pullers)))
	if n.out.Urgent() {
		pace = 0
	}
	if at := n.outPost.paced(w.now, pace); n.outPost.plan(at) {
		w.push(at, event{kind: evFlushUp, node: n})
	}
}

func (w *world) flushUp(n *node) {
	if n.dead || !n.outPost.due(w.now) || n.out.Empty() {
		return
	}
	u := n.out
	n.out = tracker.Up{}
	w.push(w.now.add(w.cfg.ControlLatency), event{kind: evUp, node: n, up: &u})
}

// heard takes in a message at the tracker.
func (w *world) heard(n *node, u *tracker.Up) {
	r := &w.tracker
	r.up.count(w.now, sizeUp(u))
	if u.Whole {
		r.hold(n.id)
	}
	began := time.Now()
	var out []tracker.Out
	if u.Hello != nil {
		r.sessions++
		out = r.m.SetHolders(r.holders, w.now.time())
		out = append(out, r.m.Join(u.Hello, w.now.time())...)
	} else {
		out = r.m.Handle(n.id, *u, w.now.time())
	}
	r.cpu += time.Since(began)
	w.deliver(out)
}

func (r *rendezvous) hold(id string) {
	if i, ok := slices.BinarySearch(r.holders, id); !ok {
		r.holders = slices.Insert(r.holders, i, id)
	}
}

func (r *rendezvous) unhold(id string) {
	if i, ok := slices.BinarySearch(r.holders, id); ok {
		r.holders = slices.Delete(r.holders, i, i+1)
	}
}

// left notes at the tracker that a node is gone.
func (w *world) left(n *node) {
	r := &w.tracker
	r.unhold(n.id)
	began := time.Now()
	out := r.m.Leave(n.id, w.now.time())
	r.cpu += time.Since(began)
	n.session = false
	r.sessions--
	w.deliver(out)
}

func (w *world) tick() {
	r := &w.tracker
	began := time.Now()
	out := r.m.SetHolders(r.holders, w.now.time())
	out = append(out, r.m.Tick(w.now.time())...)
	r.cpu += time.Since(began)
	w.deliver(out)
	w.push(w.now.add(tracker.TickEvery), event{kind: evTick})
}

// deliver puts messages into the boxes of their receivers.
func (w *world) deliver(out []tracker.Out) {
	pace := time.Duration(w.cfg.Pace * float64(tracker.PaceDown(w.tracker.sessions)))
	for i := range out {
		n := w.byID[out[i].To]
		n.in.Merge(out[i].Down)
		wait := pace
		if n.in.Urgent() {
			wait = 0
		}
		if at := n.inPost.paced(w.now, wait); n.inPost.plan(at) {
			w.push(at, event{kind: evFlushDown, node: n})
		}
	}
}

func (w *world) flushDown(n *node) {
	if !n.inPost.due(w.now) || n.in.Empty() {
		return
	}
	d := n.in
	n.in = tracker.Down{}
	size := sizeDown(&d)
	w.tracker.down.count(w.now, size)
	w.tracker.host.link.owed += int64(size)
	w.push(w.now.add(w.cfg.ControlLatency), event{kind: evDown, node: n, down: &d})
}

// sizeUp and sizeDown estimate a message's length on the wire, in bytes.
func sizeUp(u *tracker.Up) int {
	return 20 + sizeSums(u.Have) + 5*len(u.Got) + 40*len(u.Progress)
}

func sizeDown(d *tracker.Down) int {
	n := 20 + sizeSums(d.Sums) + 60*len(d.Grants) + 10*len(d.Peers)
	if d.Beat != nil {
		n += 60
	}
	return n
}

// sizeSums counts a base64 string of 32 bytes for each sum, and the frame of
// each run of consecutive pieces of one node.
func sizeSums(sums tracker.Sums) int {
	known := make(map[int]string, len(sums))
	for _, s := range sums {
		known[s.Index] = s.By
	}
	runs := 0
	for _, s := range sums {
		if by, ok := known[s.Index-1]; !ok || by != s.By {
			runs++
		}
	}
	return 43*len(sums) + 35*runs
}

func hello(id string, size int64, have []byte) *tracker.Hello {
	return &tracker.Hello{
		Version: tracker.Version, Node: id, Digest: digest.FromString("blob"), Size: size, Have: have, Origin: true,
	}
}
