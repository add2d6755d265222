package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/picker"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// config is one simulation.
type config struct {
	Scenario string
	Nodes    int
	Seed     uint64
	Size     int64
	// Rate and RegistryRate are of the links, in bytes per second.
	Rate, RegistryRate float64
	// Latency is one way between two nodes, ControlLatency one way between a
	// node and the tracker, RegistryLatency the time to a lease's first byte.
	Latency, ControlLatency, RegistryLatency time.Duration
	// Chunk is how many bytes a link sends at a time for one stream, and
	// Inflight how many may be on the way.
	Chunk, Inflight int64
	// Slots is to how many peers an uplink sends at a time, a piece to each; 0
	// is all that asked. SlowFirst: a slot goes to the one of the least
	// picker.Peer.Pace, instead of the one that has waited longest.
	Slots     int
	SlowFirst bool
	// Pace multiplies how long messages to and from the tracker that are not
	// urgent are collected.
	Pace float64
	// Look is how often a node asks again although nothing happened, and
	// Linger how long it keeps news of a piece from its peers, unless it has
	// MaxNews of them; 0 is picker.Linger. See package engine.
	Look, Linger time.Duration
	MaxNews      int
	Tuning       picker.Tuning
	Params       tracker.Params

	// Every is the time between two joins of scenario rolling.
	Every time.Duration
	// Holders is how many have the blob in scenario warm.
	Holders int
	// Slow is which share of the nodes has 1/SlowBy of Rate in scenario
	// uneven.
	Slow, SlowBy float64
	// Churn is which share of the nodes dies, and Notice how long it takes
	// until the others know.
	Churn  float64
	Notice time.Duration
}

// world is a simulation under way.
type world struct {
	cfg     config
	geo     chunker.Geometry
	rng     *rand.Rand
	now     moment
	q       queue
	events  int64
	nodes   []*node // pullers and holders
	byID    map[string]*node
	tracker rendezvous
	// registry has a link only.
	registry *node
	missing  int // nodes that are still to become done
}

func newWorld(c config) (*world, error) {
	geo, err := chunker.GeometryOf(c.Size)
	if err != nil {
		return nil, err
	}
	if c.Linger == 0 {
		c.Linger = picker.Linger(geo)
	}
	w := &world{cfg: c, geo: geo, rng: rand.New(rand.NewPCG(c.Seed, 1)), byID: map[string]*node{}}
	w.registry = &node{link: link{up: c.RegistryRate, down: c.RegistryRate}}
	w.tracker.m = tracker.NewLarge(c.Params, geo, w.split())
	w.push(moment(time.Second), event{kind: evTick})
	return w, nil
}

// split returns a random source of its own.
func (w *world) split() *rand.Rand { return rand.New(rand.NewPCG(w.rng.Uint64(), w.rng.Uint64())) }

func (w *world) push(at moment, e event) { w.q.push(at, e) }

// add puts a node into the world that has nothing yet.
func (w *world) add(rate float64) *node {
	pieces := w.geo.NumPieces()
	n := &node{
		id: fmt.Sprintf("n%04d", len(w.nodes)), link: link{up: rate, down: rate},
		joined: -1, done: -1, died: -1, newsPost: post{next: -1}, outPost: post{next: -1}, inPost: post{next: -1},
		have: chunker.NewBitfield(pieces), known: chunker.NewBitfield(pieces), byID: map[string]*half{}, asked: make([]uint8, pieces), jobs: map[uint64]*job{},
	}
	n.pick = w.newPicker()
	w.nodes = append(w.nodes, n)
	w.tracker.host = n
	w.byID[n.id] = n
	return n
}

// pulls lets a node pull from a moment on.
func (w *world) pulls(n *node, at moment) {
	w.missing++
	w.push(at, event{kind: evJoin, node: n})
}

func (w *world) join(n *node) {
	n.joined, n.lagSince, n.session = w.now, w.now, true
	n.asking = w.now.add(-4 * time.Second) // the first look that counts is after a second
	n.out.Hello = hello(n.id, w.geo.Size, nil)
	w.say(n)
	// Nodes do not look at the same moments.
	w.push(w.now.add(time.Duration(w.rng.Int64N(int64(w.cfg.Look)))), event{kind: evLook, node: n})
}

// crash lets a node fall silent. Its uplink stops; what is on its way still
// arrives.
func (w *world) crash(n *node) {
	if n.done < 0 {
		w.missing--
	}
	n.dead, n.died = true, w.now
	for _, h := range n.conns {
		h.other.in.queue = nil
	}
	for _, j := range n.jobs {
		j.stream.close()
	}
	w.push(w.now.add(w.cfg.Notice), event{kind: evGone, node: n})
}

// gone lets the others know.
func (w *world) gone(n *node) {
	for len(n.conns) > 0 {
		w.disconnect(n.conns[0])
	}
	for _, o := range w.nodes {
		for _, id := range slices.Sorted(maps.Keys(o.jobs)) {
			if j := o.jobs[id]; j.stream.from == n {
				w.broken(j.stream)
			}
		}
	}
	w.left(n)
}

// tooLong is when a simulation is taken to hang.
const tooLong = 24 * time.Hour

// run goes on until all are done.
func (w *world) run() error {
	for w.missing > 0 {
		at, e, ok := w.q.pop()
		if !ok || at > moment(tooLong) {
			return fmt.Errorf("simulate %s of %d nodes, seed %d: %d nodes never finish", w.cfg.Scenario, w.cfg.Nodes, w.cfg.Seed, w.missing)
		}
		w.now = at
		w.events++
		w.happen(e)
	}
	return nil
}

func (w *world) happen(e event) {
	switch e.kind {
	case evJoin:
		w.join(e.node)
	case evCrash:
		w.crash(e.node)
	case evGone:
		w.gone(e.node)
	case evConnect:
		w.connect(e.node, e.stream.from)
	case evUplink:
		e.node.link.busy = false
		if !e.node.dead {
			w.transmit(&e.node.link)
		}
	case evChunk:
		w.chunk(e.stream, e)
	case evRequest:
		w.request(e.stream, e.piece)
	case evCancel:
		w.cancel(e.stream, e.piece)
	case evNews:
		w.tell(e.node)
	case evHave:
		w.announced(e.node, int(e.piece))
	case evLease:
		w.begin(e.stream)
	case evBroken:
		w.broken(e.stream)
	case evUp:
		w.heard(e.node, e.up)
	case evDown:
		w.hear(e.node, e.down)
	case evFlushUp:
		w.flushUp(e.node)
	case evFlushDown:
		w.flushDown(e.node)
	case evTick:
		w.tick()
	case evLook:
		w.look(e.node)
	}
}
