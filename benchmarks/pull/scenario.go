package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/benchmarks/result"
	"github.com/shoal-dev/shoal/e2e/lab"
)

// Names of processes in results.
const (
	containerd = "containerd"
	shoalName  = "shoal"
)

// Modes, but for those of package result.
const (
	direct = "direct"
	other  = "other"
)

var allModes = []string{direct, result.Perfect, result.Shoal, other}

// scenario is a way in which nodes come to pull.
type scenario struct {
	name string
	// least is how many nodes it needs.
	least int
	// unshaped: links have no limits.
	unshaped bool
	// holders have the image, or its earlier version, before.
	holders func(nodes []*lab.Node) []*lab.Node
	// upgrade: what the holders have is an earlier version.
	upgrade bool
	// kills: a node ends during the pull, at half of the time that it needs at
	// least, and its counters with it.
	kills bool
	// pull makes the measured pulls and returns those that came to their end.
	pull func(ctx context.Context, b *bench, p plan) ([]result.Pull, error)
}

// plan is one measured pull.
type plan struct {
	image lab.Image
	bound time.Duration
	nodes []*lab.Node
}

var scenarios = []scenario{
	{name: "cold", least: 1, pull: together},
	{name: "warm", least: 2, holders: firstNode, pull: func(ctx context.Context, b *bench, p plan) ([]result.Pull, error) {
		p.nodes = p.nodes[1:]
		return together(ctx, b, p)
	}},
	{name: "rolling", least: 2, pull: rolling},
	{name: "upgrade", least: 1, upgrade: true, holders: func(ns []*lab.Node) []*lab.Node { return ns }, pull: together},
	{name: "churn", least: 4, kills: true, pull: churn},
	{name: "alone", least: 1, pull: func(ctx context.Context, b *bench, p plan) ([]result.Pull, error) {
		p.nodes = p.nodes[:1]
		return together(ctx, b, p)
	}},
	{name: "pair", least: 2, unshaped: true, holders: firstNode, pull: func(ctx context.Context, b *bench, p plan) ([]result.Pull, error) {
		p.nodes = p.nodes[1:2]
		return together(ctx, b, p)
	}},
}

func scenarioOf(name string) (scenario, error) {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	if i < 0 {
		var names []string
		for _, s := range scenarios {
			names = append(names, s.name)
		}
		return scenario{}, fmt.Errorf("scenario %q: want one of %v", name, names)
	}
	return scenarios[i], nil
}

func firstNode(nodes []*lab.Node) []*lab.Node { return nodes[:1] }

// start is a node that begins after a while.
type start struct {
	node  *lab.Node
	after time.Duration
}

// pullAll pulls on nodes as they start. A pull that fails ends all others, but
// for nodes in doomed.
func (b *bench) pullAll(ctx context.Context, img lab.Image, starts []start, doomed ...*lab.Node) ([]result.Pull, error) {
	pulls := make([]result.Pull, len(starts))
	g, ctx := errgroup.WithContext(ctx)
	for i, s := range starts {
		g.Go(func() error {
			select {
			case <-time.After(s.after):
			case <-ctx.Done():
				return ctx.Err()
			}
			begin := time.Now()
			fetched := make(chan time.Duration, 1)
			fctx, cancel := context.WithCancel(ctx)
			go func() { fetched <- b.awaitLayers(fctx, s.node, img, begin) }()
			took, err := s.node.Pull(ctx, img.Ref)
			cancel()
			fetch := <-fetched
			if err != nil {
				if slices.Contains(doomed, s.node) {
					return nil
				}
				return err
			}
			pulls[i] = result.Pull{Node: s.node.Name, Seconds: took.Seconds(), Fetch: fetch.Seconds()}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(pulls, func(p result.Pull) bool { return p.Node == "" }), nil
}

// awaitLayers returns when containerd's store has all layers, since begin; 0 if
// it was not seen.
func (b *bench) awaitLayers(ctx context.Context, n *lab.Node, img lab.Image, begin time.Time) time.Duration {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if n.HasBlobs(img.Layers...) {
			return time.Since(begin)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if n.HasBlobs(img.Layers...) {
				return time.Since(begin)
			}
			return 0
		}
	}
}

// together starts all nodes at once.
func together(ctx context.Context, b *bench, p plan) ([]result.Pull, error) {
	var starts []start
	for _, n := range p.nodes {
		starts = append(starts, start{node: n})
	}
	return b.pullAll(ctx, p.image, starts)
}

// rolling starts them one after the other.
func rolling(ctx context.Context, b *bench, p plan) ([]result.Pull, error) {
	var starts []start
	for i, n := range p.nodes {
		starts = append(starts, start{n, time.Duration(i) * b.options.stagger})
	}
	return b.pullAll(ctx, p.image, starts)
}

// churn kills the second node at half, when the last one begins. Afterwards
// both are there again.
func churn(ctx context.Context, b *bench, p plan) (_ []result.Pull, err error) {
	half := p.bound / 2
	last := len(p.nodes) - 1
	victim := p.nodes[1]
	var starts []start
	for i, n := range p.nodes {
		s := start{node: n}
		if i == last {
			s.after = half
		}
		starts = append(starts, s)
	}
	killed := make(chan error, 1)
	kctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-time.After(half):
			killed <- crash(victim)
		case <-kctx.Done():
			killed <- fmt.Errorf("the pull ended within %v, before a node could be killed: take a larger image", half)
		}
	}()
	pulls, err := b.pullAll(ctx, p.image, starts, victim)
	cancel()
	if kerr := <-killed; kerr != nil {
		return nil, errors.Join(err, kerr)
	}
	return pulls, errors.Join(err, revive(ctx, victim))
}

// crash ends a node's programs and cuts it off.
func crash(n *lab.Node) error {
	err := n.Disconnect()
	if s := n.Shoal(); s != nil {
		err = errors.Join(err, s.Kill())
	}
	return errors.Join(err, n.Containerd().Kill())
}

func revive(ctx context.Context, n *lab.Node) error {
	if err := n.Reconnect(); err != nil {
		return err
	}
	if err := n.StartContainerd(ctx); err != nil {
		return err
	}
	if n.Shoal() == nil {
		return nil
	}
	return n.StartShoal(ctx)
}
