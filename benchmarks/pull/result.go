package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
)

// result is one pull on all nodes. It is the program's JSON output.
type result struct {
	Mode   mode  `json:"mode"`
	Round  int   `json:"round"`
	Nodes  int   `json:"nodes"`
	Layers int   `json:"layers"`
	Bytes  int64 `json:"bytes"`
	// Bound is size ÷ link speed in seconds; 0 when nothing is shaped.
	Bound float64 `json:"boundSeconds"`
	// Perfect is what the slowest node took in the latest perfect pull of the
	// same run; 0 when there was none.
	Perfect float64 `json:"perfectSeconds,omitempty"`
	// Pulls are the nodes that pulled, unpacking included.
	Pulls []pullTime `json:"pulls"`
	// Copies of the image that left the registry, by its interface's counter.
	Copies float64 `json:"copies"`
	// Idle is the share of this machine's processor time that nobody used.
	Idle      float64     `json:"cpuIdle"`
	Processes []processes `json:"processes"`
}

type pullTime struct {
	Node    string  `json:"node"`
	Seconds float64 `json:"seconds"`
}

// processes are those of one name on all nodes together.
type processes struct {
	Name string `json:"name"`
	// CPU seconds of all of them, and per GiB that landed on a node.
	CPU       float64 `json:"cpuSeconds"`
	CPUPerGiB float64 `json:"cpuSecondsPerGiB"`
	// Bytes of the largest of them: resident with mapped files, and heap,
	// stacks and buffers alone.
	PeakRSS  int64 `json:"peakRSS"`
	PeakHeap int64 `json:"peakHeap"`
}

// slowest is the time of the last node.
func (r result) slowest() float64 {
	var s float64
	for _, p := range r.Pulls {
		s = max(s, p.Seconds)
	}
	return s
}

// median of the nodes' times.
func (r result) median() float64 {
	var s []float64
	for _, p := range r.Pulls {
		s = append(s, p.Seconds)
	}
	slices.Sort(s)
	return s[len(s)/2]
}

// text is the result for people.
func (r result) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, round %d: %s in %d layers, %d of %d nodes pull\n",
		r.Mode, r.Round, humanize.IBytes(uint64(r.Bytes)), r.Layers, len(r.Pulls), r.Nodes)
	b.WriteString("  seconds    ")
	for _, p := range r.Pulls {
		fmt.Fprintf(&b, " %s %.2f", p.Node, p.Seconds)
	}
	fmt.Fprintf(&b, "\n  slowest     %.2f s", r.slowest())
	if r.Bound > 0 {
		fmt.Fprintf(&b, " = %.3f × the bound of %.2f s; median %.3f ×", r.slowest()/r.Bound, r.Bound, r.median()/r.Bound)
	}
	if r.Perfect > 0 {
		fmt.Fprintf(&b, "\n              = %.3f × perfect", r.slowest()/r.Perfect)
	}
	fmt.Fprintf(&b, "\n  registry    %.3f copies\n", r.Copies)
	for _, p := range r.Processes {
		fmt.Fprintf(&b, "  %-11s %.2f CPU s per GiB, peak RSS %s, peak heap and buffers %s\n",
			p.Name, p.CPUPerGiB, humanize.IBytes(uint64(p.PeakRSS)), humanize.IBytes(uint64(p.PeakHeap)))
	}
	fmt.Fprintf(&b, "  processors  %.0f %% idle\n", 100*r.Idle)
	return b.String()
}
