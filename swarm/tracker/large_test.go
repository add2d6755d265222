package tracker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/chunker"
)

var (
	epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	blobD = digest.FromString("blob")
)

func newLarge(t testing.TB, size int64, p Params) *Large {
	t.Helper()
	g, err := chunker.GeometryOf(size)
	if err != nil {
		t.Fatal(err)
	}
	return NewLarge(p, g, rand.New(rand.NewPCG(1, 2)))
}

func hello(node string, size int64, origin bool) *Hello {
	return &Hello{Version: Version, Node: node, Digest: blobD, Size: size, Origin: origin}
}

// grants collects what a batch of messages leased, by node.
func grants(out []Out) map[string][]Lease {
	g := map[string][]Lease{}
	for _, o := range out {
		g[o.To] = append(g[o.To], o.Down.Grants...)
	}
	return g
}

// fulfilled is what a puller tells of a lease that it has worked off.
func fulfilled(ls Lease) Sums {
	var have Sums
	for i := ls.First; i < ls.First+ls.Count; i++ {
		have = append(have, PieceSum{Index: i, Sum: chunker.SumOf([]byte{byte(i)})})
	}
	return have
}

func TestLoneNodeGetsSeveralStreamsInOrder(t *testing.T) {
	l := newLarge(t, 64<<20, Params{})
	got := grants(l.Join(hello("a", 64<<20, true), epoch))["a"]
	if len(got) != streamsPerPuller(1) {
		t.Fatalf("lone node got %d leases, want %d", len(got), streamsPerPuller(1))
	}
	next := 0
	for _, ls := range got {
		if ls.First != next || ls.Source != "" || ls.Whole {
			t.Errorf("lease %+v, want one from the origin beginning at piece %d", ls, next)
		}
		next = ls.First + ls.Count
	}
}

func TestHoldersComeBeforeTheOrigin(t *testing.T) {
	l := newLarge(t, 64<<20, Params{HolderStreams: 2})
	l.SetHolders([]string{"h1", "h2"}, epoch)
	got := grants(l.Join(hello("a", 64<<20, true), epoch))["a"]
	bySource := map[string]int{}
	for _, ls := range got {
		bySource[ls.Source]++
	}
	if bySource["h1"] != 2 || bySource["h2"] != 2 || bySource[""] != 0 {
		t.Errorf("leases by source %v, want two from each holder and none from the origin while holders are only busy", bySource)
	}
}

// TestLaterPullersGetOneLease: of all that have a layer before this one to fetch only
// one gets a lease, and those that have not are served. All hear it when there is
// nothing left to lease.
func TestLaterPullersGetOneLease(t *testing.T) {
	const size = 64 << 20
	l := newLarge(t, size, Params{})
	count := map[string]int{}
	handle := func(out []Out) {
		for to, ls := range grants(out) {
			if len(ls) > 0 {
				count[to] += len(ls)
			}
		}
	}
	for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
		h := hello(n, size, true)
		h.Later = true
		handle(l.Join(h, epoch))
	}
	if len(count) != 1 || l.laterOut != 1 {
		t.Fatalf("leases by node %v, want a single one", count)
	}
	turn := false
	handle(l.Handle("f", Up{Later: &turn}, epoch))
	if count["f"] != 1 || l.laterOut != 1 {
		t.Fatalf("leases by node %v and %d of later ones after f's turn has come", count, l.laterOut)
	}
	told := map[string]int{}
	for range 10 * l.Pieces() {
		for _, p := range l.sorted {
			for _, id := range sortedIDs(p.leases) {
				ls := p.leases[id]
				for _, o := range l.Handle(p.id, Up{Have: fulfilled(ls.Lease)}, epoch) {
					if o.Down.Beat != nil && o.Down.Beat.Free == 0 {
						told[o.To]++
					}
				}
			}
		}
	}
	for _, p := range l.sorted {
		if told[p.id] != 1 {
			t.Errorf("%s heard %d times that all is leased, want once", p.id, told[p.id])
		}
	}
}

