package main

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/shoal-dev/shoal/chunker"
)

// scenarios are what can be simulated, by name.
var scenarios = map[string]func(w *world){
	"cold":    cold,
	"warm":    warm,
	"rolling": rolling,
	"churn":   churn,
	"uneven":  uneven,
}

func scenarioNames() string {
	var names []string
	for n := range scenarios {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// spread is over how long nodes that begin "at once" begin: no rollout is
// simultaneous to the microsecond.
const spread = 20 * time.Millisecond

func (w *world) soon() moment { return moment(w.rng.Int64N(int64(spread))) }

// cold: all begin at once, and nobody has anything.
func cold(w *world) {
	for range w.cfg.Nodes {
		w.pulls(w.add(w.cfg.Rate), w.soon())
	}
}

// warm: some have the blob, the others begin at once.
func warm(w *world) {
	for range min(w.cfg.Holders, w.cfg.Nodes-1) {
		n := w.add(w.cfg.Rate)
		for i := range w.geo.NumPieces() {
			n.have.Set(i)
		}
		n.done, n.bytes, n.count, n.prefix = 0, w.geo.Size, w.geo.NumPieces(), w.geo.NumPieces()
		w.tracker.hold(n.id)
	}
	for len(w.nodes) < w.cfg.Nodes {
		w.pulls(w.add(w.cfg.Rate), w.soon())
	}
}

// rolling: one begins every so often.
func rolling(w *world) {
	for i := range w.cfg.Nodes {
		w.pulls(w.add(w.cfg.Rate), moment(i)*moment(w.cfg.Every))
	}
}

// churn: a share of the nodes falls silent, each at some time within the bound,
// and as many new ones begin at those times.
func churn(w *world) {
	cold(w)
	within := int64(w.bound(nil) * float64(time.Second))
	for _, i := range w.rng.Perm(w.cfg.Nodes)[:int(w.cfg.Churn*float64(w.cfg.Nodes))] {
		at := moment(spread) + moment(w.rng.Int64N(within))
		w.push(at, event{kind: evCrash, node: w.nodes[i]})
		w.pulls(w.add(w.cfg.Rate), at)
	}
}

// uneven: a share of the nodes has slow links.
func uneven(w *world) {
	slow := int(w.cfg.Slow * float64(w.cfg.Nodes))
	for _, k := range w.rng.Perm(w.cfg.Nodes) {
		rate := w.cfg.Rate
		if k < slow {
			rate /= w.cfg.SlowBy
		}
		w.pulls(w.add(rate), w.soon())
	}
}

// bound is how long the transfer takes at least to node n, or to all for nil,
// in seconds from when it begins to pull: the blob through the sources' uplinks,
// through the node's downlink, and, for all, N copies through all uplinks.
func (w *world) bound(n *node) float64 {
	size := float64(w.geo.Size)
	source := w.registry.link.up
	if h := w.holderRate(); h > 0 {
		source = h
	}
	if n != nil {
		return max(size/source, size/n.link.down)
	}
	t := size / source
	var all, copies float64
	all = source
	for _, n := range w.nodes {
		if n.joined < 0 && n.done >= 0 {
			continue // a holder
		}
		t = max(t, size/n.link.down)
		all += n.link.up
		copies++
	}
	return max(t, copies*size/all)
}

// holderRate is the sum of the uplinks of those that had the blob before.
func (w *world) holderRate() float64 {
	var sum float64
	for _, n := range w.nodes {
		if n.joined < 0 && n.done >= 0 {
			sum += n.link.up
		}
	}
	return sum
}

// floor is the least that store and forward of whole pieces allows, relative to
// the bound of equal links: 1 + floor(log2 N)/M.
func floor(nodes int, g chunker.Geometry) float64 {
	return 1 + float64(bits.Len(uint(nodes))-1)/float64(g.NumPieces())
}

func simulate(c config) (result, error) {
	w, err := newWorld(c)
	if err != nil {
		return result{}, err
	}
	set, ok := scenarios[c.Scenario]
	if !ok {
		return result{}, fmt.Errorf("scenario %q: want one of %s", c.Scenario, scenarioNames())
	}
	began := time.Now()
	set(w)
	if err := w.run(); err != nil {
		return result{}, err
	}
	return w.result(time.Since(began)), nil
}
