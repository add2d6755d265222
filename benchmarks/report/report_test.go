package report_test

import (
	"bytes"
	"encoding/csv"
	"encoding/xml"
	"errors"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/benchmarks/report"
	"github.com/shoal-dev/shoal/benchmarks/result"
)

const command = "sudo go run ./benchmarks/pull \\\n  -nodes 8 -mode shoal,perfect"

// write makes a report and returns its files.
func write(t *testing.T, all []result.Record) map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "new", "report")
	if err := report.Write(dir, "Cold & warm", command, all); err != nil {
		t.Fatal(err)
	}
	return files(t, dir)
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = string(content)
	}
	return all
}

func TestFiles(t *testing.T) {
	got := write(t, sample())
	want := []string{
		"bound-cold-1gb-4.svg", "copies-cold-1gb-4.svg",
		"progress-cold-1gb-4-4.svg", "progress-cold-1gb-4-8.svg", "progress-warm-1gb-4-8.svg",
		"report.md", "results.csv", "results.jsonl",
		"time-cold-1gb-4-4.svg", "time-cold-1gb-4-8.svg", "time-warm-1gb-4-8.svg",
	}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Error(diff)
	}
	records, err := result.Read(strings.NewReader(got["results.jsonl"]))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sample(), records); diff != "" {
		t.Error(diff)
	}
	checkLinks(t, got)
}

var link = regexp.MustCompile(`\]\(([^)]*)\)`)

// checkLinks of the report: all to files, and all plots are shown.
func checkLinks(t *testing.T, files map[string]string) {
	t.Helper()
	linked := map[string]bool{}
	for _, m := range link.FindAllStringSubmatch(files["report.md"], -1) {
		linked[m[1]] = true
		if _, ok := files[m[1]]; !ok {
			t.Errorf("the report links to %q, which is not there", m[1])
		}
	}
	for name := range files {
		if name != "report.md" && !linked[name] {
			t.Errorf("the report does not link to %s", name)
		}
		if regexp.MustCompile(`[^a-z0-9_.-]`).MatchString(name) {
			t.Errorf("%q is no safe file name", name)
		}
	}
}

func TestCSV(t *testing.T) {
	rows, err := csv.NewReader(strings.NewReader(write(t, sample())["results.csv"])).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	header := strings.Fields(`scenario mode round image image_bytes image_layers image_compressible
		nodes link_bits_per_second registry_link_bits_per_second
		bound_seconds moved_bytes registry_sent_bytes origin_bytes copies origin_copies slowest_seconds cpu_idle
		node seconds fetch_seconds sent_bytes received_bytes
		containerd_cpu_seconds containerd_cpu_seconds_per_gib containerd_peak_rss_bytes containerd_peak_heap_bytes containerd_written_bytes
		shoal_cpu_seconds shoal_cpu_seconds_per_gib shoal_peak_rss_bytes shoal_peak_heap_bytes shoal_written_bytes`)
	if diff := cmp.Diff(header, rows[0]); diff != "" {
		t.Fatal(diff)
	}
	rows = rows[1:]
	if want := 3*4*4 + 3*4*8 + 3*7; len(rows) != want {
		t.Fatalf("%d rows, want one per record and node, %d", len(rows), want)
	}
	// The third record is the first of shoal; 4 nodes pulled in each before.
	want := strings.Split("cold,shoal,1,1GB-4,1000000000,4,false,4,100000000,100000000,80,1000000000,1071200000,1040000000,"+
		"1.0712,1.04,85.5,0.31,n1,85.5,82.5,1000000000,1040000000,30,4.25,94371840,62914560,10000000000,"+
		"25,3.5,134217728,67108864,12500000000", ",")
	if diff := cmp.Diff(want, rows[8]); diff != "" {
		t.Error(diff)
	}
	// Before it, perfect, whose nodes count nothing.
	want = strings.Split("cold,perfect,1,1GB-4,1000000000,4,false,4,100000000,100000000,80,1000000000,4120000000,,"+
		"4.12,,82.5,0.31,n1,82.5,79.5,1000000000,1040000000,30,4.25,94371840,62914560,10000000000,,,,,", ",")
	if diff := cmp.Diff(want, rows[4]); diff != "" {
		t.Error(diff)
	}
	if rows[12][1] != nasty {
		t.Errorf("mode %q, want %q", rows[12][1], nasty)
	}
}