func TestLeaseWithoutProgressMovesOn(t *testing.T) {
	l := newLarge(t, 8<<20, Params{LeaseMin: 8 << 20})
	first := grants(l.Join(hello("a", 8<<20, true), epoch))["a"]
	// a reports progress on its first lease only.
	now := epoch.Add(4 * time.Second)
	l.Handle("a", Up{Progress: []Progress{{Lease: first[0].ID, Bytes: 1000}}}, now)
	now = epoch.Add(6 * time.Second)
	var revoked []uint64
	for _, o := range l.Tick(now) {
		if o.To == "a" {
			revoked = append(revoked, o.Down.Revoke...)
		}
		if len(o.Down.Grants) > 0 {
			t.Errorf("%s got %+v from the origin it is barred from", o.To, o.Down.Grants)
		}
	}
	if slices.Contains(revoked, first[0].ID) {
		t.Error("the lease that moved was revoked")
	}
	if len(revoked) != len(first)-1 {
		t.Errorf("revoked %d leases, want the %d that did not move", len(revoked), len(first)-1)
	}
	if got := grants(l.Join(hello("b", 8<<20, true), now))["b"]; len(got) == 0 || got[0].First != first[1].First {
		t.Errorf("the next puller got %+v, want what was taken from the stalled one", got)
	}
}

func TestRegistryWithoutRangesHasOneFetcher(t *testing.T) {
	const size = 32 << 20
	l := newLarge(t, size, Params{})
	out := append(l.Join(hello("a", size, true), epoch), l.Join(hello("b", size, true), epoch)...)
	var whole []string
	for range 100 {
		var next []Out
		for node, ls := range grants(out) {
			for _, lease := range ls {
				if lease.Whole {
					whole = append(whole, node)
					continue
				}
				next = append(next, l.Handle(node, Up{Failed: []Failure{{lease.ID, FailNoRange}}}, epoch)...)
			}
		}
		if out = next; len(out) == 0 {
			break
		}
	}
	if len(whole) != 1 {
		t.Fatalf("whole leases went to %v, want exactly one", whole)
	}
	// It dies: the other takes over.
	if got := grants(l.Leave(whole[0], epoch)); len(got) != 1 {
		t.Errorf("after the fetcher left, leases went to %v, want the other node", got)
	}
}

func TestSumsFirstOneStands(t *testing.T) {
	const size = 8 << 20
	l := newLarge(t, size, Params{})
	l.Join(hello("a", size, true), epoch)
	l.Join(hello("b", size, true), epoch)
	l.Join(hello("c", size, true), epoch)
	good, bad := chunker.SumOf([]byte("good")), chunker.SumOf([]byte("bad"))
	told := map[string]chunker.Sum{}
	for _, o := range l.Handle("a", Up{Have: []PieceSum{{Index: 3, Sum: good}}}, epoch) {
		for _, s := range o.Down.Sums {
			told[o.To] = s.Sum
			if s.By != "a" {
				t.Errorf("vouched by %q, want a", s.By)
			}
		}
	}
	if len(told) != 2 || told["b"] != good || told["c"] != good {
		t.Errorf("sum told to %v, want b and c", told)
	}
	// A forged By is overwritten by the authenticated sender.
	refused := false
	for _, o := range l.Handle("b", Up{Have: []PieceSum{{Index: 3, Sum: bad, By: "a"}}}, epoch) {
		if len(o.Down.Sums) > 0 {
			t.Errorf("contradicting sum told to %s", o.To)
		}
		for _, s := range o.Down.Refused {
			refused = refused || o.To == "b" && s.Sum == good && s.By == "a"
		}
	}
	if !refused {
		t.Error("b was not told that its sum is refused")
	}
	// c proves the sum wrong: it is withdrawn, the piece is free again.
	forget := 0
	for _, o := range l.Handle("c", Up{Disputes: []Dispute{{Index: 3, By: "a"}}}, epoch) {
		forget += len(o.Down.Forget)
	}
	if forget != 3 {
		t.Errorf("%d nodes were told to forget the piece, want 3", forget)
	}
	if l.pieces[3].known || l.pieces[3].owners != 0 {
		t.Error("the disputed piece still counts")
	}
}

