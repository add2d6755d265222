// Package result is what a benchmark of pulls has measured, and the arithmetic
// on it. It knows nothing of where it was measured: the laboratory of
// benchmarks/pull, or a real cluster.
//
// A [Record] is one measured pull of one image by all nodes that take part. A
// run is a list of them, as JSON lines ([Write], [Read]), so that a run that was
// interrupted leaves what it finished. [Summarize] brings the rounds of a run
// together.
package result

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Record is one measured pull.
type Record struct {
	// Scenario is what happened (cold, warm, ...), Mode who served (perfect,
	// direct, shoal, or a rival's name).
	Scenario string `json:"scenario"`
	Mode     string `json:"mode"`
	// Round counts from 1.
	Round int   `json:"round"`
	Image Image `json:"image"`
	// Nodes is how many there are, whether they pull or not.
	Nodes int `json:"nodes"`
	// Link and RegistryLink are speeds in bits per second; 0 is unshaped. They
	// are those of the run, also in mode perfect, where the registry's link
	// is not shaped.
	Link         int64 `json:"linkBits"`
	RegistryLink int64 `json:"registryLinkBits"`
	// Bound is bytes to move ÷ speed of the slower link that they have to pass,
	// in seconds; 0 if nothing is shaped.
	Bound float64 `json:"boundSeconds"`
	// Moved is how many bytes of the image a puller did not have.
	Moved int64 `json:"movedBytes"`
	// Pulls are the nodes that pulled to the end.
	Pulls []Pull `json:"pulls"`
	// Sent is what left the registry's interface, in bytes: with what TCP sent
	// again, and with the headers that the interface sees.
	Sent int64 `json:"registrySentBytes"`
	// Origin is how much of the image the nodes' own counters say that they
	// took from the registry, in bytes; negative: nobody counts.
	Origin int64 `json:"originBytes"`
	// Idle is the share of the computer's processor time that nobody used, of
	// 1.
	Idle      float64     `json:"cpuIdle"`
	Processes []Processes `json:"processes"`
	// Progress is how much each node had received over its link, over time.
	Progress []Sample `json:"progress,omitempty"`
}

// Image says what was pulled.
type Image struct {
	// Name is the preset or the form that was asked for, like 1GB-4.
	Name   string `json:"name"`
	Bytes  int64  `json:"bytes"`
	Layers int    `json:"layers"`
	// Compressible content was compressed by the image's maker; Bytes are
	// those that move.
	Compressible bool `json:"compressible,omitempty"`
}

// Pull is one node's.
type Pull struct {
	Node string `json:"node"`
	// Seconds from the request to the end, unpacking included; Fetch until the
	// last layer was there, 0 if that is not known.
	Seconds float64 `json:"seconds"`
	Fetch   float64 `json:"fetchSeconds,omitempty"`
	// Sent and Received over the node's link from the beginning of the measured
	// pull to its end on all nodes, in bytes.
	Sent     int64 `json:"sentBytes"`
	Received int64 `json:"receivedBytes"`
}

// Processes are those of one name on all nodes together.
type Processes struct {
	Name string `json:"name"`
	// CPU in seconds, and per GiB that landed on a node.
	CPU       float64 `json:"cpuSeconds"`
	CPUPerGiB float64 `json:"cpuSecondsPerGiB"`
	// PeakRSS of the largest of them in bytes, with mapped files; PeakHeap
	// without.
	PeakRSS  int64 `json:"peakRSSBytes"`
	PeakHeap int64 `json:"peakHeapBytes"`
	// Written by all of them, in bytes: to disk, or, where files are in
	// memory, to anything.
	Written int64 `json:"writtenBytes"`
}

// Sample is one look at all nodes.
type Sample struct {
	Seconds float64 `json:"seconds"`
	// Received since the beginning, in bytes, in the order of Record.Pulls.
	Received []int64 `json:"receivedBytes"`
}

// Slowest is the time of the last node in seconds.
func (r Record) Slowest() float64 { return r.quantile(1) }

// Fastest is the time of the first one.
func (r Record) Fastest() float64 { return r.quantile(0) }

// Median of the nodes' times.
func (r Record) Median() float64 { return r.quantile(0.5) }

// P99 is the time within which 99 of 100 nodes are done.
func (r Record) P99() float64 { return r.quantile(0.99) }

func (r Record) quantile(q float64) float64 {
	var s []float64
	for _, p := range r.Pulls {
		s = append(s, p.Seconds)
	}
	return Quantile(s, q)
}

// SlowestFetch is when the last node had the last layer; 0: not known of all of
// them.
func (r Record) SlowestFetch() float64 {
	var s float64
	for _, p := range r.Pulls {
		if p.Fetch == 0 {
			return 0
		}
		s = max(s, p.Fetch)
	}
	return s
}

// Landed is how many bytes of the image came to a node that did not have them,
// on all nodes together.
func (r Record) Landed() int64 { return r.Moved * int64(len(r.Pulls)) }

// Copies of what had to be moved that left the registry's interface.
func (r Record) Copies() float64 {
	if r.Moved == 0 {
		return 0
	}
	return float64(r.Sent) / float64(r.Moved)
}

// OriginCopies is the same without headers, by the nodes' own counters;
// negative: nobody counts.
func (r Record) OriginCopies() float64 {
	if r.Moved == 0 || r.Origin < 0 {
		return -1
	}
	return float64(r.Origin) / float64(r.Moved)
}

// Process finds the processes of a name.
func (r Record) Process(name string) (Processes, bool) {
	i := slices.IndexFunc(r.Processes, func(p Processes) bool { return p.Name == name })
	if i < 0 {
		return Processes{}, false
	}
	return r.Processes[i], true
}

// Quantile of values, by the nearest rank: the smallest value that at least
// that share of all are not above. 0 of none.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := int(float64(len(s))*q+0.9999999) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// Median of values; of an even number the mean of the two in the middle.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// Write appends a record to a run.
func Write(w io.Writer, r Record) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	return nil
}

// Read reads a run.
func Read(r io.Reader) ([]Record, error) {
	var all []Record
	d := json.NewDecoder(bufio.NewReader(r))
	for {
		var rec Record
		switch err := d.Decode(&rec); {
		case errors.Is(err, io.EOF):
			return all, nil
		case err != nil:
			return nil, fmt.Errorf("read result %d: %w", len(all)+1, err)
		}
		all = append(all, rec)
	}
}
