package members

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// some draws distinct members.
func some(lo, hi int) *rapid.Generator[[]Member] {
	return rapid.Map(
		rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9-]{1,20}`), lo, hi, rapid.ID[string]),
		func(ids []string) []Member {
			var ms []Member
			for _, id := range ids {
				ms = append(ms, Member{ID: id, Host: "h-" + id})
			}
			return ms
		})
}

// TestRankAgreement: a permutation of the members, the same whatever the order
// of the input, which is left alone.
func TestRankAgreement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := some(0, 30).Draw(t, "live")
		key := rapid.String().Draw(t, "key")
		before := slices.Clone(live)
		ranked := Rank(key, live)
		if !slices.Equal(before, live) {
			t.Fatal("the input was changed")
		}
		shuffled := rapid.Permutation(live).Draw(t, "shuffled")
		if diff := cmp.Diff(ranked, Rank(key, shuffled)); diff != "" {
			t.Fatalf("order of the input matters:\n%s", diff)
		}
		if diff := cmp.Diff(sorted(ids(live)), sorted(ids(ranked))); diff != "" {
			t.Fatalf("members lost or gained:\n%s", diff)
		}
	})
}

// TestRankDisruption: when a member goes, the order of the others stays, so
// only its keys move, each to the standby; joining is the same backwards.
func TestRankDisruption(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := some(1, 30).Draw(t, "live")
		key := rapid.String().Draw(t, "key")
		gone := rapid.SampledFrom(live).Draw(t, "gone")
		isGone := func(m Member) bool { return m.ID == gone.ID }
		want := slices.DeleteFunc(Rank(key, live), isGone)
		got := Rank(key, slices.DeleteFunc(slices.Clone(live), isGone))
		if diff := cmp.Diff(ids(want), ids(got)); diff != "" {
			t.Fatalf("order after %s went (-want +got):\n%s", gone.ID, diff)
		}
	})
}

// TestTop: the same as the beginning of Rank.
func TestTop(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := some(0, 30).Draw(t, "live")
		key := rapid.String().Draw(t, "key")
		n := rapid.IntRange(-1, 32).Draw(t, "n")
		want := Rank(key, live)
		want = want[:max(min(n, len(want)), 0)]
		if diff := cmp.Diff(want, Top(key, n, live)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestRankIgnoresAddresses: a node that moves keeps its keys.
func TestRankIgnoresAddresses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		live := some(1, 30).Draw(t, "live")
		key := rapid.String().Draw(t, "key")
		moved := slices.Clone(live)
		for i := range moved {
			moved[i].Host, moved[i].Zone = "elsewhere", "z"
		}
		if diff := cmp.Diff(ids(Rank(key, live)), ids(Rank(key, moved))); diff != "" {
			t.Fatal(diff)
		}
	})
}

// TestRankBalance: names as they are in practice, differing in a few
// characters only, get equal shares: as first, as second, and as second to any
// particular first. The bound is five standard deviations of a fair draw.
func TestRankBalance(t *testing.T) {
	for _, n := range []int{2, 3, 8, 50} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			var live []Member
			for i := range n {
				live = append(live, Member{ID: fmt.Sprintf("ip-10-0-0-%d.ec2.internal", i)})
			}
			const keys = 5000
			first, second := map[string]int{}, map[string]int{}
			for i := range keys {
				r := Top(fmt.Sprintf("sha256:%064x", i), 2, live)
				first[r[0].ID]++
				if r[0].ID == live[0].ID {
					second[r[1].ID]++
				}
			}
			fair := func(what string, counts map[string]int, ids []Member, draws int) {
				p := 1 / float64(len(ids))
				mean := float64(draws) * p
				bound := 5 * math.Sqrt(mean*(1-p))
				for _, m := range ids {
					if got := float64(counts[m.ID]); math.Abs(got-mean) > bound+1 {
						t.Errorf("%s is %s for %v keys, fair are %.0f ± %.0f", m.ID, what, got, mean, bound)
					}
				}
			}
			fair("first", first, live, keys)
			fair("second to "+live[0].ID, second, live[1:], first[live[0].ID])
		})
	}
}

// TestRankGolden fixes the hash: nodes of different versions must agree. The
// orders were computed by another implementation.
func TestRankGolden(t *testing.T) {
	var live []Member
	for i := range 6 {
		live = append(live, Member{ID: fmt.Sprintf("node-%d", i)})
	}
	for key, want := range map[string][]string{
		"":           {"node-2", "node-3", "node-1", "node-4", "node-5", "node-0"},
		"sha256:abc": {"node-2", "node-1", "node-3", "node-5", "node-4", "node-0"},
		"tag":        {"node-4", "node-0", "node-5", "node-3", "node-2", "node-1"},
	} {
		if diff := cmp.Diff(want, ids(Rank(key, live))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", key, diff)
		}
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

func BenchmarkRank(b *testing.B) {
	var live []Member
	for i := range 1000 {
		live = append(live, Member{ID: fmt.Sprintf("node-%d", i)})
	}
	const key = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	b.Run("all of 1000", func(b *testing.B) {
		for b.Loop() {
			Rank(key, live)
		}
	})
	b.Run("top 2 of 1000", func(b *testing.B) {
		for b.Loop() {
			Top(key, 2, live)
		}
	})
}
