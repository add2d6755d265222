package main

import (
	"io"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/benchmarks/result"
	"github.com/shoal-dev/shoal/e2e/lab"
)

func TestParse(t *testing.T) {
	o, err := parse(strings.Fields("-nodes 4,8 -image 250MB-2,1MiB-1-c -rate 50mbit -registry-rate 0 -scenario warm,churn "+
		"-mode direct,shoal -rounds 3 -stagger 1s -json -out x"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range o.scenarios {
		names = append(names, s.name)
	}
	if diff := cmp.Diff([]string{"warm", "churn"}, names); diff != "" {
		t.Error(diff)
	}
	o.scenarios = nil
	want := options{
		clusters: []int{4, 8}, images: []result.Image{{Name: "250MB-2", Bytes: 250e6, Layers: 2}, {Name: "1MiB-1-c", Bytes: 1 << 20, Layers: 1, Compressible: true}},
		rate: 50 * lab.Mbit, modes: []string{direct, result.Shoal}, rounds: 3, stagger: time.Second, asJSON: true, out: "x", otherName: other, title: "Pull times", reports: []string{},
	}
	if diff := cmp.Diff(want, o, cmp.AllowUnexported(options{})); diff != "" {
		t.Error(diff)
	}
	if o, err = parse(strings.Fields("-rate 200mbit"), io.Discard); err != nil || o.registryRate != 200*lab.Mbit {
		t.Errorf("registry's rate %v, %v; want that of the nodes", o.registryRate, err)
	}
	for _, bad := range []string{
		"-image huge", "-image 1GB", "-image 1GB-0", "-image 1GB-1,", "-rate fast", "-registry-rate -1mbit", "-scenario tepid", "-mode cold",
		"-rounds 0", "-nodes 0", "-nodes 1 -scenario warm", "-nodes 8,2 -scenario churn", "-rate 0 -scenario churn", "-mode other", "stray", "-report",
	} {
		if _, err := parse(strings.Fields(bad), io.Discard); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func record() result.Record {
	return result.Record{
		Scenario: "cold", Mode: result.Shoal, Round: 2, Nodes: 3, Image: result.Image{Name: "1GiB-1"}, Moved: 1 << 30, Bound: 80, Sent: 1 << 30, Origin: 1 << 29, Idle: 0.25,
		Pulls:     []result.Pull{{Node: "n1", Seconds: 88, Fetch: 80}, {Node: "n2", Seconds: 100, Fetch: 90}, {Node: "n3", Seconds: 84, Fetch: 80}},
		Processes: []result.Processes{{Name: "shoal", CPU: 9, CPUPerGiB: 3, PeakRSS: 1 << 27, PeakHeap: 1 << 26, Written: 3 << 30}},
	}
}

func TestText(t *testing.T) {
	const want = `cold, 1GiB-1, shoal, round 2: 1.0 GiB, 3 of 3 nodes pull
  seconds     n1 88.00 n2 100.00 n3 84.00
  slowest     100.00 s = 1.250 × the bound of 80.00 s; median 1.100 ×
  fetched     90.00 s, the rest is unpacking
  registry    1.000 copies, 0.500 by the nodes' count
  shoal       3.00 CPU s per GiB, peak RSS 128 MiB, peak heap and buffers 64 MiB, 1.00 bytes written per byte
  processors  25 % idle
`
	if diff := cmp.Diff(want, text(record())); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(text(result.Record{Pulls: []result.Pull{{Node: "n1", Seconds: 1}}}), "bound") {
		t.Error("an unshaped run has a bound")
	}
}

func TestSummarize(t *testing.T) {
	var b strings.Builder
	perfect := record()
	perfect.Mode = result.Perfect
	perfect.Pulls = []result.Pull{{Node: "n1", Seconds: 80}}
	if err := summarize(&b, []result.Record{perfect, record()}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "100.00..100.00   1.250    1.250") {
		t.Error(b.String())
	}
}

func mustTemplate(t *testing.T, s string) *template.Template {
	t.Helper()
	tm, err := template.New("test").Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return tm
}

func TestRivalTemplates(t *testing.T) {
	f := rivalFields{Node: "n1", Address: "10.0.0.1", RegistryURL: "http://r"}
	tm := mustTemplate(t, "serve --name {{.Node}} --upstream {{.RegistryURL}}")
	got, err := fill(tm, f)
	if err != nil || got != "serve --name n1 --upstream http://r" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := fill(mustTemplate(t, "{{.Nonsense}}"), f); err == nil {
		t.Error("an unknown field is accepted")
	}
}
