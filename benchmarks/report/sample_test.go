package report_test

import (
	"fmt"
	"math"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// nasty is a rival's name with what Markdown, XML, CSV and file systems take
// apart.
const nasty = `a|b,"<c>&../d`

// sample is a run: cold with 4 and 8 nodes in four modes and three rounds, and
// warm with 8 in one.
func sample() []result.Record {
	var all []result.Record
	for _, nodes := range []int{4, 8} {
		for round := 1; round <= 3; round++ {
			for i, mode := range []string{"direct", result.Perfect, result.Shoal, nasty} {
				all = append(all, made("cold", mode, round, nodes, nodes, []float64{80 * float64(nodes), 83, 86, 97}[i],
					[]float64{float64(nodes), float64(nodes), 1.04, 1.3}[i]))
			}
		}
	}
	for round := 1; round <= 3; round++ {
		all = append(all, made("warm", result.Shoal, round, 8, 7, 84, 0.002))
	}
	return all
}

// made is a record whose slowest of pullers took about so long.
func made(scenario, mode string, round, nodes, pullers int, slowest, copies float64) result.Record {
	const size = 1e9
	r := result.Record{
		Scenario: scenario, Mode: mode, Round: round,
		Image: result.Image{Name: "1GB-4", Bytes: size, Layers: 4},
		Nodes: nodes, Link: 100e6, RegistryLink: 100e6, Bound: 80, Moved: size,
		Sent: int64(1.03 * copies * size), Origin: -1, Idle: 0.31,
		Processes: []result.Processes{
			{Name: "containerd", CPU: 30, CPUPerGiB: 4.25, PeakRSS: 90 << 20, PeakHeap: 60 << 20, Written: int64(2.5 * size * float64(pullers))},
		},
	}
	if mode == result.Shoal {
		r.Origin = int64(copies * size)
		r.Processes = append(r.Processes, result.Processes{
			Name: "shoal", CPU: 25, CPUPerGiB: 3.5, PeakRSS: 128 << 20, PeakHeap: 64 << 20, Written: int64(3.125 * size * float64(pullers)),
		})
	}
	slowest += float64(round-2) * 0.5
	for i := range pullers {
		took := slowest - 0.4*float64((i*5)%pullers)
		if i == 0 {
			took = slowest
		}
		r.Pulls = append(r.Pulls, result.Pull{
			Node: fmt.Sprintf("n%d", i+1), Seconds: took, Fetch: took - 3, Sent: size, Received: 1.04 * size,
		})
	}
	for t := 0.5; t < slowest; t += 0.5 {
		s := result.Sample{Seconds: t}
		for _, p := range r.Pulls {
			s.Received = append(s.Received, int64(1.04*size*math.Min(1, t/p.Fetch)))
		}
		r.Progress = append(r.Progress, s)
	}
	return r
}
