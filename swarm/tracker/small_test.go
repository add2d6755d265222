package tracker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func newSmall(p Params) *Small { return NewSmall(p, rand.New(rand.NewPCG(1, 2))) }

func TestSmallOneNodeAsksTheOrigin(t *testing.T) {
	s := newSmall(Params{SmallStreams: 2})
	out := []Out{}
	for i := range 10 {
		out = append(out, s.Join(hello(fmt.Sprint(i), 0, true), epoch)...)
	}
	origin, peers, rounds := 0, 0, 0
	for len(out) > 0 {
		rounds++
		var next []Out
		for node, ls := range grants(out) {
			for _, l := range ls {
				if l.Source == "" {
					origin++
				} else {
					peers++
				}
				next = append(next, s.Handle(node, Up{Whole: true, WholeSize: 10}, epoch)...)
			}
		}
		out = next
	}
	if origin != 1 || peers != 9 {
		t.Errorf("%d fetches from the origin and %d from peers, want 1 and 9", origin, peers)
	}
}

func TestSmallOriginFailureGoesToTheNext(t *testing.T) {
	s := newSmall(Params{})
	first := grants(s.Join(hello("a", 0, true), epoch))["a"]
	s.Join(hello("b", 0, true), epoch)
	out := s.Handle("a", Up{Failed: []Failure{{first[0].ID, FailSource}}}, epoch)
	if g := grants(out)["b"]; len(g) != 1 || g[0].Source != "" {
		t.Errorf("after a failed, b got %+v, want a lease on the origin", g)
	}
	// A puller that hangs loses its lease too.
	out = s.Tick(epoch.Add(6 * time.Second))
	if g := grants(out)["a"]; len(g) != 1 {
		t.Errorf("after b hung, a got %+v, want a lease", g)
	}
}

// TestSmallSourceFailureWaitsForTheOthers: a holder that one puller cannot reach,
// since it has not heard of it yet, say, or that none can.
func TestSmallSourceFailureWaitsForTheOthers(t *testing.T) {
	for name, c := range map[string]struct {
		second func(Lease) Up // what b tells of its lease
		source string         // of the one lease that follows
	}{
		"one":  {func(Lease) Up { return Up{Whole: true, WholeSize: 10} }, "b"},
		"both": {func(l Lease) Up { return Up{Failed: []Failure{{l.ID, FailSource}}} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSmall(Params{SmallStreams: 2})
			s.SetHolders([]string{"h"}, epoch)
			a := grants(s.Join(hello("a", 0, true), epoch))["a"]
			b := grants(s.Join(hello("b", 0, true), epoch))["b"]
			if len(a) != 1 || len(b) != 1 || a[0].Source != "h" || b[0].Source != "h" {
				t.Fatalf("got %+v and %+v, want a lease on h each", a, b)
			}
			if out := s.Handle("a", Up{Failed: []Failure{{a[0].ID, FailSource}}}, epoch); len(out) != 0 {
				t.Errorf("h failed a while b fetches from it: got %+v, want a to wait", out)
			}
			out := s.Handle("b", c.second(b[0]), epoch)
			if g := grants(out); len(g["a"]) != 1 || len(g["b"]) != 0 || g["a"][0].Source != c.source {
				t.Errorf("got %+v, want a lease on %q for a", out, c.source)
			}
		})
	}
}

func TestSmallWithoutSourceIsToldAtOnce(t *testing.T) {
	s := newSmall(Params{})
	out := s.Join(hello("a", 0, false), epoch)
	if len(out) != 1 || !out[0].Down.Starved {
		t.Errorf("got %+v, want the word that nobody has it", out)
	}
}

func TestSmallInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSmall(Params{SmallStreams: 2})
		now := epoch
		node := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
		id := func(n string) uint64 {
			if p := s.pullers[n]; p != nil {
				return p.lease.ID
			}
			return 0
		}
		t.Repeat(map[string]func(*rapid.T){
			"join": func(t *rapid.T) {
				s.Join(hello(node.Draw(t, "node"), 0, rapid.Bool().Draw(t, "origin")), now)
			},
			"leave": func(t *rapid.T) { s.Leave(node.Draw(t, "node"), now) },
			"whole": func(t *rapid.T) { s.Handle(node.Draw(t, "node"), Up{Whole: true}, now) },
			"fail": func(t *rapid.T) {
				n := node.Draw(t, "node")
				s.Handle(n, Up{Failed: []Failure{{id(n), rapid.SampledFrom([]string{FailSource, FailNotFound}).Draw(t, "reason")}}}, now)
			},
			"holders": func(t *rapid.T) {
				s.SetHolders(rapid.SliceOfDistinct(node, func(s string) string { return s }).Draw(t, "holders"), now)
			},
			"tick": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 8000).Draw(t, "ms")) * time.Millisecond)
				s.Tick(now)
			},
			"": func(t *rapid.T) {
				origin, out, holders := 0, 0, map[string]int{}
				for _, p := range s.pullers {
					if p.lease.ID != 0 {
						out++
					}
					switch {
					case p.lease.ID == 0:
						if src, ok, _ := s.source(p, now); ok && !p.whole {
							t.Fatalf("%s waits although it could fetch from %q", p.id, src)
						}
					case p.whole:
						t.Fatalf("%s has the content and a lease", p.id)
					case p.lease.Source == "":
						origin++
					default:
						holders[p.lease.Source]++
						if p.lease.Source == p.id {
							t.Fatalf("%s is its own source", p.id)
						}
						if n, ok := s.holders[p.lease.Source]; ok && n != s.leasesOn(p.lease.Source) {
							t.Fatalf("%d leases on %s, recorded %d", s.leasesOn(p.lease.Source), p.lease.Source, n)
						}
					}
				}
				if origin > 1 {
					t.Fatalf("%d leases on the origin", origin)
				}
				if out != s.out {
					t.Fatalf("%d leases, recorded %d", out, s.out)
				}
			},
		})
	})
}
