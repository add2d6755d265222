package result

import "slices"

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
// node, and a figure over rounds is their median: of the rounds that know it,
// and for times of those in which a node pulled to the end.
type Summary struct {
	Key
	// Rounds are all of them.
	Rounds int
	// Slowest, and the least and greatest of all rounds, in seconds; 0: nobody
	// pulled to the end.
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
	// Landed is Record.Landed.
	Landed int64
	// Processes by name, in the order in which the rounds name them; of the
	// rounds in which they ran.
	Processes []Processes
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
		out = append(out, summarize(k, byKey))
	}
	return out
}

func summarize(k Key, byKey map[Key][]Record) Summary {
	rs := byKey[k]
	s := Summary{Key: k, Rounds: len(rs)}
	s.Slowest = over(rs, Record.Slowest, positive)
	s.Fetch = over(rs, Record.SlowestFetch, positive)
	s.Bound = over(rs, func(r Record) float64 { return r.Bound }, positive)
	s.Copies = over(rs, Record.Copies, known)
	s.Idle = over(rs, func(r Record) float64 { return r.Idle }, known)
	s.Landed = int64(over(rs, func(r Record) float64 { return float64(r.Landed()) }, positive))
	s.Processes = processes(rs)
	s.Origin = -1
	if slices.ContainsFunc(rs, func(r Record) bool { return known(r.OriginCopies()) }) {
		s.Origin = over(rs, Record.OriginCopies, known)
	}
	for _, r := range rs {
		t := r.Slowest()
		if positive(t) && (s.Least == 0 || t < s.Least) {
			s.Least = t
		}
		s.Greatest = max(s.Greatest, t)
	}
	k.Mode = Perfect
	var perfect []Record
	for _, p := range byKey[k] {
		if slices.ContainsFunc(rs, func(r Record) bool { return r.Round == p.Round }) {
			perfect = append(perfect, p)
		}
	}
	s.Perfect = over(perfect, Record.Slowest, positive)
	return s
}

// What a figure is if it is known: a time is positive, a count not negative.
func positive(v float64) bool { return v > 0 }
func known(v float64) bool    { return v >= 0 }

// over is the median of a figure over those rounds whose figure is accepted; 0
// of none.
func over(rs []Record, f func(Record) float64, accept func(float64) bool) float64 {
	var v []float64
	for _, r := range rs {
		if x := f(r); accept(x) {
			v = append(v, x)
		}
	}
	return Median(v)
}

func processes(rs []Record) []Processes {
	var names []string
	for _, r := range rs {
		for _, p := range r.Processes {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
		}
	}
	var out []Processes
	for _, name := range names {
		of := func(f func(Processes) float64) float64 {
			return over(rs, func(r Record) float64 {
				if p, ok := r.Process(name); ok {
					return f(p)
				}
				return -1
			}, known)
		}
		out = append(out, Processes{
			Name:      name,
			CPU:       of(func(p Processes) float64 { return p.CPU }),
			CPUPerGiB: of(func(p Processes) float64 { return p.CPUPerGiB }),
			PeakRSS:   int64(of(func(p Processes) float64 { return float64(p.PeakRSS) })),
			PeakHeap:  int64(of(func(p Processes) float64 { return float64(p.PeakHeap) })),
			Written:   int64(of(func(p Processes) float64 { return float64(p.Written) })),
		})
	}
	return out
}
