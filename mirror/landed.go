package mirror

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm"
)

// Ways that content comes into containerd.
const (
	throughMirror    = "mirror"
	throughElsewhere = "elsewhere"
)

// maxDelivered bounds what is remembered of deliveries, about 150 bytes each.
// containerd commits a blob within minutes of its delivery, and an image has a
// hundred blobs at most.
const maxDelivered = 4096

// delivered are the digests that clients were lately sent something of.
type delivered struct {
	mu sync.Mutex
	c  *simplelru.LRU[digest.Digest, struct{}]
}

func newDelivered() delivered {
	return delivered{c: newLRU[digest.Digest, struct{}](maxDelivered)}
}

func (d *delivered) add(sum digest.Digest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.c.Add(sum, struct{}{})
}

// take reports whether the digest is there, and forgets it: the next time it may
// come another way.
func (d *delivered) take(sum digest.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.c.Remove(sum)
}

// Landed tells the mirror which blobs came into containerd's content store just
// now. It counts those that it did not deliver: a containerd that pulls without
// asking here is seen by nothing else.
func (m *Mirror) Landed(blobs []swarm.Held) {
	for _, b := range blobs {
		way := throughElsewhere
		if m.delivered.take(b.Digest) {
			way = throughMirror
		}
		m.met.landed.WithLabelValues(way).Inc()
	}
}
