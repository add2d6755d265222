package result_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/benchmarks/result"
)

func TestQuantile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // not in order
	}
	for _, tt := range []struct {
		name   string
		values []float64
		q      float64
		want   float64
	}{
		{"none", nil, 0.5, 0},
		{"one, least", []float64{7}, 0, 7},
		{"one, greatest", []float64{7}, 1, 7},
		{"least", hundred, 0, 1},
		{"first percent", hundred, 0.01, 1},
		{"just above it", hundred, 0.011, 2},
		{"middle", hundred, 0.5, 50},
		{"99 of 100", hundred, 0.99, 99},
		{"greatest", hundred, 1, 100},
		{"99 of 100 of few", []float64{3, 1, 2}, 0.99, 3},
		{"lower middle of an even number", []float64{4, 3, 2, 1}, 0.5, 2},
		{"no rounding up of 7/10", []float64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.7, 7},
		{"out of range", []float64{1, 2}, 1.5, 2},
		{"below range", []float64{1, 2}, -1, 1},
	} {
		if got := result.Quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the caller's values were sorted")
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{nil, 0},
		{[]float64{3}, 3},
		{[]float64{9, 1, 2}, 2},
		{[]float64{9, 1, 2, 3}, 2.5},
	} {
		if got := result.Median(tt.values); got != tt.want {
			t.Errorf("%v: %v, want %v", tt.values, got, tt.want)
		}
	}
	values := []float64{9, 1, 2}
	result.Median(values)
	if diff := cmp.Diff([]float64{9, 1, 2}, values); diff != "" {
		t.Error("the caller's values were sorted:", diff)
	}
}

func TestRecord(t *testing.T) {
	r := result.Record{
		Moved: 1000, Sent: 1050, Origin: 1010,
		Pulls: []result.Pull{
			{Node: "n1", Seconds: 5, Fetch: 3}, {Node: "n2", Seconds: 9, Fetch: 2},
			{Node: "n3", Seconds: 4, Fetch: 4}, {Node: "n4", Seconds: 6, Fetch: 1},
		},
		Processes: []result.Processes{{Name: "shoal", CPU: 2}, {Name: "containerd", CPU: 3}},
	}
	unknown := r
	unknown.Pulls = append([]result.Pull{{Node: "n0", Seconds: 1}}, r.Pulls...)
	uncounted := r
	uncounted.Origin = -1
	nothing := r
	nothing.Moved = 0
	var empty result.Record
	for _, tt := range []struct {
		name      string
		got, want float64
	}{
		{"fastest", r.Fastest(), 4},
		{"median", r.Median(), 5},
		{"p99", r.P99(), 9},
		{"slowest", r.Slowest(), 9},
		{"slowest fetch", r.SlowestFetch(), 4},
		{"slowest fetch when one is not known", unknown.SlowestFetch(), 0},
		{"copies", r.Copies(), 1.05},
		{"origin copies", r.OriginCopies(), 1.01},
		{"copies without counters", uncounted.Copies(), 1.05},
		{"origin copies without counters", uncounted.OriginCopies(), -1},
		{"copies of nothing", nothing.Copies(), 0},
		{"origin copies of nothing", nothing.OriginCopies(), -1},
		{"landed", float64(r.Landed()), 4000},
		{"slowest of no pulls", empty.Slowest(), 0},
		{"slowest fetch of no pulls", empty.SlowestFetch(), 0},
	} {
		if math.Abs(tt.got-tt.want) > 1e-9 {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, tt.want)
		}
	}
	if p, ok := r.Process("containerd"); !ok || p.CPU != 3 {
		t.Errorf("containerd: %v, %v", p, ok)
	}
	if p, ok := r.Process("kraken"); ok {
		t.Errorf("there is no kraken, but %v", p)
	}
}

// full is a record with every field set.
func full() result.Record {
	return result.Record{
		Scenario: "cold", Mode: result.Shoal, Round: 2,
		Image: result.Image{Name: "1GB-4", Bytes: 1e9, Layers: 4, Compressible: true},
		Nodes: 3, Link: 100e6, RegistryLink: 1e9, Bound: 80, Moved: 9e8,
		Pulls: []result.Pull{
			{Node: "n1", Seconds: 81.25, Fetch: 80.5, Sent: 1, Received: 2},
			{Node: "n2", Seconds: 82, Fetch: 81, Sent: 3, Received: 4},
		},
		Sent: 95e7, Origin: 91e7, Idle: 0.25,
		Processes: []result.Processes{
			{Name: "shoal", CPU: 1.5, CPUPerGiB: 0.5, PeakRSS: 1 << 27, PeakHeap: 1 << 26, Written: 5e9},
		},
		Progress: []result.Sample{{Seconds: 1, Received: []int64{10, 20}}, {Seconds: 2, Received: []int64{30, 40}}},
	}
}

func TestRoundTrip(t *testing.T) {
	want := []result.Record{full(), {Scenario: "warm", Mode: result.Perfect, Origin: -1, Pulls: []result.Pull{}}, full()}
	want[2].Round = 3
	var b bytes.Buffer
	for _, r := range want {
		if err := result.Write(&b, r); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(b.String(), "\n"); n != len(want) {
		t.Errorf("%d lines, want one per record", n)
	}
	whole := b.String()
	got, err := result.Read(strings.NewReader(whole))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got, err := result.Read(strings.NewReader("")); err != nil || got != nil {
		t.Errorf("an empty run is %v, %v", got, err)
	}
	cut := whole[:len(whole)-10]
	if _, err := result.Read(strings.NewReader(cut)); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "result 3") {
		t.Errorf("of a run that was cut within the third record: %v", err)
	}
}

// shortWriter has room for n bytes.
type shortWriter struct{ n int }

func (f *shortWriter) Write(p []byte) (int, error) {
	if len(p) > f.n {
		return f.n, errors.New("no space")
	}
	return len(p), nil
}

func TestWriteFails(t *testing.T) {
	if err := result.Write(&shortWriter{9}, full()); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("on a full disk: %v", err)
	}
	r := full()
	r.Idle = math.NaN()
	if err := result.Write(io.Discard, r); err == nil {
		t.Error("a figure that JSON cannot hold was written")
	}
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	var b bytes.Buffer
	a := full()
	if err := result.Write(&b, a); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, empty := write("one.jsonl", b.String()), write("empty.jsonl", "")
	two := write("two.jsonl", strings.Replace(b.String(), `"round":2`, `"round":7`, 1)+b.String())
	got, err := result.ReadFiles(two, empty, one)
	if err != nil {
		t.Fatal(err)
	}
	seventh := full()
	seventh.Round = 7
	if diff := cmp.Diff([]result.Record{seventh, a, a}, got); diff != "" {
		t.Error(diff)
	}
	cut := write("cut.jsonl", b.String()+`{"scenario": "co`)
	if _, err := result.ReadFiles(one, cut); err == nil || !strings.Contains(err.Error(), cut) || !strings.Contains(err.Error(), "result 2") {
		t.Errorf("of a cut file: %v", err)
	}
	text := write("report.md", "# Report")
	if _, err := result.ReadFiles(one, text); err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("of a file that is no run: %v", err)
	}
	missing := filepath.Join(dir, "missing.jsonl")
	if _, err := result.ReadFiles(one, missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("of a file that is not there: %v", err)
	}
}
