package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/benchmarks/result"
	"github.com/shoal-dev/shoal/e2e/lab"
)

// bench runs pulls in a laboratory.
type bench struct {
	lab     *lab.Lab
	options options
	rival   *rival // nil without mode other
	images  uint64
}

// measure makes an image, pulls it in a scenario and mode, and removes it.
func (b *bench) measure(ctx context.Context, s scenario, shape result.Image, mode string, round int) (r result.Record, err error) {
	o := b.options
	r = result.Record{
		Scenario: s.name, Mode: mode, Round: round, Image: shape, Nodes: o.nodes,
		Link: int64(o.rate), RegistryLink: int64(o.registryRate), Origin: -1,
	}
	if s.unshaped {
		r.Link, r.RegistryLink = 0, 0
	}
	defer func() { err = errors.Join(err, b.shape(o.rate, o.registryRate)) }()
	// What is not measured need not be slow.
	if err := b.shape(0, 0); err != nil {
		return r, err
	}
	nodes := b.lab.Nodes()
	if err := b.serve(nodes, mode); err != nil {
		return r, err
	}
	old, img, err := b.push(ctx, s, shape, mode)
	if err != nil {
		return r, err
	}
	r.Image.Bytes, r.Moved = img.Size(), img.Size()
	if s.upgrade {
		r.Moved = img.Manifest.Size + img.Config.Size + img.Layers[len(img.Layers)-1].Size
	}
	var holders []*lab.Node
	if s.holders != nil {
		holders = s.holders(nodes)
	}
	if err := b.prepare(ctx, holders, old, mode); err != nil {
		return r, err
	}
	if !s.unshaped {
		registry := o.registryRate
		if mode == result.Perfect {
			registry = 0
		}
		if err := b.shape(o.rate, registry); err != nil {
			return r, err
		}
		slower := o.rate
		if registry != 0 && (slower == 0 || registry < slower) {
			slower = registry
		}
		r.Bound = slower.Time(r.Moved).Seconds()
	}
	if err := b.observe(ctx, s, &r, plan{image: img, bound: o.rate.Time(r.Moved), nodes: nodes}); err != nil {
		return r, err
	}
	if err := b.remove(ctx, nodes, img, old); err != nil {
		return r, err
	}
	return r, b.lab.Registry.Delete(img, old)
}

// shape sets the speed of all links.
func (b *bench) shape(nodes, registry lab.Rate) error {
	for _, n := range b.lab.Nodes() {
		if err := n.SetRate(nodes); err != nil {
			return err
		}
	}
	return b.lab.SetRegistryRate(registry)
}

// serve points containerd to who serves in a mode.
func (b *bench) serve(nodes []*lab.Node, mode string) error {
	for _, n := range nodes {
		var err error
		switch mode {
		case result.Shoal:
			err = n.SetMirrors(n.Mirror())
		case other:
			err = b.rival.serve(n)
		default:
			err = n.SetMirrors()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// push makes the image to measure, and the one that holders have before: the
// same, unless it is an upgrade.
func (b *bench) push(ctx context.Context, s scenario, shape result.Image, mode string) (old, img lab.Image, err error) {
	b.images++
	spec := lab.ImageSpec{
		Repository: fmt.Sprintf("bench/%s-%s-%d", s.name, mode, b.images), Tag: "v1",
		Size: shape.Bytes, Layers: shape.Layers, Seed: b.images, Compressible: shape.Compressible,
	}
	if old, err = b.lab.Push(ctx, spec); err != nil || !s.upgrade {
		return old, old, err
	}
	b.images++
	spec.Tag, spec.LastSeed = "v2", b.images
	img, err = b.lab.Push(ctx, spec)
	return old, img, err
}

// prepare gives the holders what they have before, and waits until their Shoal
// shares it from containerd's store. An earlier image may be in Shoal's cache:
// it stays there if containerd dropped it first.
func (b *bench) prepare(ctx context.Context, holders []*lab.Node, img lab.Image, mode string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range holders {
		g.Go(func() error {
			if mode != result.Shoal {
				_, err := n.Pull(ctx, img.Ref)
				return err
			}
			before, err := n.Metrics(ctx)
			if err != nil {
				return fmt.Errorf("look at the holder: %w", err)
			}
			if _, err := n.Pull(ctx, img.Ref); err != nil {
				return err
			}
			for {
				m, err := n.Metrics(ctx)
				if err != nil {
					return fmt.Errorf("wait for the holder to be ready: %w", err)
				}
				if m["shoal_cache_bytes"] <= before["shoal_cache_bytes"] && m["shoal_swarm_downloads"] == 0 {
					return nil
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	return g.Wait()
}

// observe makes the measured pulls.
func (b *bench) observe(ctx context.Context, s scenario, r *result.Record, p plan) error {
	groups := []group{{name: containerd}}
	counted := r.Mode == result.Shoal && !s.kills
	switch r.Mode {
	case result.Shoal:
		groups = append(groups, group{name: shoalName})
	case other:
		groups = append(groups, group{name: b.options.otherName})
	}
	for _, n := range p.nodes {
		groups[0].processes = append(groups[0].processes, n.Containerd())
		switch r.Mode {
		case result.Shoal:
			groups[1].processes = append(groups[1].processes, n.Shoal())
		case other:
			groups[1].processes = append(groups[1].processes, b.rival.processes[n])
		}
	}
	var before float64
	if counted {
		var err error
		if before, err = origin(ctx, p.nodes); err != nil {
			return err
		}
	}
	w, err := watch(p.nodes, groups, b.lab.RegistryTraffic)
	if err != nil {
		return err
	}
	if r.Pulls, err = s.pull(ctx, b, p); err != nil {
		w.stop()
		return err
	}
	if err := w.fill(r); err != nil {
		return err
	}
	if counted {
		after, err := origin(ctx, p.nodes)
		if err != nil {
			return err
		}
		r.Origin = int64(after - before)
	}
	return nil
}

// origin is how much of blobs the nodes' Shoal took from registries so far.
func origin(ctx context.Context, nodes []*lab.Node) (sum float64, err error) {
	for _, n := range nodes {
		m, err := n.Metrics(ctx)
		if err != nil {
			return 0, err
		}
		sum += m[`shoal_swarm_received_bytes_total{source="origin"}`]
	}
	return sum, nil
}

// remove takes images off all nodes.
func (b *bench) remove(ctx context.Context, nodes []*lab.Node, images ...lab.Image) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error {
			for _, img := range images {
				has, err := n.Has(ctx, img.Ref)
				if err == nil && has {
					err = n.Remove(ctx, img.Ref)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
