package containerd

import (
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/go-digest"
	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/swarm"
)

// Whoever adds up all changes knows what is held.
func TestIndexTellsAllChanges(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		x := newIndex()
		told, model := map[digest.Digest]int64{}, map[key]entry{}
		for range rapid.IntRange(1, 20).Draw(t, "batches") {
			var c change
			walk := rapid.Bool().Draw(t, "walk")
			seen := map[key]bool{}
			if walk {
				x.begin()
			}
			for range rapid.IntRange(0, 10).Draw(t, "steps") {
				k := key{byte(rapid.IntRange(0, 5).Draw(t, "key"))}
				if !walk && rapid.Bool().Draw(t, "remove") {
					x.remove(k, &c)
					delete(model, k)
					continue
				}
				e := entry{size: int64(k[0]) + 1, namespace: "a", damaged: rapid.IntRange(0, 3).Draw(t, "damaged") == 0}
				x.put(k, e, &c)
				model[k], seen[k] = e, true
			}
			if walk && rapid.Bool().Draw(t, "complete") {
				x.sweep(nil, &c)
				for k := range model {
					if !seen[k] {
						delete(model, k)
					}
				}
			}
			c.report(func(added []swarm.Held, removed []digest.Digest) {
				if len(added)+len(removed) == 0 {
					t.Fatal("told of nothing")
				}
				for _, d := range removed {
					delete(told, d)
				}
				for _, h := range added {
					told[h.Digest] = h.Size
				}
			})
			want, bytes, damaged := map[digest.Digest]int64{}, int64(0), 0
			for k, e := range model {
				if e.damaged {
					damaged++
					continue
				}
				want[k.digest()] = e.size
				bytes += e.size
				if got, ok := x.lookup(k); !ok || got.size != e.size {
					t.Fatalf("lookup: %v %v", got, ok)
				}
			}
			if diff := cmp.Diff(want, told, cmpopts.EquateEmpty()); diff != "" {
				t.Fatal(diff)
			}
			if h, b, dm := x.counts(); h != len(want) || b != bytes || dm != damaged {
				t.Fatalf("counts %d %d %d, want %d %d %d", h, b, dm, len(want), bytes, damaged)
			}
		}
	})
}

// An idle node with 10,000 blobs keeps about a MiB for them.
func TestIndexIsSmall(t *testing.T) {
	const blobs, perBlob = 10_000, 160
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	x := newIndex()
	x.begin()
	for i := range blobs {
		k, _ := keyOf(digest.FromBytes([]byte{byte(i), byte(i >> 8)}))
		x.put(k, entry{size: 1, namespace: "k8s.io"}, &change{})
	}
	if got := heap() - before; got > blobs*perBlob {
		t.Errorf("%d bytes for each blob, want at most %d", got/blobs, perBlob)
	}
	runtime.KeepAlive(x)
}
