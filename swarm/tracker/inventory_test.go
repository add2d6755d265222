package tracker

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func everyone(string) bool { return true }

func TestInventory(t *testing.T) {
	v := newInventory(time.Minute)
	v.add(blobD, 10, "b", epoch)
	v.add(blobD, 0, "a", epoch.Add(30*time.Second))
	size, nodes := v.holders(blobD, everyone)
	if diff := cmp.Diff([]string{"a", "b"}, nodes); diff != "" || size != 10 {
		t.Errorf("size %d, holders (-want +got):\n%s", size, diff)
	}
	if _, nodes = v.holders(blobD, func(n string) bool { return n == "b" }); len(nodes) != 1 {
		t.Errorf("holders %v, want only the live one", nodes)
	}
	v.expire(epoch.Add(70 * time.Second))
	if _, nodes = v.holders(blobD, everyone); len(nodes) != 1 || nodes[0] != "a" {
		t.Errorf("holders %v after b's announcement expired, want a", nodes)
	}
	if !v.remove(blobD, "a") || v.remove(blobD, "a") {
		t.Error("remove does not tell whether the node was listed")
	}
	if len(v.blobs) != 0 {
		t.Error("an entry without holders stays")
	}
}

func TestTagIsAskedByOneNode(t *testing.T) {
	v := newInventory(time.Minute)
	const ttl = 10 * time.Second
	now := epoch
	if a := v.lookup("r", "a", ttl, now); !a.Ask || a.Known != nil {
		t.Fatalf("first caller got %+v, want the order to ask", a)
	}
	if a := v.lookup("r", "b", ttl, now); !a.Wait {
		t.Fatalf("second caller got %+v, want to wait", a)
	}
	v.publish("r", "a", &Resolution{Digest: blobD}, now)
	if a := v.lookup("r", "b", ttl, now.Add(9*time.Second)); a.Known == nil || a.Ask || a.Known.Age != 9*time.Second {
		t.Fatalf("after the answer got %+v, want it, 9 s old", a)
	}
	now = now.Add(11 * time.Second)
	if a := v.lookup("r", "b", ttl, now); !a.Ask || a.Known == nil {
		t.Fatalf("after the TTL got %+v, want the order to ask and the stale answer", a)
	}
	// b's attempt fails: the next caller asks at once.
	v.publish("r", "b", nil, now)
	if a := v.lookup("r", "c", ttl, now); !a.Ask {
		t.Fatalf("after a failure got %+v, want the order to ask", a)
	}
	// c dies without a word: another asks after a while.
	if a := v.lookup("r", "d", ttl, now.Add(resolveFor)); !a.Ask {
		t.Fatalf("after the asking node fell silent got %+v, want the order to ask", a)
	}
	// An older answer does not replace a newer one.
	v.publish("r", "x", &Resolution{Digest: "sha256:old", Age: time.Hour}, now)
	if a := v.lookup("r", "y", time.Hour, now); a.Known.Digest != blobD {
		t.Errorf("an older answer replaced a newer one")
	}
}

func TestTagsAreBounded(t *testing.T) {
	v := newInventory(time.Minute)
	for i := range maxTags + 100 {
		v.publish(fmt.Sprint(i), "a", &Resolution{Digest: blobD}, epoch.Add(time.Duration(i)))
	}
	v.expire(epoch)
	if len(v.tags) != maxTags {
		t.Errorf("%d tags kept, want %d", len(v.tags), maxTags)
	}
	if _, ok := v.tags["0"]; ok {
		t.Error("the oldest tag was kept")
	}
}

// TestSpansLeaveTheTags: what is read lazily has a memory of its own.
func TestSpansLeaveTheTags(t *testing.T) {
	v := newInventory(time.Minute)
	v.publish("registry/repository:tag", "a", &Resolution{Digest: blobD}, epoch)
	for i := range int64(maxSpans + 100) {
		v.publish(SpanRef(blobD, i), "a", &Resolution{Digest: blobD}, epoch.Add(time.Duration(i)+1))
	}
	v.expire(epoch)
	if len(v.tags) != 1 || len(v.spans) != maxSpans {
		t.Errorf("%d tags and %d spans kept, want 1 and %d", len(v.tags), len(v.spans), maxSpans)
	}
	if _, ok := v.spans[SpanRef(blobD, 0)]; ok {
		t.Error("the oldest span was kept")
	}
	// The node that asks for a span has more time than for a tag.
	ref := SpanRef(blobD, -1)
	v.lookup(ref, "a", time.Minute, epoch)
	if a := v.lookup(ref, "b", time.Minute, epoch.Add(resolveFor)); !a.Wait {
		t.Errorf("after %v got %+v, want to wait", resolveFor, a)
	}
	if a := v.lookup(ref, "b", time.Minute, epoch.Add(SpanPatience)); !a.Ask {
		t.Errorf("after %v got %+v, want the order to ask", SpanPatience, a)
	}
}
