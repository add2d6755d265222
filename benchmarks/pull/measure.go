package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// mode is a way to pull.
type mode string

const (
	direct  mode = "direct"
	perfect mode = "perfect"
	cold    mode = "cold"
	warm    mode = "warm"
)

var allModes = []mode{direct, perfect, cold, warm}

func (m mode) usesShoal() bool { return m == cold || m == warm }

// bench runs pulls in a laboratory.
type bench struct {
	lab     *lab.Lab
	options options
	images  uint64
	perfect float64 // seconds of the slowest node in the latest such pull; 0: none yet
}

// measure makes an image, pulls it in a mode on all nodes at once, and removes
// it.
func (b *bench) measure(ctx context.Context, m mode, round int) (r result, err error) {
	b.images++
	img, err := b.lab.Push(ctx, lab.ImageSpec{
		Repository: fmt.Sprintf("bench/%s-%d", m, round+1), Tag: "v1",
		Size: b.options.size, Layers: b.options.layers, Seed: b.images,
	})
	if err != nil {
		return result{}, err
	}
	nodes := b.lab.Nodes()
	for _, n := range nodes {
		var mirrors []string
		if m.usesShoal() {
			mirrors = []string{n.Mirror()}
		}
		if err := n.SetMirrors(mirrors...); err != nil {
			return result{}, err
		}
	}
	pullers := nodes
	if m == perfect {
		if err := b.lab.SetRegistryRate(0); err != nil {
			return result{}, err
		}
		defer func() { err = errors.Join(err, b.lab.SetRegistryRate(b.options.registryRate)) }()
	}
	if m == warm {
		if err := b.warmUp(ctx, nodes[0], img); err != nil {
			return result{}, err
		}
		pullers = nodes[1:]
	}
	if r, err = b.pull(ctx, m, img, nodes, pullers); err != nil {
		return result{}, err
	}
	r.Mode, r.Round = m, round+1
	if m == perfect {
		b.perfect = r.slowest()
	} else {
		r.Perfect = b.perfect
	}
	for _, n := range nodes {
		if err := n.Remove(ctx, img.Ref); err != nil {
			return result{}, err
		}
	}
	return r, nil
}

// warmUp gives the image to one node and waits until its Shoal seeds it from
// containerd's store. An earlier image may be in Shoal's cache: it stays there
// if containerd dropped it first.
func (b *bench) warmUp(ctx context.Context, n *lab.Node, img lab.Image) error {
	before, err := n.Metrics(ctx)
	if err != nil {
		return fmt.Errorf("look at the holder: %w", err)
	}
	if _, err := n.Pull(ctx, img.Ref); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
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
}

// pull pulls on all pullers at once, watching the processes of all nodes.
func (b *bench) pull(ctx context.Context, m mode, img lab.Image, nodes, pullers []*lab.Node) (result, error) {
	o := b.options
	slower := o.rate
	if m != perfect && o.registryRate != 0 && (slower == 0 || o.registryRate < slower) {
		slower = o.registryRate
	}
	r := result{Nodes: len(nodes), Layers: o.layers, Bytes: img.Size(), Bound: seconds(slower.Time(img.Size()))}
	w, err := watch(nodes)
	if err != nil {
		return r, err
	}
	traffic, err := b.lab.RegistryTraffic()
	if err != nil {
		return r, err
	}
	cpu, err := lab.ReadCPUTime()
	if err != nil {
		return r, err
	}
	r.Pulls = make([]pullTime, len(pullers))
	g, gctx := errgroup.WithContext(ctx)
	for i, n := range pullers {
		g.Go(func() error {
			took, err := n.Pull(gctx, img.Ref)
			r.Pulls[i] = pullTime{Node: n.Name, Seconds: seconds(took)}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		w.stop()
		return r, err
	}
	cpuAfter, err := lab.ReadCPUTime()
	if err != nil {
		return r, err
	}
	trafficAfter, err := b.lab.RegistryTraffic()
	if err != nil {
		return r, err
	}
	if r.Processes, err = w.stop(); err != nil {
		return r, err
	}
	delivered := float64(img.Size()) * float64(len(pullers)) / (1 << 30)
	for i := range r.Processes {
		r.Processes[i].CPUPerGiB = r.Processes[i].CPU / delivered
	}
	r.Idle = cpuAfter.IdleSince(cpu)
	r.Copies = float64(trafficAfter.Sub(traffic).Sent) / float64(img.Size())
	return r, nil
}

func seconds(d time.Duration) float64 { return d.Seconds() }

// watcher samples the memory of processes until it is stopped.
type watcher struct {
	groups []watched
	quit   chan struct{}
	done   sync.WaitGroup
	err    error // read after done
}

// watched are the processes of one name on all nodes.
type watched struct {
	name      string
	processes []*lab.Process
	before    []lab.Usage
	anon      int64 // largest seen of any of them
}

// watch begins. Memory's peak is taken from the kernel where it keeps one; the
// part that is no page cache has to be sampled.
func watch(nodes []*lab.Node) (*watcher, error) {
	const interval = 200 * time.Millisecond
	w := &watcher{quit: make(chan struct{})}
	shoal, containerd := watched{name: "shoal"}, watched{name: "containerd"}
	for _, n := range nodes {
		containerd.processes = append(containerd.processes, n.Containerd())
		if p := n.Shoal(); p != nil {
			shoal.processes = append(shoal.processes, p)
		}
	}
	for _, g := range []watched{shoal, containerd} {
		if len(g.processes) == 0 {
			continue
		}
		for _, p := range g.processes {
			if err := p.ResetPeak(); err != nil {
				return nil, err
			}
			u, err := p.Usage()
			if err != nil {
				return nil, err
			}
			g.before = append(g.before, u)
		}
		w.groups = append(w.groups, g)
	}
	w.done.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.sample()
			case <-w.quit:
				return
			}
		}
	})
	return w, nil
}

func (w *watcher) sample() {
	for i := range w.groups {
		for _, p := range w.groups[i].processes {
			u, err := p.Usage()
			if err != nil {
				w.err = err
				return
			}
			w.groups[i].anon = max(w.groups[i].anon, u.Anon)
		}
	}
}

// stop ends the watching and adds up.
func (w *watcher) stop() ([]processes, error) {
	close(w.quit)
	w.done.Wait()
	w.sample()
	if w.err != nil {
		return nil, w.err
	}
	var all []processes
	for _, g := range w.groups {
		sum := processes{Name: g.name, PeakHeap: g.anon}
		for i, p := range g.processes {
			u, err := p.Usage()
			if err != nil {
				return nil, err
			}
			sum.CPU += seconds(u.CPU - g.before[i].CPU)
			sum.PeakRSS = max(sum.PeakRSS, u.PeakRSS)
		}
		all = append(all, sum)
	}
	return all, nil
}