func TestMarkdown(t *testing.T) {
	md := write(t, sample())["report.md"]
	if !strings.HasPrefix(md, "# Cold \\& warm\n\n```\n"+command+"\n```\n\n") {
		t.Errorf("it does not begin with title and command: %.200s", md)
	}
	for _, want := range []string{
		"**bound**", "**Perfect**", "**Copies**", "## Scenario cold\n", "## Scenario warm\n",
		"\n| 1GB-4 | 954 MiB | 4 | random |\n",
		"\n| 1GB-4 | 8 | 8 | 954 MiB | 100 Mbit/s | shoal | 3 | 86.00 s (85.50 s to 86.50 s) | 1.075 | 1.036 | 1.071 | 1.040 | 83.00 s | 3.00 s | 31 % |\n",
		"\n| 1GB-4 | 8 | 8 | 954 MiB | 100 Mbit/s | direct | 3 | 640.0 s (639.5 s to 640.5 s) | 8.000 | 7.711 | 8.240 | — | 637.0 s | 3.00 s | 31 % |\n",
		// Of another scenario there is no perfect.
		"\n| 1GB-4 | 8 | 7 | 954 MiB | 100 Mbit/s | shoal | 3 | 84.00 s (83.50 s to 84.50 s) | 1.050 | — | 0.002 | 0.002 | 81.00 s | 3.00 s | 31 % |\n",
		"\n| 1GB-4 | 8 | 100 Mbit/s | shoal | containerd | 4.25 | 90 MiB | 60 MiB | 2.50 |\n",
		"\n| 1GB-4 | 8 | 100 Mbit/s | shoal | shoal | 3.50 | 128 MiB | 64 MiB | 3.12 |\n",
		"\n| cold | 1GB-4 | 8 | 8 | 100 Mbit/s | a\\|b,\"\\<c\\>\\&../d | 2 | 94.20 s | 95.40 s | 97.00 s | 1.212 | 94.00 s | 1.339 | — | 31 % |\n",
		"\n![cold, 1GB-4, 8 nodes, 100 Mbit/s: time by node](time-cold-1gb-4-8.svg)\n",
	} {
		if !strings.Contains(md, want) {
			t.Errorf("not in the report: %s", want)
		}
	}
	_, last, _ := strings.Cut(md, "## Round by round\n")
	if n, want := strings.Count(last, "\n|"), len(sample())+2; n != want {
		t.Errorf("%d lines round by round, want %d", n, want)
	}
	checkTables(t, md)
}

// checkTables: all rows of a table have as many cells.
func checkTables(t *testing.T, md string) {
	t.Helper()
	cells, tables := 0, 0
	for l := range strings.Lines(md) {
		n := strings.Count(strings.ReplaceAll(l, `\|`, ""), "|")
		switch {
		case n == 0:
		case cells == 0:
			tables++
		case n != cells:
			t.Errorf("%d cells, want %d: %s", n-1, cells-1, l)
		}
		cells = n
	}
	if tables < 4 {
		t.Errorf("%d tables, want images, times, costs and rounds", tables)
	}
}

// texts of an SVG file; it fails if that is not well-formed.
func texts(t *testing.T, name, svg string) []string {
	t.Helper()
	var all []string
	within := false
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return nil
		}
		switch token := token.(type) {
		case xml.StartElement:
			within = token.Name.Local == "text"
		case xml.EndElement:
			within = false
		case xml.CharData:
			if within {
				all = append(all, string(token))
			}
		}
	}
}