func TestLateJoinerIsNotSentToSeeds(t *testing.T) {
	const size = 8 << 20
	l := newLarge(t, size, Params{})
	l.Join(hello("a", size, true), epoch)
	l.Handle("a", Up{Whole: true, WholeSize: size}, epoch)
	for _, o := range l.Join(hello("b", size, true), epoch) {
		if len(o.Down.Peers) > 0 {
			t.Errorf("introduced to %v, want nobody: a is complete", o.Down.Peers)
		}
	}
	// When the grace is over, b is served by leases on a.
	got := grants(l.Tick(epoch.Add(3 * time.Second)))["b"]
	if len(got) == 0 || got[0].Source != "a" {
		t.Errorf("late joiner got %+v, want leases on a", got)
	}
}

func TestStarvedIsToldOnce(t *testing.T) {
	const size = 8 << 20
	l := newLarge(t, size, Params{})
	starved := 0
	count := func(out []Out) {
		for _, o := range out {
			if o.Down.Starved {
				starved++
			}
		}
	}
	count(l.Join(hello("a", size, false), epoch))
	count(l.Tick(epoch.Add(time.Second)))
	if starved != 1 {
		t.Errorf("told %d times, want once", starved)
	}
	if got := grants(l.SetHolders([]string{"h"}, epoch)); len(got["a"]) == 0 {
		t.Error("no lease although a holder appeared")
	}
}

// TestAllHaveAboutAsManyPeers: whether one comes first or last.
func TestAllHaveAboutAsManyPeers(t *testing.T) {
	const size, most = 8 << 20, 14
	l := newLarge(t, size, Params{MaxPeers: most})
	met := map[string]map[string]bool{}
	meet := func(out []Out) {
		for _, o := range out {
			for _, id := range o.Down.Peers {
				for _, pair := range [][2]string{{o.To, id}, {id, o.To}} {
					if met[pair[0]] == nil {
						met[pair[0]] = map[string]bool{}
					}
					if met[pair[0]][pair[1]] || pair[0] == pair[1] {
						t.Errorf("%s was introduced to %s before", pair[0], pair[1])
					}
					met[pair[0]][pair[1]] = true
				}
			}
		}
	}
	for i := range 400 {
		meet(l.Join(hello(fmt.Sprint(i), size, true), epoch))
		if n := len(met[fmt.Sprint(i)]); n != min(i, most/2) {
			t.Fatalf("number %d met %d others when it joined", i, n)
		}
	}
	for i := range 3 {
		meet(l.Tick(epoch.Add(time.Duration(i) * time.Second)))
	}
	for id, others := range met {
		if n := len(others); n < most || n > 5*most/2 {
			t.Errorf("%s has %d peers, want %d to %d", id, n, most, 5*most/2)
		}
	}
	// Who leaves makes room.
	for id := range met["7"] {
		l.Leave(id, epoch)
	}
	met = map[string]map[string]bool{}
	meet(l.Tick(epoch.Add(3 * time.Second)))
	if n := len(met["7"]); n < most {
		t.Errorf("met %d others after all peers have left, want %d", n, most)
	}
}

