package result_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

// pulled is a record of a 1,000 byte image whose nodes took so long, of which
// they waited one second for the last layer's unpacking.
func pulled(mode string, round int, seconds ...float64) result.Record {
	r := result.Record{
		Scenario: "cold", Mode: mode, Round: round, Image: result.Image{Name: "1GB-4", Bytes: 1000, Layers: 4},
		Nodes: len(seconds), Link: 100, RegistryLink: 100, Bound: 80, Moved: 1000, Sent: 1100, Origin: 1000, Idle: 0.5,
	}
	for _, s := range seconds {
		r.Pulls = append(r.Pulls, result.Pull{Seconds: s, Fetch: s - 1})
	}
	return r
}

// about compares figures of binary fractions of decimal numbers.
var about = cmpopts.EquateApprox(0, 1e-9)

func TestSummarize(t *testing.T) {
	rs := []result.Record{
		pulled(result.Perfect, 1, 80, 82),
		pulled(result.Shoal, 1, 90, 85),
		pulled(result.Perfect, 2, 84, 81),
		pulled(result.Shoal, 2, 99, 100),
		pulled(result.Perfect, 3, 95, 96),
		pulled(result.Shoal, 3, 84, 88),
	}
	rs[1].Sent, rs[1].Origin, rs[1].Idle, rs[1].Bound = 1300, 1200, 0.1, 81
	rs[3].Sent, rs[3].Origin, rs[3].Idle, rs[3].Bound = 1200, 1100, 0.2, 82
	rs[5].Sent, rs[5].Origin, rs[5].Idle, rs[5].Bound = 1100, 1000, 0.9, 83
	rs[1].Processes = []result.Processes{{Name: "shoal", CPU: 3, CPUPerGiB: 1, PeakRSS: 30, PeakHeap: 3, Written: 8000}}
	rs[3].Processes = []result.Processes{
		{Name: "containerd", CPU: 9, Written: 2000},
		{Name: "shoal", CPU: 5, CPUPerGiB: 3, PeakRSS: 10, PeakHeap: 1, Written: 2000},
	}
	rs[5].Processes = []result.Processes{{Name: "shoal", CPU: 4, CPUPerGiB: 2, PeakRSS: 20, PeakHeap: 2, Written: 4000}}
	key := rs[0].Key()
	shoal := key
	shoal.Mode = result.Shoal
	got := result.Summarize(rs)
	want := []result.Summary{
		{
			Key: key, Rounds: 3, Slowest: 84, Least: 82, Greatest: 96, Fetch: 83, Bound: 80, Perfect: 84,
			Copies: 1.1, Origin: 1, Idle: 0.5, Landed: 2000,
		},
		{
			Key: shoal, Rounds: 3, Slowest: 90, Least: 88, Greatest: 100, Fetch: 89, Bound: 82, Perfect: 84,
			Copies: 1.2, Origin: 1.1, Idle: 0.2,
			Landed: 2000,
			Processes: []result.Processes{
				{Name: "shoal", CPU: 4, CPUPerGiB: 2, PeakRSS: 20, PeakHeap: 2, Written: 4000},
				{Name: "containerd", CPU: 9, Written: 2000},
			},
		},
	}
	if diff := cmp.Diff(want, got, about); diff != "" {
		t.Fatal(diff)
	}
	if r := got[1].OverBound(); r != 90.0/82 {
		t.Errorf("%v of the bound", r)
	}
	if r := got[1].OverPerfect(); r != 90.0/84 {
		t.Errorf("%v of perfect", r)
	}
	if result.Summarize(nil) != nil {
		t.Error("no records have a summary")
	}
}

// Nothing but rounds of the same pull is brought together.
func TestSummarizeApart(t *testing.T) {
	apart := []func(*result.Record){
		func(*result.Record) {},
		func(r *result.Record) { r.Scenario = "warm" },
		func(r *result.Record) { r.Image.Name = "10GB-4" },
		func(r *result.Record) { r.Nodes = 4 },
		func(r *result.Record) { r.Link = 7 },
		func(r *result.Record) { r.RegistryLink = 7 },
	}
	var rs []result.Record
	for round := 1; round <= 2; round++ {
		for i, change := range apart {
			for _, mode := range []string{result.Perfect, result.Shoal} {
				seconds := float64(10*i + round)
				if mode == result.Shoal {
					seconds *= 3
				}
				r := pulled(mode, round, seconds)
				change(&r)
				rs = append(rs, r)
			}
		}
	}
	got := result.Summarize(rs)
	if len(got) != 2*len(apart) {
		t.Fatalf("%d summaries, want %d", len(got), 2*len(apart))
	}
	for i, s := range got {
		if s.Key != rs[i].Key() {
			t.Errorf("summary %d is of %+v, want the order of the records", i, s.Key)
		}
		if s.Rounds != 2 {
			t.Errorf("%+v: %d rounds, want 2", s.Key, s.Rounds)
		}
		if want := float64(10*(i/2)) + 1.5; s.Perfect != want {
			t.Errorf("%+v: perfect is %v, want its own, %v", s.Key, s.Perfect, want)
		}
	}
}

// What a round does not know says nothing about the others.
func TestSummarizeUnknown(t *testing.T) {
	one := func(rs ...result.Record) result.Summary {
		t.Helper()
		for _, s := range result.Summarize(rs) {
			if s.Mode == result.Shoal {
				return s
			}
		}
		t.Fatal("no summary of shoal")
		return result.Summary{}
	}
	a, b := pulled(result.Shoal, 1, 90), pulled(result.Shoal, 2, 92)
	b.Pulls[0].Fetch, b.Origin = 0, -1
	s := one(a, b)
	if s.Fetch != 89 || s.Origin != 1 {
		t.Errorf("fetch %v, origin %v; want those of the round that knows them, 89 and 1", s.Fetch, s.Origin)
	}
	s = one(b)
	if s.Fetch != 0 || s.Origin >= 0 || s.Perfect != 0 || s.OverPerfect() != 0 {
		t.Errorf("%+v: want no fetch, no origin, no perfect", s)
	}
	b.Bound = 0
	if s = one(b); s.Bound != 0 || s.OverBound() != 0 {
		t.Errorf("%v of a bound of %v, want none", s.OverBound(), s.Bound)
	}

	failed := pulled(result.Shoal, 2)
	failed.Nodes = 1
	s = one(a, failed, pulled(result.Shoal, 3, 94))
	if s.Rounds != 3 || s.Slowest != 92 || s.Least != 90 || s.Greatest != 94 {
		t.Errorf("%+v: want 3 rounds, and times of those in which a node pulled", s)
	}
	if s = one(failed); s.Slowest != 0 || s.Least != 0 || s.OverBound() != 0 {
		t.Errorf("%+v: nobody pulled", s)
	}

	// Round 3 of perfect was on another day than shoal's.
	s = one(pulled(result.Perfect, 1, 80), pulled(result.Perfect, 2, 82), pulled(result.Perfect, 3, 500), a, pulled(result.Shoal, 2, 92))
	if s.Perfect != 81 {
		t.Errorf("perfect is %v, want 81, of the rounds that shoal has, too", s.Perfect)
	}
}
