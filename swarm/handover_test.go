package swarm

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// severable is a membership that can be left alone, as a node that crashes is with
// its last words.
type severable struct {
	Membership
	cut *atomic.Bool
}

func (s severable) Live() []members.Member {
	if s.cut.Load() {
		return []members.Member{s.Self()}
	}
	return s.Membership.Live()
}

func down(context.Context) (Descriptor, error) {
	return Descriptor{}, fmt.Errorf("registry: %w", ErrUnavailable)
}

// TestReferencesSurviveRestarts: when each node of a cluster has restarted, one after
// the other, what the registry said before is still known, and of its age.
func TestReferencesSurviveRestarts(t *testing.T) {
	for name, crash := range map[string]bool{"stopped": false, "crashed": true} {
		t.Run(name, func(t *testing.T) {
			cuts := make([]atomic.Bool, 5)
			change := func(i int) func(*Config) {
				cuts[i].Store(false)
				return func(c *Config) {
					c.TagTTL = time.Millisecond
					c.Members = severable{c.Members, &cuts[i]}
				}
			}
			c := newCluster(t, 0)
			for i := range cuts {
				c.add(change(i))
			}
			refs := map[string]Descriptor{}
			for i := range 2*maxReferences + 1 {
				refs[fmt.Sprintf("r/x:%d", i)] = Descriptor{MediaType: "m", Digest: digest.FromString(fmt.Sprint(i)), Size: int64(i)}
			}
			const age = time.Hour
			for ref, d := range refs {
				n := c.nodes[0]
				n.publishTag(t.Context(), n.rank(tagKey(ref)), ref, &tracker.Resolution{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size, Age: age})
			}
			// twice says that two nodes know every reference: one may fail.
			twice := func() bool {
				known := map[string]int{}
				for _, n := range c.nodes {
					for _, r := range n.tracker.References() {
						known[r.Ref]++
					}
				}
				for ref := range refs {
					if known[ref] < 2 {
						return false
					}
				}
				return true
			}
			until(t, "the publications", twice)
			for i := range c.nodes {
				if crash {
					cuts[i].Store(true)
				}
				c.restart(i, change(i))
				if crash {
					until(t, "the handover", twice)
				}
			}
			for _, n := range c.nodes {
				for ref, want := range refs {
					got, last, err := n.Recall(t.Context(), ref)
					// What is on its way does not age.
					if old := time.Since(last); err != nil || got != want || old < age-time.Second || old > age+time.Minute {
						t.Fatalf("%s knows %s as %+v of %v ago, want %+v of %v ago: %v", n.id, ref, got, old, want, age, err)
					}
				}
				if got, _, err := n.Resolve(t.Context(), "r/x:7", down); err != nil || got != refs["r/x:7"] {
					t.Errorf("%s: %+v: %v", n.id, got, err)
				}
			}
		})
	}
}

// TestNobodyWaitsInAnOutage: what the cluster knows is told at once to all nodes that
// ask for it because upstream does not answer; none waits for another one's answer
// from there.
func TestNobodyWaitsInAnOutage(t *testing.T) {
	c := newCluster(t, 4, func(c *Config) { c.TagTTL = time.Millisecond })
	want := Descriptor{MediaType: "m", Digest: digest.FromString("v1"), Size: 3}
	const ref = "r/x@digest"
	if _, _, err := c.nodes[0].Resolve(t.Context(), ref, func(context.Context) (Descriptor, error) { return want, nil }); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	began := time.Now()
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(func() {
			for range 5 {
				if got, _, err := n.Recall(t.Context(), ref); err != nil || got != want {
					t.Errorf("%s recalls %+v: %v", n.id, got, err)
				}
				if got, _, err := n.Resolve(t.Context(), ref, down); err != nil || got != want {
					t.Errorf("%s resolves %+v: %v", n.id, got, err)
				}
			}
		})
	}
	all.Wait()
	if took := time.Since(began); took > resolveWait/2 {
		t.Errorf("it took %v, want no wait for a node that asks upstream (%v)", took, resolveWait)
	}
	if _, _, err := c.nodes[0].Recall(t.Context(), "r/x:unknown"); err == nil {
		t.Error("recalled what nobody knows")
	}
	// Who recalls something unknown does not keep another from asking.
	if _, _, err := c.nodes[1].Resolve(t.Context(), "r/x:unknown", func(context.Context) (Descriptor, error) { return want, nil }); err != nil || time.Since(began) > resolveWait {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// TestReferencesFitIntoMessages: whatever nodes publish can be handed over.
func TestReferencesFitIntoMessages(t *testing.T) {
	ref := tracker.Reference{Ref: strings.Repeat("x", 1024), Resolution: tracker.Resolution{
		MediaType: strings.Repeat("<", 255), Digest: digest.FromString("x"), Size: 1<<63 - 1, Age: 1<<63 - 1,
	}}
	if err := tracker.CheckRef(ref.Ref); err != nil {
		t.Fatal(err)
	}
	if err := ref.Check(); err != nil {
		t.Fatal(err)
	}
	var msg references
	for range maxReferences {
		msg.Refs = append(msg.Refs, ref)
	}
	p, err := json.Marshal(msg)
	if err != nil || len(p) > maxBody {
		t.Errorf("a message takes %d bytes, want at most %d: %v", len(p), maxBody, err)
	}
}
