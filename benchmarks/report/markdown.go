package report

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

const meaning = `The **bound** is the least time that the links allow: the bytes that had to be
moved ÷ the speed of the slower link that they have to pass. **Perfect** is what
the slowest node takes when the registry's link is not shaped, so that nothing
limits a node but its own link and the machine; ratios to it are to the same
rounds. **Copies** are how often the bytes that had to be moved left the registry:
by the counter of its network interface, which includes what TCP had to send again,
and, where the network card cuts packets (as in the laboratory), few of the packets'
headers; and as payload, by the nodes' own counters, if they count. A time is that of the
slowest node, from the request to the unpacked image. Of several rounds it is the
median, with the least and the greatest in parentheses, and so is every other figure
without them.`

const costs = `CPU time is that of all processes of a name on all nodes, per GiB that landed on
a node; RSS, with mapped files, and heap are the greatest of one process. Written
are bytes per byte of the image that landed on a node: those that went to files on
disk, and, of containerd, whose files are in memory in the laboratory, all that it
wrote, which is to files.`

// nothing stands for a figure that is not known.
const nothing = "—"

// markdown is report.md.
func markdown(title, command string, all []result.Record, plots []figure) []byte {
	var b bytes.Buffer
	fence := "```"
	for strings.Contains(command, fence) {
		fence += "`"
	}
	fmt.Fprintf(&b, "# %s\n\n%s\n%s\n%s\n\n%s\n\n%s\n\n", text(title), fence, strings.Trim(command, "\n"), fence, meaning, costs)
	b.WriteString("The figures of every node are in [results.csv](results.csv), the records as they were\nmeasured in [results.jsonl](results.jsonl).\n")
	images(&b, all)
	for _, g := range groups(all, scenarioOf) {
		s := result.Summarize(g.records)
		fmt.Fprintf(&b, "\n## Scenario %s\n\n", text(g.key))
		times(&b, g.records, s)
		b.WriteString("\n")
		processes(&b, s)
	}
	if len(plots) > 0 {
		b.WriteString("\n## Plots\n")
	}
	for _, p := range plots {
		fmt.Fprintf(&b, "\n![%s](%s)\n\n*%s*\n", text(p.title), p.file, text(p.caption))
	}
	b.WriteString("\n## Round by round\n\n")
	rounds(&b, all)
	return b.Bytes()
}

// images lists what was pulled, each name once.
func images(b *bytes.Buffer, all []result.Record) {
	b.WriteString("\n## Images\n\n")
	row(b, "image", "size", "layers", "content")
	row(b, "---", "---:", "---:", "---")
	for _, g := range groups(all, func(r result.Record) string { return r.Image.Name }) {
		img := g.records[0].Image
		least, greatest := img.Bytes, img.Bytes
		for _, r := range g.records {
			least, greatest = min(least, r.Image.Bytes), max(greatest, r.Image.Bytes)
		}
		bytes := size(least)
		if s := size(greatest); s != bytes {
			bytes += " to " + s
		}
		content := "random"
		if img.Compressible {
			content = "compressible"
		}
		row(b, text(img.Name), bytes, strconv.Itoa(img.Layers), content)
	}
}

