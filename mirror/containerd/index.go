package containerd

import (
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm"
)

// entry is what is remembered of a blob. With its key it takes about 100
// bytes of a map, so that 1,000 blobs are nothing and 100,000 are bearable.
type entry struct {
	// size in bytes, by containerd's metadata; > 0.
	size int64
	// namespace is one in which the blob can be read through the API.
	namespace string
	// damaged says that the blob's file is not of that size: it is known, and
	// not held.
	damaged bool
	// kept says that the last walk found the blob referred to, or referring to
	// others.
	kept bool
	// seen is the walk that saw it last.
	seen uint64
}

// index is what containerd holds, as far as is known. Lookups are for
// everybody; one goroutine, the follower, changes it.
type index struct {
	mu      sync.RWMutex
	entries map[key]entry
	walk    uint64
	// held and bytes count what is not damaged.
	held  int
	bytes int64
}

func newIndex() *index { return &index{entries: map[key]entry{}} }

// lookup returns a blob that is held.
func (x *index) lookup(k key) (entry, bool) {
	e, ok := x.known(k)
	return e, ok && !e.damaged
}

// known returns a blob that is held or damaged.
func (x *index) known(k key) (entry, bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	e, ok := x.entries[k]
	return e, ok
}

// counts of what is held, and of what is damaged.
func (x *index) counts() (held int, bytes int64, damaged int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.held, x.bytes, len(x.entries) - x.held
}

// put takes a blob in, or what is new about it, and notes the difference to
// what was held before.
func (x *index) put(k key, e entry, c *change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old, known := x.entries[k]
	e.seen, e.kept = x.walk, old.kept
	x.entries[k] = e
	x.account(k, old, known && !old.damaged, e, !e.damaged, c)
}

// remove forgets a blob.
func (x *index) remove(k key, c *change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old, known := x.entries[k]
	delete(x.entries, k)
	x.account(k, old, known && !old.damaged, entry{}, false, c)
}

// begin starts a walk: what is put from now on has been seen by it.
func (x *index) begin() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.walk++
}

// sweep ends a walk that came to its end: what it did not see is gone, and of
// the rest it knows what is referred to.
func (x *index) sweep(referred map[key]bool, c *change) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for k, e := range x.entries {
		switch {
		case e.seen != x.walk:
			delete(x.entries, k)
			x.account(k, e, !e.damaged, entry{}, false, c)
		case e.kept != referred[k]:
			e.kept = referred[k]
			x.entries[k] = e
		}
	}
}

func (x *index) account(k key, old entry, was bool, e entry, is bool, c *change) {
	if was {
		x.held--
		x.bytes -= old.size
	}
	if is {
		x.held++
		x.bytes += e.size
	}
	switch {
	case is && (!was || old.size != e.size):
		c.add(k, e.size)
	case was && !is:
		c.drop(k)
	}
}

// change is the difference between two states of the index: the last word on
// each digest.
type change struct {
	added   map[key]int64
	removed map[key]struct{}
}

func (c *change) add(k key, size int64) {
	if c.added == nil {
		c.added = map[key]int64{}
	}
	c.added[k] = size
	delete(c.removed, k)
}

func (c *change) drop(k key) {
	if c.removed == nil {
		c.removed = map[key]struct{}{}
	}
	c.removed[k] = struct{}{}
	delete(c.added, k)
}

// report passes the change on, if there is one.
func (c *change) report(to OnChange) {
	if len(c.added)+len(c.removed) == 0 {
		return
	}
	added := make([]swarm.Held, 0, len(c.added))
	for k, size := range c.added {
		added = append(added, swarm.Held{Digest: k.digest(), Size: size})
	}
	removed := make([]digest.Digest, 0, len(c.removed))
	for k := range c.removed {
		removed = append(removed, k.digest())
	}
	to(added, removed)
}
