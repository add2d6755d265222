package main

import (
	"slices"
	"time"
)

// result is what one simulation gave.
type result struct {
	Scenario string  `json:"scenario"`
	Nodes    int     `json:"nodes"`
	Seed     uint64  `json:"seed"`
	Size     int64   `json:"size"`
	Pieces   int     `json:"pieces"`
	Rate     float64 `json:"rate"` // bytes per second
	// Bound of the whole distribution in seconds, and Floor: what store and
	// forward of whole pieces adds to it, as a factor.
	Bound float64 `json:"bound"`
	Floor float64 `json:"floor"`
	// Last, P99 and Median are times divided by the bound: Last of the last
	// node by the bound of all, the others of the nodes by their own.
	Last   float64 `json:"last"`
	P99    float64 `json:"p99"`
	Median float64 `json:"median"`
	// Copies is what left the registry, in blobs.
	Copies float64 `json:"copies"`
	// Wasted is what arrived and was not needed, in blobs per node.
	Wasted float64 `json:"wasted"`
	// Lag is how far the readable beginning was behind what had been
	// received, as a share of the blob: the mean over time and nodes.
	Lag float64 `json:"lag"`
	// Messages to (Up) and from (Down) the tracker per second.
	UpPeak   float64 `json:"upPeak"`
	UpMean   float64 `json:"upMean"`
	DownPeak float64 `json:"downPeak"`
	DownMean float64 `json:"downMean"`
	// DownBytes is what the tracker sent, in bytes over the whole time.
	UpBytes   int64 `json:"upBytes"`
	DownBytes int64 `json:"downBytes"`
	// Connections of a node with others: the most that one had, and the mean
	// of what each had at most.
	ConnsMax  int     `json:"connsMax"`
	ConnsMean float64 `json:"connsMean"`
	Events    int64   `json:"events"`
	// TrackerSeconds and Seconds are of the machine that simulated: spent in
	// the tracker's state machine, and in all. They differ from run to run.
	TrackerSeconds float64 `json:"trackerSeconds"`
	Seconds        float64 `json:"seconds"`
}

func (w *world) result(took time.Duration) result {
	r := result{
		Scenario: w.cfg.Scenario, Nodes: w.cfg.Nodes, Seed: w.cfg.Seed,
		Size: w.geo.Size, Pieces: w.geo.NumPieces(), Rate: w.cfg.Rate,
		Bound: w.bound(nil), Floor: floor(w.cfg.Nodes, w.geo),
		Copies: float64(w.registry.link.sent) / float64(w.geo.Size),
		Events: w.events, TrackerSeconds: w.tracker.cpu.Seconds(), Seconds: took.Seconds(),
	}
	var ratios []float64
	var wasted, lag, conns float64
	var last moment
	for _, n := range w.nodes {
		if n.joined < 0 || n.dead && n.done < 0 {
			continue
		}
		took := (n.done - n.joined).seconds()
		last = max(last, n.done-n.joined)
		ratios = append(ratios, took/w.bound(n))
		wasted += float64(n.link.received-n.bytes) / float64(w.geo.Size)
		lag += n.lag / took / float64(w.geo.Size)
		conns += float64(n.maxConns)
		r.ConnsMax = max(r.ConnsMax, n.maxConns)
	}
	slices.Sort(ratios)
	n := len(ratios)
	r.Last = last.seconds() / r.Bound
	r.P99, r.Median = ratios[(n*99-1)/100], ratios[(n-1)/2]
	r.Wasted, r.Lag, r.ConnsMean = wasted/float64(n), lag/float64(n), conns/float64(n)
	over := w.now.seconds()
	r.UpPeak, r.UpMean = w.tracker.up.rates(over)
	r.DownPeak, r.DownMean = w.tracker.down.rates(over)
	r.UpBytes, r.DownBytes = w.tracker.up.bytes, w.tracker.down.bytes
	return r
}

// rates are the most in one second, and the mean.
func (t *traffic) rates(seconds float64) (peak, mean float64) {
	sum := 0
	for _, n := range t.messages {
		peak = max(peak, float64(n))
		sum += n
	}
	return peak, float64(sum) / seconds
}
