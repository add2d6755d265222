package main

import (
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/e2e/lab"
)

func TestParse(t *testing.T) {
	got, err := parse(strings.Fields("-nodes 4 -size 250MB -layers 2 -rate 50mbit -registry-rate 0 -mode direct,warm -rounds 3 -json"), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	want := options{
		nodes: 4, size: 250e6, layers: 2, rate: 50 * lab.Mbit, registryRate: 0,
		modes: []mode{direct, warm}, rounds: 3, asJSON: true,
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(options{})); diff != "" {
		t.Error(diff)
	}
	got, err = parse(strings.Fields("-rate 200mbit"), io.Discard)
	if err != nil || got.registryRate != 200*lab.Mbit {
		t.Errorf("registry's rate %v, %v; want that of the nodes", got.registryRate, err)
	}
	for _, bad := range []string{
		"-size huge", "-rate fast", "-registry-rate -1mbit", "-mode tepid", "-mode cold,", "-rounds 0",
		"-nodes 1 -mode warm", "stray",
	} {
		if _, err := parse(strings.Fields(bad), io.Discard); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestText(t *testing.T) {
	r := result{
		Mode: cold, Round: 2, Nodes: 3, Layers: 1, Bytes: 1 << 30, Bound: 80, Perfect: 90, Copies: 1.01, Idle: 0.25,
		Pulls:     []pullTime{{"n1", 88}, {"n2", 100}, {"n3", 84}},
		Processes: []processes{{Name: "shoal", CPU: 9, CPUPerGiB: 3, PeakRSS: 1 << 27, PeakHeap: 1 << 26}},
	}
	const want = `cold, round 2: 1.0 GiB in 1 layers, 3 of 3 nodes pull
  seconds     n1 88.00 n2 100.00 n3 84.00
  slowest     100.00 s = 1.250 × the bound of 80.00 s; median 1.100 ×
              = 1.111 × perfect
  registry    1.010 copies
  shoal       3.00 CPU s per GiB, peak RSS 128 MiB, peak heap and buffers 64 MiB
  processors  25 % idle
`
	if diff := cmp.Diff(want, r.text()); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(result{Pulls: []pullTime{{"n1", 1}}}.text(), "bound") {
		t.Error("an unshaped run has a bound")
	}
}