func TestPlots(t *testing.T) {
	got := write(t, sample())
	all := []string{"direct", "perfect", "shoal", nasty}
	for name, want := range map[string][]string{
		"time-cold-1gb-4-8.svg": append(all, "bound", "cold, 1GB-4, 8 nodes, 100 Mbit/s: time by node",
			"nodes that are done", "seconds (logarithmic)", "1", "8", "100"),
		"time-warm-1gb-4-8.svg": {"shoal", "bound", "seconds (not from 0)"},
		"bound-cold-1gb-4.svg":  append(all, "nodes", "slowest node ÷ bound (logarithmic)", "4", "8"),
		"copies-cold-1gb-4.svg": append(all, "nodes", "copies (logarithmic)", "4", "8"),
		// Its axis ends before direct does.
		"progress-cold-1gb-4-8.svg": append(all, "bound", "seconds", "received, %", "100"),
		"progress-warm-1gb-4-8.svg": {"shoal", "bound"},
	} {
		texts := texts(t, name, got[name])
		for _, w := range want {
			if !slices.Contains(texts, w) {
				t.Errorf("%s: no %q in %q", name, w, texts)
			}
		}
	}
	if texts := texts(t, "warm", got["time-warm-1gb-4-8.svg"]); slices.Contains(texts, "perfect") {
		t.Error("a mode that was not measured is in the legend")
	}
	// Shoal is blue in all of them.
	for name, svg := range got {
		if strings.HasSuffix(name, ".svg") && !strings.Contains(svg, "#0072B2") {
			t.Errorf("%s: shoal has another colour", name)
		}
	}
	if !strings.Contains(got["report.md"], "The slowest goes on until 640.0 s.") {
		t.Error("no word on where direct ends")
	}
}

// A plot that has nothing to show is not made.
func TestPlotsWithout(t *testing.T) {
	one := made("cold", result.Shoal, 1, 1, 1, 84, 1)
	one.Progress = nil
	got := write(t, []result.Record{one})
	want := []string{"report.md", "results.csv", "results.jsonl", "time-cold-1gb-4-1.svg"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(got["report.md"], "| shoal | 1 | 83.50 s | 1.044 |") {
		t.Error("the time of one round does not stand alone")
	}
	unshaped := made("cold", result.Shoal, 1, 2, 2, 84, 1)
	unshaped.Link, unshaped.RegistryLink, unshaped.Bound = 0, 0, 0
	got = write(t, []result.Record{unshaped})
	if slices.Contains(texts(t, "time", got["time-cold-1gb-4-2.svg"]), "bound") {
		t.Error("without shaped links there is a bound")
	}
	if !strings.Contains(got["report.md"], "| unshaped | shoal |") {
		t.Error("no word on the links")
	}
}

func TestDeterminism(t *testing.T) {
	first := write(t, sample())
	for name, content := range write(t, sample()) {
		if content != first[name] {
			t.Errorf("%s differs from one report to the next", name)
		}
	}
	// Out of its own records the same report is made.
	rs, err := result.Read(strings.NewReader(first["results.jsonl"]))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, write(t, rs)); diff != "" {
		t.Error(diff)
	}
}

func TestEmpty(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "report")
	err := report.Write(dir, "Nothing", command, nil)
	if err == nil || !strings.Contains(err.Error(), "no results") {
		t.Errorf("a report of nothing: %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a report of nothing left a directory: %v", err)
	}
}

// Records of pulls that failed, or of a source that knows little, are reported.
func TestSparse(t *testing.T) {
	failed := made("cold", result.Shoal, 2, 4, 0, 84, 1)
	partly := made("cold", result.Shoal, 3, 4, 3, 84, 1)
	partly.Processes, partly.Moved = nil, 0
	for name, all := range map[string][]result.Record{
		"nothing but zeros":  {{}},
		"nobody pulled":      {failed},
		"one after a pull":   {made("cold", result.Shoal, 1, 4, 4, 84, 1), failed},
		"and one before it":  {failed, partly, made("cold", result.Shoal, 1, 4, 4, 84, 1)},
		"samples of nobody":  {{Mode: "shoal", Moved: 5, Progress: []result.Sample{{}, {Seconds: 1, Received: []int64{}}}}},
		"one sample":         {{Mode: "shoal", Moved: 5, Progress: []result.Sample{{Received: []int64{0}}}}},
		"several nodes each": {{Nodes: 1}, {Nodes: 2}, made("", "", 1, 3, 3, 0, 0)},
	} {
		t.Run(name, func(t *testing.T) {
			got := write(t, all)
			checkLinks(t, got)
			checkTables(t, got["report.md"])
			for name, content := range got {
				if strings.HasSuffix(name, ".svg") {
					texts(t, name, content)
				}
				if strings.Contains(content, "NaN") || strings.Contains(content, "Inf") {
					t.Errorf("%s has what is no number", name)
				}
			}
		})
	}
	rows, err := csv.NewReader(strings.NewReader(write(t, []result.Record{failed})["results.csv"])).ReadAll()
	if err != nil || len(rows) != 2 || rows[1][18] != "" || rows[1][16] != "" {
		t.Errorf("%v, %v: want one row without node and time", rows, err)
	}
	md := write(t, []result.Record{made("cold", result.Shoal, 1, 4, 4, 84, 1), failed, partly})["report.md"]
	if want := "| 1GB-4 | 4 | 0 to 4 |"; !strings.Contains(md, want) {
		t.Errorf("nodes that failed are not in the report: %s", md)
	}
}