// TestNextLeaseComesInTime: before the last one is over, so that a source that
// answers slowly is asked early enough.
func TestNextLeaseComesInTime(t *testing.T) {
	for _, c := range []struct{ pieces, after int }{{8, 6}, {4, 3}, {3, 2}, {2, 1}, {1, 1}} {
		const size = 512 << 20
		g, err := chunker.GeometryOf(size)
		if err != nil {
			t.Fatal(err)
		}
		l := newLarge(t, size, Params{LeaseMin: int64(c.pieces) * g.PieceLength, LeaseTime: time.Nanosecond})
		var first []Out
		for i := range 6 { // one lease each
			first = l.Join(hello(fmt.Sprint(i), size, true), epoch)
		}
		got := grants(first)["5"]
		for k := range 3 { // the first ones, until its speed is known, are longer
			if len(got) != 1 || k == 2 && got[0].Count != c.pieces {
				t.Fatalf("leases %+v, want one of %d pieces", got, c.pieces)
			}
			ls := got[0]
			got = nil
			for i := range ls.Count {
				out := l.Handle("5", Up{Have: []PieceSum{{Index: ls.First + i, Sum: chunker.SumOf(nil)}}}, epoch.Add(time.Second))
				next := grants(out)["5"]
				if n := len(next); k == 2 && (n != 0 && i+1 != c.after || n != 1 && i+1 == c.after) {
					t.Errorf("%d new leases after %d pieces of %d, want one after %d", n, i+1, ls.Count, c.after)
				}
				got = append(got, next...)
			}
		}
	}
}

// check verifies the invariants that Large documents.
func (l *Large) check(now time.Time) error {
	under := map[*lease]int{}
	frees := 0
	for i := range l.pieces {
		if l.free(i) {
			frees++
		}
	}
	if frees != l.frees {
		return fmt.Errorf("%d pieces are free, %d recorded", frees, l.frees)
	}
	lacking := 0
	for _, p := range l.sorted {
		if l.pullers[p.id] != p {
			return fmt.Errorf("%s is listed and not in session", p.id)
		}
		if !p.complete {
			lacking++
		}
	}
	if lacking != l.lacking || len(l.sorted) != len(l.pullers) {
		return fmt.Errorf("%d of %d listed pullers are incomplete, %d of %d recorded", lacking, len(l.sorted), l.lacking, len(l.pullers))
	}
	for i := range l.pieces {
		s := &l.pieces[i]
		owners := int32(0)
		for _, p := range l.pullers {
			if p.have.Has(i) && (!p.complete || !p.graceEnd.IsZero()) {
				owners++
			}
		}
		if owners != s.owners {
			return fmt.Errorf("piece %d: %d owners counted, %d recorded", i, owners, s.owners)
		}
		if s.leased == nil {
			if s.owners == 0 && i < l.cursor {
				return fmt.Errorf("piece %d is free before the cursor %d", i, l.cursor)
			}
			continue
		}
		under[s.leased]++
		if s.leased.to.leases[s.leased.ID] != s.leased {
			return fmt.Errorf("piece %d is under a lease that its puller does not have", i)
		}
		if s.owners > 0 {
			return fmt.Errorf("piece %d is leased and owned", i)
		}
	}
	origin, later, holders := 0, 0, map[string]int{}
	for _, p := range l.pullers {
		if p.later {
			later += len(p.leases)
		}
		if p.complete && len(p.leases) > 0 {
			return fmt.Errorf("%s is complete and has leases", p.id)
		}
		for _, ls := range p.leases {
			if under[ls] != ls.left || ls.left == 0 {
				return fmt.Errorf("lease %d of %s: %d pieces, %d recorded", ls.ID, p.id, under[ls], ls.left)
			}
			if ls.Source == p.id {
				return fmt.Errorf("%s is its own source", p.id)
			}
			if ls.Source == "" {
				origin++
			} else {
				holders[ls.Source]++
			}
		}
	}
	if origin != l.originOut || origin > l.p.OriginStreams {
		return fmt.Errorf("%d leases on the origin, %d recorded, at most %d", origin, l.originOut, l.p.OriginStreams)
	}
	if later != l.laterOut {
		return fmt.Errorf("%d leases of later pullers, %d recorded", later, l.laterOut)
	}
	for h, n := range holders {
		if rec, ok := l.holders[h]; ok && (n != rec || n > l.p.HolderStreams) {
			return fmt.Errorf("%d leases on %s, recorded %d, at most %d", n, h, rec, l.p.HolderStreams)
		}
	}
	// Nothing usable lies idle.
	if l.lacking > 0 && l.nextFree() >= 0 {
		per := streamsPerPuller(l.lacking)
		for _, p := range l.pullers {
			if p.complete || !p.room(per) || p.later && l.laterOut >= l.p.LaterStreams {
				continue
			}
			if s, ok := l.source(p, now); ok {
				return fmt.Errorf("%s could fetch piece %d from %q and has no lease on it", p.id, l.nextFree(), s)
			}
		}
	}
	return nil
}

