package main

import (
	"sync"
	"time"

	"github.com/shoal-dev/shoal/benchmarks/result"
	"github.com/shoal-dev/shoal/e2e/lab"
)

// sampleEvery is the distance between two looks at links and memory.
const sampleEvery = 500 * time.Millisecond

// watcher observes a pull: what processes use, and what goes over the links.
type watcher struct {
	nodes    []*lab.Node
	groups   []group
	start    time.Time
	cpu      lab.CPUTime
	traffic  []lab.Traffic // of each node at the beginning
	registry func() (lab.Traffic, error)
	sent     int64
	quit     chan struct{}
	done     sync.WaitGroup

	// Read after done.
	samples []result.Sample
	err     error
}

// group are the processes of one name on all nodes.
type group struct {
	name      string
	processes []*lab.Process
	before    []lab.Usage
	anon      int64 // most that any of them had
}

// watch begins to observe the nodes. Memory's peak is taken from the kernel
// where it keeps one; the part that is no page cache has to be sampled.
func watch(nodes []*lab.Node, groups []group, registry func() (lab.Traffic, error)) (*watcher, error) {
	w := &watcher{nodes: nodes, groups: groups, registry: registry, quit: make(chan struct{})}
	for i := range w.groups {
		g := &w.groups[i]
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
	}
	for _, n := range nodes {
		t, err := n.Traffic()
		if err != nil {
			return nil, err
		}
		w.traffic = append(w.traffic, t)
	}
	t, err := registry()
	if err != nil {
		return nil, err
	}
	w.sent = t.Sent
	if w.cpu, err = lab.ReadCPUTime(); err != nil {
		return nil, err
	}
	w.start = time.Now()
	w.done.Go(w.run)
	return w, nil
}

func (w *watcher) run() {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for w.err == nil {
		select {
		case <-tick.C:
			w.err = w.sample()
		case <-w.quit:
			return
		}
	}
}

func (w *watcher) sample() error {
	for i := range w.groups {
		g := &w.groups[i]
		for _, p := range g.processes {
			u, err := p.Usage()
			if err != nil {
				return err
			}
			g.anon = max(g.anon, u.Anon)
		}
	}
	s := result.Sample{Seconds: time.Since(w.start).Seconds()}
	for i, n := range w.nodes {
		t, err := n.Traffic()
		if err != nil {
			return err
		}
		s.Received = append(s.Received, t.Sub(w.traffic[i]).Received)
	}
	w.samples = append(w.samples, s)
	return nil
}

// stop ends the observation.
func (w *watcher) stop() {
	close(w.quit)
	w.done.Wait()
}

// fill writes what was observed into a record whose pulls are there.
func (w *watcher) fill(r *result.Record) error {
	cpu, err := lab.ReadCPUTime()
	if err != nil {
		return err
	}
	r.Idle = cpu.IdleSince(w.cpu)
	t, err := w.registry()
	if err != nil {
		return err
	}
	r.Sent = t.Sent - w.sent
	w.stop()
	if w.err != nil {
		return w.err
	}
	if err := w.sample(); err != nil {
		return err
	}
	place := map[string]int{} // of a node in w.nodes
	for i, n := range w.nodes {
		place[n.Name] = i
	}
	for k := range r.Pulls {
		p := &r.Pulls[k]
		i := place[p.Node]
		t, err := w.nodes[i].Traffic()
		if err != nil {
			return err
		}
		t = t.Sub(w.traffic[i])
		p.Sent, p.Received = t.Sent, t.Received
	}
	for _, s := range w.samples {
		of := result.Sample{Seconds: s.Seconds}
		for _, p := range r.Pulls {
			of.Received = append(of.Received, s.Received[place[p.Node]])
		}
		r.Progress = append(r.Progress, of)
	}
	for _, g := range w.groups {
		sum := result.Processes{Name: g.name, PeakHeap: g.anon}
		for i, p := range g.processes {
			u, err := p.Usage()
			if err != nil {
				return err
			}
			sum.CPU += (u.CPU - g.before[i].CPU).Seconds()
			sum.PeakRSS = max(sum.PeakRSS, u.PeakRSS)
			if g.name == containerd { // its files are in memory
				sum.Written += max(0, u.Written-g.before[i].Written)
			} else {
				sum.Written += max(0, u.Disk-g.before[i].Disk)
			}
		}
		sum.CPUPerGiB = sum.CPU / (float64(r.Landed()) / (1 << 30))
		r.Processes = append(r.Processes, sum)
	}
	return nil
}