// What differs in links alone, or in what file names cannot hold, has plots of
// its own.
func TestFileNames(t *testing.T) {
	slow, odd := made("cold", result.Shoal, 1, 2, 2, 84, 1), made("cold", result.Shoal, 1, 2, 2, 84, 1)
	slow.RegistryLink = 1e9
	odd.Scenario, odd.Image.Name = "../cold", "1GB: 4"
	long := made(strings.Repeat("very long ", 100), result.Shoal, 1, 2, 2, 84, 1)
	strange := made("寒い", result.Shoal, 1, 2, 2, 84, 1)
	strange.Image.Name = "](x)"
	got := write(t, []result.Record{made("cold", result.Shoal, 1, 2, 2, 84, 1), slow, odd, long, strange})
	times := 0
	for name := range got {
		if strings.HasPrefix(name, "time-") {
			times++
		}
		if len(name) > 120 {
			t.Errorf("%s is long", name)
		}
	}
	if times != 5 {
		t.Errorf("%d plots of times, want 5: %v", times, slices.Sorted(maps.Keys(got)))
	}
	if !strings.Contains(got["report.md"], "| 100 Mbit/s, registry 1 Gbit/s |") {
		t.Error("the registry's link is not in the report")
	}
	// A name is text, not a link; links within text() would lead nowhere.
	got["report.md"] = strings.ReplaceAll(got["report.md"], `\](x)`, "")
	checkLinks(t, got)
}

// A report replaces an older one, but what has not changed is not touched: records
// may still be appended to it.
func TestReplace(t *testing.T) {
	dir := t.TempDir()
	all := sample()
	records := filepath.Join(dir, "results.jsonl")
	f, err := os.Create(records)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, r := range all[:4] {
		if err := result.Write(f, r); err != nil {
			t.Fatal(err)
		}
	}
	if err := report.Write(dir, "First", command, all[:4]); err != nil {
		t.Fatal(err)
	}
	if err := result.Write(f, all[4]); err != nil {
		t.Fatal(err)
	}
	if rs, err := result.ReadFiles(records); err != nil || len(rs) != 5 {
		t.Errorf("%d records, %v; want the one that was appended after the report, too", len(rs), err)
	}
	if err := report.Write(dir, "Second", command, all); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wantReport(t, "Second", all), files(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func wantReport(t *testing.T, title string, all []result.Record) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if err := report.Write(dir, title, command, all); err != nil {
		t.Fatal(err)
	}
	return files(t, dir)
}

func TestErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := report.Write(file, "", command, sample()); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a report in place of a file: %v", err)
	}
	dir := t.TempDir()
	r := made("cold", result.Shoal, 1, 2, 2, 84, 1)
	r.Pulls[0].Seconds = math.Inf(1)
	if err := report.Write(dir, "", command, []result.Record{r}); err == nil {
		t.Error("a time without end was reported")
	}
	// A directory in place of a file: nothing is left behind.
	if err := os.Mkdir(filepath.Join(dir, "results.csv"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := report.Write(dir, "", command, sample()); err == nil || !strings.Contains(err.Error(), "results.csv") {
		t.Errorf("over a directory: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".report-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A command with a fence in it does not end the block.
func TestFence(t *testing.T) {
	dir := t.TempDir()
	if err := report.Write(dir, "T", "echo '```'", []result.Record{made("cold", result.Shoal, 1, 2, 2, 84, 1)}); err != nil {
		t.Fatal(err)
	}
	if md := files(t, dir)["report.md"]; !bytes.Contains([]byte(md), []byte("\n````\necho '```'\n````\n")) {
		t.Errorf("%.100s", md)
	}
}