// TestLargeInvariants drives the machine with arbitrary events of honest and
// dishonest pullers.
func TestLargeInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(2*chunker.MinPieceLength, 64*chunker.MinPieceLength).Draw(t, "size")
		g, err := chunker.GeometryOf(size)
		if err != nil {
			t.Fatal(err)
		}
		l := NewLarge(Params{OriginStreams: 5, HolderStreams: 3, MaxPeers: 3}, g, rand.New(rand.NewPCG(3, 4)))
		now := epoch
		node := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
		piece := rapid.IntRange(0, g.NumPieces()-1)
		sum := func(i int) chunker.Sum { return chunker.SumOf([]byte{byte(i)}) }
		done := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
			if err := l.check(now); err != nil {
				t.Fatal(err)
			}
		}
		leaseOf := func(n string) (uint64, *lease) {
			if p := l.pullers[n]; p != nil {
				if ids := sortedIDs(p.leases); len(ids) > 0 {
					return ids[0], p.leases[ids[0]]
				}
			}
			return 0, nil
		}
		t.Repeat(map[string]func(*rapid.T){
			"join": func(t *rapid.T) {
				n := node.Draw(t, "node")
				l.Join(hello(n, size, rapid.Bool().Draw(t, "origin")), now)
				done(nil)
			},
			"later": func(t *rapid.T) {
				n, later := node.Draw(t, "node"), rapid.Bool().Draw(t, "later")
				l.Handle(n, Up{Later: &later}, now)
				done(nil)
			},
			"leave": func(t *rapid.T) { l.Leave(node.Draw(t, "node"), now); done(nil) },
			"have": func(t *rapid.T) {
				i := piece.Draw(t, "piece")
				l.Handle(node.Draw(t, "node"), Up{Have: []PieceSum{{Index: i, Sum: sum(rapid.IntRange(0, 1).Draw(t, "v") + i)}}}, now)
				done(nil)
			},
			"fulfil": func(t *rapid.T) {
				n := node.Draw(t, "node")
				if _, ls := leaseOf(n); ls != nil {
					for i := ls.First; i < ls.First+ls.Count; i++ {
						l.Handle(n, Up{Have: []PieceSum{{Index: i, Sum: sum(i)}}}, now)
					}
				}
				done(nil)
			},
			"got": func(t *rapid.T) {
				l.Handle(node.Draw(t, "node"), Up{Got: []int{piece.Draw(t, "piece")}}, now)
				done(nil)
			},
			"lost": func(t *rapid.T) {
				l.Handle(node.Draw(t, "node"), Up{Lost: []int{piece.Draw(t, "piece")}}, now)
				done(nil)
			},
			"fail": func(t *rapid.T) {
				n := node.Draw(t, "node")
				id, _ := leaseOf(n)
				reason := rapid.SampledFrom([]string{FailNoRange, FailNotFound, FailSource, FailCorrupt, "?"}).Draw(t, "reason")
				l.Handle(n, Up{Failed: []Failure{{id, reason}}}, now)
				done(nil)
			},
			"progress": func(t *rapid.T) {
				n := node.Draw(t, "node")
				id, _ := leaseOf(n)
				l.Handle(n, Up{Progress: []Progress{{id, rapid.Int64Range(0, 1<<30).Draw(t, "bytes")}}}, now)
				done(nil)
			},
			"dispute": func(t *rapid.T) {
				l.Handle(node.Draw(t, "node"), Up{Disputes: []Dispute{{piece.Draw(t, "piece"), node.Draw(t, "by")}}}, now)
				done(nil)
			},
			"whole": func(t *rapid.T) {
				l.Handle(node.Draw(t, "node"), Up{Whole: true, WholeSize: size}, now)
				done(nil)
			},
			"holders": func(t *rapid.T) {
				l.SetHolders(rapid.SliceOfDistinct(node, func(s string) string { return s }).Draw(t, "holders"), now)
				done(nil)
			},
			"tick": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 8000).Draw(t, "ms")) * time.Millisecond)
				l.Tick(now)
				done(nil)
			},
		})
	})
}

