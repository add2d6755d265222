package tracker

import (
	"cmp"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// inventory is who holds which blob whole, as the nodes announced it, and what
// tags resolved to. Soft state: entries that are not refreshed expire.
type inventory struct {
	ttl   time.Duration
	blobs map[digest.Digest]*entry
	tags  map[string]*tag
	spans map[string]*tag // see SpanRef
}

type entry struct {
	size  int64
	nodes map[string]time.Time // last announced
}

// maxTags and maxSpans bound the memory of a tracker that is told many references,
// about 400 bytes each; the oldest are forgotten first. So many spans are 16 GiB
// that are read lazily at one time.
const (
	maxTags  = 16384
	maxSpans = 32768
)

func newInventory(ttl time.Duration) *inventory {
	return &inventory{ttl: ttl, blobs: map[digest.Digest]*entry{}, tags: map[string]*tag{}, spans: map[string]*tag{}}
}

// add lists a holder.
func (v *inventory) add(d digest.Digest, size int64, node string, now time.Time) {
	e := v.blobs[d]
	if e == nil {
		e = &entry{nodes: map[string]time.Time{}}
		v.blobs[d] = e
	}
	if size > 0 {
		e.size = size
	}
	e.nodes[node] = now
}

// remove reports whether node was listed.
func (v *inventory) remove(d digest.Digest, node string) bool {
	e := v.blobs[d]
	if e == nil {
		return false
	}
	_, was := e.nodes[node]
	delete(e.nodes, node)
	if len(e.nodes) == 0 {
		delete(v.blobs, d)
	}
	return was
}

// holders lists the nodes that hold d, sorted, of those that are live.
func (v *inventory) holders(d digest.Digest, live func(string) bool) (int64, []string) {
	e := v.blobs[d]
	if e == nil {
		return 0, nil
	}
	nodes := make([]string, 0, len(e.nodes))
	for n := range e.nodes {
		if live(n) {
			nodes = append(nodes, n)
		}
	}
	slices.Sort(nodes)
	return e.size, nodes
}

// expire forgets what was not refreshed within the TTL.
func (v *inventory) expire(now time.Time) {
	for d, e := range v.blobs {
		for n, at := range e.nodes {
			if now.Sub(at) > v.ttl {
				delete(e.nodes, n)
			}
		}
		if len(e.nodes) == 0 {
			delete(v.blobs, d)
		}
	}
	forget(v.tags, maxTags)
	forget(v.spans, maxSpans)
}

// forget drops the oldest tags beyond limit.
func forget(tags map[string]*tag, limit int) {
	if len(tags) <= limit {
		return
	}
	type aged struct {
		ref string
		at  time.Time
	}
	all := make([]aged, 0, len(tags))
	for ref, t := range tags {
		all = append(all, aged{ref, t.at})
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.ref, b.ref)) })
	for _, a := range all[:len(all)-limit] {
		delete(tags, a.ref)
	}
}
