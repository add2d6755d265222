package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// show prints one result.
func show(w io.Writer, r result.Record, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(w).Encode(r)
	}
	_, err := io.WriteString(w, text(r))
	return err
}

// text is a result for people.
func text(r result.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s, %s, round %d: %s, %d of %d nodes pull\n",
		r.Scenario, r.Image.Name, r.Mode, r.Round, humanize.IBytes(uint64(r.Moved)), len(r.Pulls), r.Nodes)
	b.WriteString("  seconds    ")
	for _, p := range r.Pulls {
		fmt.Fprintf(&b, " %s %.2f", p.Node, p.Seconds)
	}
	fmt.Fprintf(&b, "\n  slowest     %.2f s", r.Slowest())
	if r.Bound > 0 {
		fmt.Fprintf(&b, " = %.3f × the bound of %.2f s; median %.3f ×", r.Slowest()/r.Bound, r.Bound, r.Median()/r.Bound)
	}
	if f := r.SlowestFetch(); f > 0 {
		fmt.Fprintf(&b, "\n  fetched     %.2f s, the rest is unpacking", f)
	}
	fmt.Fprintf(&b, "\n  registry    %.3f copies", r.Copies())
	if c := r.OriginCopies(); c >= 0 {
		fmt.Fprintf(&b, ", %.3f by the nodes' count", c)
	}
	b.WriteByte('\n')
	for _, p := range r.Processes {
		fmt.Fprintf(&b, "  %-11s %.2f CPU s per GiB, peak RSS %s, peak heap and buffers %s, %.2f bytes written per byte\n",
			p.Name, p.CPUPerGiB, humanize.IBytes(uint64(p.PeakRSS)), humanize.IBytes(uint64(p.PeakHeap)), float64(p.Written)/float64(r.Landed()))
	}
	fmt.Fprintf(&b, "  processors  %.0f %% idle\n", 100*r.Idle)
	return b.String()
}

// summarize prints what the rounds come to.
func summarize(w io.Writer, all []result.Record) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "\nscenario\timage\tnodes\tmode\trounds\tslowest s\tleast..greatest\t× bound\t× perfect\tcopies\tShoal CPU s/GiB\tidle\n")
	for _, s := range result.Summarize(all) {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%d\t%.2f\t%.2f..%.2f\t%s\t%s\t%.3f\t%s\t%.0f %%\n",
			s.Scenario, s.Image, s.Nodes, s.Mode, s.Rounds, s.Slowest, s.Least, s.Greatest,
			orDash(s.OverBound()), orDash(s.OverPerfect()), s.Copies, orDash(cpuOf(s, shoalName)), 100*s.Idle)
	}
	return t.Flush()
}

func cpuOf(s result.Summary, name string) float64 {
	for _, p := range s.Processes {
		if p.Name == name {
			return p.CPUPerGiB
		}
	}
	return 0
}

func orDash(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", v)
}