// TestOneCopyLeavesTheRegistry runs honest pullers that fulfil every lease and
// trade every piece, with nodes joining late and dying, and counts what was
// taken from the origin.
func TestOneCopyLeavesTheRegistry(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const size = 48 << 20
		g, err := chunker.GeometryOf(size)
		if err != nil {
			t.Fatal(err)
		}
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		l := NewLarge(Params{}, g, rand.New(rand.NewPCG(5, 6)))
		now := epoch
		fetched := make([]int, g.NumPieces())
		queue := []Out{}
		joined := 0
		for steps := 0; ; steps++ {
			if steps > 100_000 {
				t.Fatal("the swarm does not finish")
			}
			if joined < n && (joined == 0 || rapid.IntRange(0, 9).Draw(t, "join") == 0) {
				queue = append(queue, l.Join(hello(fmt.Sprint(joined), size, true), now)...)
				joined++
			}
			if len(queue) == 0 {
				if joined == n {
					break
				}
				continue
			}
			o := queue[0]
			queue = queue[1:]
			for _, ls := range o.Down.Grants {
				for i := ls.First; i < ls.First+ls.Count; i++ {
					if ls.Source == "" {
						fetched[i]++
					}
					queue = append(queue, l.Handle(o.To, Up{Have: []PieceSum{{Index: i, Sum: chunker.SumOf(nil)}}}, now)...)
				}
			}
			now = now.Add(time.Millisecond)
		}
		for i, c := range fetched {
			if c != 1 {
				t.Fatalf("piece %d left the registry %d times", i, c)
			}
		}
	})
}

// TestMorePeersAreOldOnesToo: who asks for more may not have reached those it was
// introduced to before.
func TestMorePeersAreOldOnesToo(t *testing.T) {
	const size = 8 << 20
	l := newLarge(t, size, Params{})
	for i := range 4 {
		l.Join(hello(fmt.Sprint(i), size, true), epoch)
	}
	l.Handle("2", Up{Whole: true, WholeSize: size}, epoch)
	for _, o := range l.Handle("3", Up{MorePeers: true}, epoch) {
		if o.To == "3" && len(o.Down.Peers) > 0 {
			if want := []string{"0", "1"}; !slices.Equal(o.Down.Peers, want) {
				t.Errorf("told of %v, want %v", o.Down.Peers, want)
			}
			return
		}
	}
	t.Error("told of nobody")
}

func TestLonely(t *testing.T) {
	for _, c := range []struct {
		peers, pullers int
		want           bool
	}{{0, 1, false}, {0, 2, true}, {6, 8, true}, {7, 8, false}, {6, 1000, true}, {7, 1000, false}} {
		if got := Lonely(c.peers, c.pullers); got != c.want {
			t.Errorf("%d peers of %d pullers: lonely %v", c.peers, c.pullers, got)
		}
	}
}
