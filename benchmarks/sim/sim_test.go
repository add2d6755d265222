package main

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/chunker"
)

// small is a quick configuration of 64 pieces, as the command line makes it.
func small(t testing.TB, args ...string) config {
	t.Helper()
	o, err := parse(append([]string{"-size", "16MiB", "-rate", "200"}, args...), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return o.config
}

// ran is a world after its run, and what was checked at every chunk.
func ran(t *testing.T, c config) *world {
	t.Helper()
	w, err := newWorld(c)
	if err != nil {
		t.Fatal(err)
	}
	scenarios[c.Scenario](w)
	if err := w.run(); err != nil {
		t.Fatal(err)
	}
	return w
}

// TestConservation: who is done has every piece, bytes do not come from nowhere,
// and no link carries more than it can.
func TestConservation(t *testing.T) {
	for name := range scenarios {
		t.Run(name, func(t *testing.T) {
			c := small(t)
			c.Scenario, c.Nodes, c.Holders = name, 24, 3
			w := ran(t, c)
			var sent, received int64
			links := append([]*node{w.registry}, w.nodes...)
			for _, n := range links {
				sent += n.link.sent
				received += n.link.received
				// What is on its way may be counted at one end before it has
				// passed through: one window of each peer.
				most := w.now.seconds() + 0.001
				slack := float64(64 * c.Inflight)
				if b := float64(n.link.sent); b > n.link.up*most+float64(c.Chunk) {
					t.Errorf("%s sent %.0f bytes in %.3f s at %.0f/s", n.id, b, most, n.link.up)
				}
				if b := float64(n.link.received); n != w.registry && b > n.link.down*most+slack {
					t.Errorf("%s received %.0f bytes in %.3f s at %.0f/s", n.id, b, most, n.link.down)
				}
			}
			if received > sent {
				t.Errorf("%d bytes received, %d sent", received, sent)
			}
			for _, n := range w.nodes {
				switch {
				case n.dead && n.done < 0:
					continue
				case n.done < 0 || !n.have.Full() || n.bytes != w.geo.Size || n.prefix != w.geo.NumPieces():
					t.Errorf("%s is done with %d of %d bytes", n.id, n.bytes, w.geo.Size)
				case n.joined >= 0 && n.link.received < w.geo.Size:
					t.Errorf("%s has the blob and received only %d bytes", n.id, n.link.received)
				}
				if n.joined >= 0 {
					if took := (n.done - n.joined).seconds(); took < w.bound(n) {
						t.Errorf("%s took %.4f s, faster than the bound of %.4f s", n.id, took, w.bound(n))
					}
				}
			}
			r := w.result(0)
			if name != "warm" && r.Copies < 1 {
				t.Errorf("%.3f copies left the registry", r.Copies)
			}
			if name == "warm" && r.Copies != 0 {
				t.Errorf("%.3f copies left the registry although there are holders", r.Copies)
			}
		})
	}
}

func TestSameSeedSameResult(t *testing.T) {
	for _, name := range []string{"cold", "churn"} {
		c := small(t, "-seed", "7")
		c.Scenario, c.Nodes = name, 30
		var got []result
		for range 2 {
			r, err := simulate(c)
			if err != nil {
				t.Fatal(err)
			}
			r.Seconds, r.TrackerSeconds = 0, 0
			got = append(got, r)
		}
		if diff := cmp.Diff(got[0], got[1]); diff != "" {
			t.Errorf("%s: two runs differ:\n%s", name, diff)
		}
		c.Seed++
		r, err := simulate(c)
		if err != nil {
			t.Fatal(err)
		}
		if r.Events == got[0].Events && r.Last == got[0].Last {
			t.Errorf("%s: another seed makes no difference", name)
		}
	}
}

// TestAlone: a lone node takes as long as its link, and the first answer.
func TestAlone(t *testing.T) {
	c := small(t)
	c.Scenario, c.Nodes = "cold", 1
	w := ran(t, c)
	took := (w.nodes[0].done - w.nodes[0].joined).seconds()
	bound := w.bound(nil)
	first := (c.RegistryLatency + 2*c.ControlLatency).Seconds()
	if took < bound+first || took > bound+first+0.01 {
		t.Errorf("took %.4f s, want the bound of %.4f s and %.4f s until the first byte", took, bound, first)
	}
}

// TestTheory: whole pieces that are stored and forwarded over equal links cannot
// be faster than 1 + floor(log2 N)/M. That it is not much slower says that the
// swarm works, even if the pieces are about as few as the nodes.
func TestTheory(t *testing.T) {
	for _, n := range []int{2, 3, 8, 31, 64} {
		c := small(t)
		c.Scenario, c.Nodes = "cold", n
		r, err := simulate(c)
		if err != nil {
			t.Fatal(err)
		}
		if r.Last < r.Floor || r.P99 < r.Floor {
			t.Errorf("%d nodes: last at %.4f of the bound, least possible is %.4f", n, r.Last, r.Floor)
		}
		if r.Last > r.Floor+1 {
			t.Errorf("%d nodes: last at %.4f of the bound: the simulated swarm is badly broken", n, r.Last)
		}
		if r.Copies != 1 {
			t.Errorf("%d nodes: %.4f copies left the registry", n, r.Copies)
		}
	}
}

// TestBound computes the fluid bound of unequal links by hand.
func TestBound(t *testing.T) {
	c := small(t)
	c.Nodes = 0
	w, err := newWorld(c)
	if err != nil {
		t.Fatal(err)
	}
	s := float64(w.geo.Size) / c.Rate
	near := func(what string, got, want float64) {
		t.Helper()
		if got/want < 0.999999 || got/want > 1.000001 {
			t.Errorf("%s: %.6f, want %.6f", what, got, want)
		}
	}
	a := w.add(c.Rate)
	near("one equal node", w.bound(nil), s)
	b := w.add(c.Rate / 4)
	near("the slow node's downlink", w.bound(nil), 4*s)
	near("a fast node", w.bound(a), s)
	near("the slow node", w.bound(b), 4*s)
	w.registry.link.up = c.Rate / 8
	near("the registry's uplink", w.bound(a), 8*s)
	w.registry.link.up = c.Rate
	for _, n := range w.nodes {
		n.link.up, n.link.down = c.Rate/10, 100*c.Rate
	}
	near("all uplinks", w.bound(nil), 2*s/1.2)
}

// TestFairShares: streams that share links get what max-min fairness gives them.
// a sends to x and y, b sends to y: x gets half of a's uplink, y's downlink is
// shared by both.
func TestFairShares(t *testing.T) {
	c := small(t, "-slots", "0")
	w, err := newWorld(c)
	if err != nil {
		t.Fatal(err)
	}
	const rate = 1e6
	mk := func() *node { n := w.add(rate); n.done = 0; return n }
	a, b, x, y := mk(), mk(), mk(), mk()
	y.link.down = rate / 2
	got := map[*stream]int64{}
	open := func(from, to *node) *stream {
		w.connect(from, to)
		s := to.byID[from.id].in
		s.queue = append(s.queue, request{0, 1 << 30})
		w.wake(s)
		return s
	}
	ax, ay, by := open(a, x), open(a, y), open(b, y)
	for w.now < moment(60*time.Second) {
		at, e, _ := w.q.pop()
		w.now = at
		if e.kind == evChunk {
			got[e.stream] += int64(e.bytes)
		}
		w.happen(e)
	}
	// y's 0.5 is halved; a's rest of 0.75 is all x's.
	for s, want := range map[*stream]float64{ax: 0.75, ay: 0.25, by: 0.25} {
		if have := float64(got[s]) / 60 / rate; have < want*0.95 || have > want*1.05 {
			t.Errorf("%s to %s gets %.3f of a link, want %.2f", s.from.id, s.to.id, have, want)
		}
	}
}

// TestQueue: events come in order of time, and of scheduling among equals.
func TestQueue(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var q queue
	type due struct {
		at moment
		n  int32
	}
	var want []due
	n := int32(0)
	add := func(from moment) {
		at := from + moment(rng.IntN(50))
		q.push(at, event{piece: n})
		want = append(want, due{at, n})
		n++
	}
	for range 200 {
		add(0)
	}
	for len(want) > 0 {
		slices.SortStableFunc(want, func(a, b due) int { return int(a.at - b.at) })
		at, e, ok := q.pop()
		if !ok || at != want[0].at || e.piece != want[0].n {
			t.Fatalf("got %d at %d, ok %v; want %+v", e.piece, at, ok, want[0])
		}
		want = want[1:]
		if n < 1000 && rng.IntN(2) == 0 {
			add(at)
		}
	}
	if _, _, ok := q.pop(); ok {
		t.Error("an empty queue has something")
	}
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	args := []string{"-nodes", "2,5", "-scenario", "cold,warm", "-size", "4MiB", "-rate", "100"}
	if err := run(append(args, "-json", "-svg", dir), &out, &errs); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(&out)
	for _, want := range []struct {
		scenario string
		nodes    int
	}{{"cold", 2}, {"cold", 5}, {"warm", 2}, {"warm", 5}} {
		var r result
		if err := dec.Decode(&r); err != nil || r.Scenario != want.scenario || r.Nodes != want.nodes || r.Size != 4<<20 {
			t.Errorf("got %+v, %v; want %v", r, err, want)
		}
	}
	for _, f := range figures {
		b, err := os.ReadFile(filepath.Join(dir, "sim-"+f.file+".svg"))
		if err != nil || !bytes.Contains(b, []byte("warm")) {
			t.Errorf("plot %s: %d bytes, %v", f.file, len(b), err)
		}
	}
	out.Reset()
	if err := run(args, &out, &errs); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 5 {
		t.Errorf("table has %d lines:\n%s", n, out.String())
	}
	for _, bad := range [][]string{
		{"-nodes", "0"}, {"-nodes", "x"}, {"-scenario", "hot"}, {"-size", "0"}, {"-rate", "-1"}, {"word"}, {"-churn", "2"}, {"-slow-by", "0"},
	} {
		if err := run(bad, &out, &errs); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

func TestFloor(t *testing.T) {
	g := chunker.Geometry{Size: 100 * chunker.MinPieceLength, PieceLength: chunker.MinPieceLength}
	for n, want := range map[int]float64{1: 1, 2: 1.01, 3: 1.01, 4: 1.02, 1000: 1.09} {
		if got := floor(n, g); got != want {
			t.Errorf("%d nodes: %v, want %v", n, got, want)
		}
	}
}
