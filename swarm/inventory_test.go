package swarm

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

func TestDoublesAreDroppedOnceContainerdKeepsThem(t *testing.T) {
	c := newCluster(t, 1)
	n := c.nodes[0]
	data := []byte("a layer")
	d := digest.FromBytes(data)
	if err := n.store.PutBytes(d, data); err != nil {
		t.Fatal(err)
	}
	n.Announce([]Held{{Digest: d, Size: int64(len(data))}}, nil)
	if got := n.inv.doubles(time.Now()); len(got) != 0 {
		t.Errorf("%v would be dropped although containerd has just committed it", got)
	}
	if got := n.inv.doubles(time.Now().Add(dropAfter)); len(got) != 1 || got[0] != d {
		t.Errorf("after %v %v would be dropped, want the blob", dropAfter, got)
	}
	// containerd discarded it: ours is the only copy, and stays announced.
	n.Announce(nil, []digest.Digest{d})
	if got := n.inv.doubles(time.Now().Add(dropAfter)); len(got) != 0 {
		t.Errorf("%v would be dropped although containerd no longer has it", got)
	}
	until(t, "the announcement", func() bool {
		_, nodes := n.tracker.Holders(d)
		return len(nodes) == 1
	})
}