// times is a scenario's table of times and copies.
func times(b *bytes.Buffer, rs []result.Record, summaries []result.Summary) {
	row(b, "image", "nodes", "pulling", "to move", "links", "mode", "rounds", "slowest node", "× bound", "× perfect",
		"copies", "copies, payload", "fetch", "unpacking after it", "CPU idle")
	row(b, "---", "---:", "---:", "---:", "---", "---", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:")
	byKey := groups(rs, result.Record.Key)
	for i, s := range summaries {
		rs := byKey[i].records // both are in the order of their keys
		fewest, most := len(rs[0].Pulls), len(rs[0].Pulls)
		for _, r := range rs {
			fewest, most = min(fewest, len(r.Pulls)), max(most, len(r.Pulls))
		}
		pulling := strconv.Itoa(fewest)
		if most > fewest {
			pulling += " to " + strconv.Itoa(most)
		}
		slowest := seconds(s.Slowest)
		if s.Rounds > 1 && s.Slowest > 0 {
			slowest += fmt.Sprintf(" (%s to %s)", seconds(s.Least), seconds(s.Greatest))
		}
		fetch, unpack := nothing, nothing
		if s.Fetch > 0 && s.Fetch <= s.Slowest {
			fetch, unpack = seconds(s.Fetch), seconds(s.Slowest-s.Fetch)
		}
		row(b, text(s.Image), strconv.Itoa(s.Nodes), pulling, size(rs[0].Moved), links(s.Key), text(s.Mode), strconv.Itoa(s.Rounds),
			slowest, times3(s.OverBound()), times3(s.OverPerfect()), copies(s.Copies), copies(s.Origin), fetch, unpack, percent(s.Idle))
	}
}

// processes is a scenario's table of what the processes used.
func processes(b *bytes.Buffer, summaries []result.Summary) {
	row(b, "image", "nodes", "links", "mode", "processes", "CPU s/GiB", "peak RSS", "peak heap", "written per byte of image")
	row(b, "---", "---:", "---", "---", "---", "---:", "---:", "---:", "---:")
	for _, s := range summaries {
		for _, p := range s.Processes {
			written := nothing
			if p.Written > 0 && s.Landed > 0 {
				written = fmt.Sprintf("%.2f", float64(p.Written)/float64(s.Landed))
			}
			row(b, text(s.Image), strconv.Itoa(s.Nodes), links(s.Key), text(s.Mode), text(p.Name),
				fmt.Sprintf("%.2f", p.CPUPerGiB), size(p.PeakRSS), size(p.PeakHeap), written)
		}
	}
}

// rounds is the table of all records.
func rounds(b *bytes.Buffer, all []result.Record) {
	row(b, "scenario", "image", "nodes", "pulling", "links", "mode", "round", "fastest node", "median node", "slowest node", "× bound",
		"fetch", "copies", "copies, payload", "CPU idle")
	row(b, "---", "---", "---:", "---:", "---", "---", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:")
	for _, r := range all {
		bound := 0.0
		if r.Bound > 0 {
			bound = r.Slowest() / r.Bound
		}
		row(b, text(r.Scenario), text(r.Image.Name), strconv.Itoa(r.Nodes), strconv.Itoa(len(r.Pulls)), links(r.Key()), text(r.Mode),
			strconv.Itoa(r.Round), seconds(r.Fastest()), seconds(r.Median()), seconds(r.Slowest()), times3(bound),
			seconds(r.SlowestFetch()), copies(r.Copies()), copies(r.OriginCopies()), percent(r.Idle))
	}
}

func row(b *bytes.Buffer, cells ...string) {
	fmt.Fprintf(b, "| %s |\n", strings.Join(cells, " | "))
}

var special = regexp.MustCompile("[\\\\`*_\\[\\]<>|#&~]")

// text is a name as Markdown's text, also within a table's cell.
func text(s string) string {
	return special.ReplaceAllString(strings.Join(strings.Fields(s), " "), `\$0`)
}

func seconds(s float64) string {
	switch {
	case s == 0:
		return nothing
	case s < 100:
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%.1f s", s)
}

// times3 is a ratio; zero is unknown.
func times3(v float64) string {
	if v == 0 {
		return nothing
	}
	return fmt.Sprintf("%.3f", v)
}

// copies may be zero.
func copies(v float64) string {
	if v < 0 {
		return nothing
	}
	return fmt.Sprintf("%.3f", v)
}

func percent(v float64) string { return fmt.Sprintf("%.0f %%", 100*v) }

func size(bytes int64) string {
	if bytes <= 0 {
		return nothing
	}
	return humanize.IBytes(uint64(bytes))
}

// links of a run, like "100 Mbit/s, registry 1 Gbit/s".
func links(k result.Key) string {
	if k.Link == k.RegistryLink {
		return speed(k.Link)
	}
	return speed(k.Link) + ", registry " + speed(k.RegistryLink)
}

// speed of a link in bits per second.
func speed(bits int64) string {
	switch {
	case bits <= 0:
		return "unshaped"
	case bits >= 1e9:
		return fmt.Sprintf("%.4g Gbit/s", float64(bits)/1e9)
	case bits >= 1e6:
		return fmt.Sprintf("%.4g Mbit/s", float64(bits)/1e6)
	case bits >= 1e3:
		return fmt.Sprintf("%.4g kbit/s", float64(bits)/1e3)
	}
	return fmt.Sprintf("%d bit/s", bits)
}
