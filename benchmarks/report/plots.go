package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// plots are all that the records have something for, in the order of their kinds.
func plots(all []result.Record) []figure {
	var modes []string
	for _, g := range groups(all, modeOf) {
		modes = append(modes, g.key)
	}
	d := drawer{styles: stylesOf(modes), files: map[string]bool{}}
	settings := groups(all, settingOf)
	scaling := groups(all, func(r result.Record) setting {
		k := settingOf(r)
		k.Nodes = 0
		return k
	})
	var out []figure
	add := func(f figure) {
		if len(f.lines) > 0 {
			out = append(out, f)
		}
	}
	for _, g := range settings {
		add(d.timeByNode(g))
	}
	for _, g := range scaling {
		add(d.byNodes(g, "bound", "time of the slowest node by number of nodes", "slowest node ÷ bound",
			"Where the links allow nothing faster, the ratio is 1.", result.Summary.OverBound,
			func(s result.Summary) bool { return s.Slowest > 0 && s.Bound > 0 }))
	}
	for _, g := range scaling {
		add(d.byNodes(g, "copies", "copies that left the registry by number of nodes", "copies",
			"Counted at the registry's network interface.",
			func(s result.Summary) float64 { return s.Copies },
			func(s result.Summary) bool { return s.Landed > 0 }))
	}
	for _, g := range settings {
		add(d.progress(g))
	}
	return out
}

// drawer makes figures of records.
type drawer struct {
	styles map[string]style
	files  map[string]bool // the names that are taken
}

// timeByNode has, of each mode, the times of the first to the last node.
func (d *drawer) timeByNode(g group[setting]) figure {
	f := figure{
		title: describe(g.key) + ": time by node",
		caption: "Nodes in the order in which they finished, so the last is the slowest; " +
			"each point is the median of the rounds.",
		x: "nodes that are done", y: "seconds", whole: true,
	}
	for _, m := range groups(g.records, modeOf) {
		var ranks [][]float64 // of the first node, of the second..., in all rounds
		for _, r := range m.records {
			pulls := slices.SortedFunc(slices.Values(r.Pulls), func(a, b result.Pull) int { return cmp.Compare(a.Seconds, b.Seconds) })
			for i, p := range pulls {
				if i == len(ranks) {
					ranks = append(ranks, nil)
				}
				ranks[i] = append(ranks[i], p.Seconds)
			}
		}
		var points plotter.XYs
		for i, times := range ranks {
			points = append(points, plotter.XY{X: float64(i + 1), Y: result.Median(times)})
		}
		f.add(line{name: m.key, style: d.styles[m.key], points: points, marks: true})
	}
	if len(f.lines) == 0 {
		return f
	}
	if bound := boundOf(g.records); bound > 0 {
		f.level("bound", bound)
	}
	f.file = d.file("time", g.key)
	return f
}

// byNodes has a figure of each mode against the number of nodes; nothing if only
// one number was measured.
func (d *drawer) byNodes(g group[setting], kind, title, axis, caption string, figureOf func(result.Summary) float64, known func(result.Summary) bool) figure {
	f := figure{title: describe(g.key) + ": " + title, caption: caption, x: "nodes", y: axis, whole: true}
	var counts []int
	for _, m := range groups(g.records, modeOf) {
		var points plotter.XYs
		for _, s := range result.Summarize(m.records) {
			if known(s) {
				points = append(points, plotter.XY{X: float64(s.Nodes), Y: figureOf(s)})
				counts = append(counts, s.Nodes)
			}
		}
		slices.SortFunc(points, func(a, b plotter.XY) int { return cmp.Compare(a.X, b.X) })
		f.add(line{name: m.key, style: d.styles[m.key], points: points, marks: true})
	}
	slices.Sort(counts)
	counts = slices.Compact(counts)
	if len(counts) < 2 {
		return figure{}
	}
	for _, n := range counts {
		f.ticks = append(f.ticks, plot.Tick{Value: float64(n), Label: strconv.Itoa(n)})
	}
	f.level("1", 1)
	f.file = d.file(kind, g.key)
	return f
}

