package result

import (
	"cmp"
	"slices"
)

// Perfect is the mode that the others are measured against: every node pulls
// from a registry whose link is not shaped, so that nothing but the node's own
// link limits it, and the machine.
const Perfect = "perfect"

// Shoal is the mode of this project.
const Shoal = "shoal"

// Key is what has to be equal for rounds to be comparable.
type Key struct {
	Scenario     string
	Image        string
	Nodes        int
	Link         int64
	RegistryLink int64
	Mode         string
}

// Key of a record.
func (r Record) Key() Key {
	return Key{r.Scenario, r.Image.Name, r.Nodes, r.Link, r.RegistryLink, r.Mode}
}

// Summary is what the rounds of one key come to. Times are those of the slowest
// node, and a figure over rounds is their median.
type Summary struct {
	Key
	Rounds int
	// Slowest, and the least and greatest of all rounds, in seconds.
	Slowest, Least, Greatest float64
	// Fetch is when the slowest node had all layers; 0: not known.
	Fetch float64
	// Bound in seconds; 0: nothing was shaped.
	Bound float64
	// Perfect is Slowest of mode perfect, of the same rounds; 0: there is none.
	Perfect float64
	// Copies with packet headers, Origin without; negative: not counted.
	Copies, Origin float64
	Idle           float64
	Processes      []Processes
}

// OverBound is Slowest ÷ Bound; 0: there is no bound.
func (s Summary) OverBound() float64 { return ratio(s.Slowest, s.Bound) }

// OverPerfect is Slowest ÷ Perfect; 0: perfect was not measured.
func (s Summary) OverPerfect() float64 { return ratio(s.Slowest, s.Perfect) }

func ratio(a, b float64) float64 {
	if b == 0 {
		return 0
	}
	return a / b
}

// Summarize brings rounds together, in the order in which their keys appear.
func Summarize(all []Record) []Summary {
	byKey := map[Key][]Record{}
	var order []Key
	for _, r := range all {
		k := r.Key()
		if byKey[k] == nil {
			order = append(order, k)
		}
		byKey[k] = append(byKey[k], r)
	}
	var out []Summary
	for _, k := range order {
		rs := byKey[k]
		s := Summary{Key: k, Rounds: len(rs), Slowest: over(rs, Record.Slowest)}
		s.Fetch = over(rs, Record.SlowestFetch)
		s.Least = slices.MinFunc(rs, bySlowest).Slowest()
		s.Greatest = slices.MaxFunc(rs, bySlowest).Slowest()
		s.Bound = over(rs, func(r Record) float64 { return r.Bound })
		s.Copies, s.Origin = over(rs, Record.Copies), over(rs, Record.OriginCopies)
		s.Idle = over(rs, func(r Record) float64 { return r.Idle })
		s.Processes = processes(rs)
		k.Mode = Perfect
		s.Perfect = over(byKey[k], Record.Slowest)
		out = append(out, s)
	}
	return out
}

func bySlowest(a, b Record) int { return cmp.Compare(a.Slowest(), b.Slowest()) }

// over is the median of a figure over rounds.
func over(rs []Record, f func(Record) float64) float64 {
	var v []float64
	for _, r := range rs {
		v = append(v, f(r))
	}
	return Median(v)
}

func processes(rs []Record) []Processes {
	var out []Processes
	for _, p := range rs[0].Processes {
		of := func(f func(Processes) float64) float64 {
			return over(rs, func(r Record) float64 { q, _ := r.Process(p.Name); return f(q) })
		}
		out = append(out, Processes{
			Name:      p.Name,
			CPU:       of(func(p Processes) float64 { return p.CPU }),
			CPUPerGiB: of(func(p Processes) float64 { return p.CPUPerGiB }),
			PeakRSS:   int64(of(func(p Processes) float64 { return float64(p.PeakRSS) })),
			PeakHeap:  int64(of(func(p Processes) float64 { return float64(p.PeakHeap) })),
			Written:   int64(of(func(p Processes) float64 { return float64(p.Written) })),
		})
	}
	return out
}