// progress has, of each mode, how much the nodes had over time.
func (d *drawer) progress(g group[setting]) figure {
	f := figure{
		title: describe(g.key) + ": progress",
		caption: "What a node had received over its link, the mean of all nodes, as a share of the bytes that it lacked; " +
			"of the last round that was watched. Headers of packets, and what arrived twice, are above 100 %.",
		x: "seconds", y: "received, %",
	}
	for _, m := range groups(g.records, modeOf) {
		var points plotter.XYs
		for _, r := range slices.Backward(m.records) {
			if points = shares(r); len(points) > 0 {
				break
			}
		}
		f.add(line{name: m.key, style: d.styles[m.key], points: points})
	}
	if len(f.lines) == 0 {
		return f
	}
	if bound := boundOf(g.records); bound > 0 {
		f.lines = append(f.lines, line{
			name: "bound", style: yardstick, points: plotter.XYs{{X: 0, Y: 0}, {X: bound, Y: 100}},
		})
	}
	// One that takes many times as long would leave the others no room.
	const far, until = 3, 2
	first, last := math.Inf(1), 0.0
	for _, l := range f.lines {
		end := l.points[len(l.points)-1].X
		first, last = min(first, end), max(last, end)
	}
	if last > far*first && first > 0 {
		f.until = until * first
		f.caption += fmt.Sprintf(" The slowest goes on until %s.", seconds(last))
	}
	f.file = d.file("progress", g.key)
	return f
}

// shares are the progress of a record in percent; none if it was not watched.
func shares(r result.Record) plotter.XYs {
	// More points than this are no better to look at.
	const most = 250
	if r.Moved <= 0 {
		return nil
	}
	var points plotter.XYs
	for _, s := range r.Progress {
		if len(s.Received) == 0 {
			continue
		}
		var sum float64
		for _, n := range s.Received {
			sum += float64(n)
		}
		mean := sum / float64(len(s.Received))
		points = append(points, plotter.XY{X: s.Seconds, Y: 100 * mean / float64(r.Moved)})
	}
	if len(points) == 0 {
		return nil
	}
	if points[0].X > 0 {
		points = slices.Insert(points, 0, plotter.XY{})
	}
	step := (len(points) + most - 1) / most
	var thin plotter.XYs
	for i, p := range points {
		if i%step == 0 || i == len(points)-1 {
			thin = append(thin, p)
		}
	}
	return thin
}

// boundOf a setting is the greatest of its modes'. Perfect's is less if the
// registry's link is the slower one, because it is not shaped for it.
func boundOf(rs []result.Record) float64 {
	var bound float64
	for _, s := range result.Summarize(rs) {
		bound = max(bound, s.Bound)
	}
	return bound
}

// describe a setting; its nodes are left out if they are 0.
func describe(k setting) string {
	s := fmt.Sprintf("%s, %s, ", k.Scenario, k.Image)
	if k.Nodes > 0 {
		s += fmt.Sprintf("%d nodes, ", k.Nodes)
	}
	return s + links(k)
}

// file makes a name that no other figure has, safe in every file system and URL.
func (d *drawer) file(kind string, k setting) string {
	parts := []string{kind, k.Scenario, k.Image}
	if k.Nodes > 0 {
		parts = append(parts, strconv.Itoa(k.Nodes))
	}
	base := slug(strings.Join(parts, " "))
	name := base + ".svg"
	for n := 2; d.files[name]; n++ { // settings may differ in their links alone
		name = fmt.Sprintf("%s_%d.svg", base, n)
	}
	d.files[name] = true
	return name
}

// slug is s in lower case letters of English, digits and single hyphens.
func slug(s string) string {
	const most = 100
	words := strings.FieldsFunc(strings.ToLower(s), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	s = strings.Join(words, "-")
	return s[:min(len(s), most)]
}

// span is the least and the greatest of all lines in a direction.
func span(lines []line, of func(plotter.XY) float64) (least, greatest float64) {
	least, greatest = math.Inf(1), math.Inf(-1)
	for _, l := range lines {
		for _, p := range l.points {
			least, greatest = min(least, of(p)), max(greatest, of(p))
		}
	}
	return least, greatest
}
