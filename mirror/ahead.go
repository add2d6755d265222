package mirror

import (
	"context"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-dev/shoal/swarm"
)

const (
	// aheadLeast is the size from which on a layer is fetched ahead, in bytes.
	// Smaller ones are there in no time.
	aheadLeast = 4 << 20
	// aheadFirst is when a pull first looks for layers to fetch ahead: when
	// the other nodes of a rollout have begun as well. Then it does so less
	// and less often, down to every aheadMost.
	aheadFirst = 250 * time.Millisecond
	aheadMost  = 5 * time.Second
)

// worthAhead picks the layers that may be fetched ahead. An image has at most
// 127, and what a manifest has more is not looked at.
func worthAhead(layers []ocispec.Descriptor) (worth []ocispec.Descriptor) {
	for _, l := range layers[:min(len(layers), 127)] {
		if _, err := parseDigest(l.Digest.String()); err == nil && l.Size >= aheadLeast && len(l.URLs) == 0 {
			worth = append(worth, ocispec.Descriptor{Digest: l.Digest, Size: l.Size})
		}
	}
	if len(worth) < 2 {
		return nil
	}
	return worth
}

// ahead fetches the other layers of an image of which a client pulls one, as
// soon as other nodes pull them.
//
// containerd pulls three layers of an image at a time, in no fixed order. So the
// nodes of a rollout pull different ones, a registry's link is shared among all
// of them, and each node can use three in four, or three in ten, of what crosses
// it: 8 nodes took 1.2 times as long for an image of four layers as for one of a
// single layer. A node that takes part in all of them loses nothing of it, and has
// the layers when containerd asks. A layer that no other node pulls is left alone:
// perhaps nobody needs it, since its content was unpacked before.
type ahead struct {
	m    *Mirror
	p    *pull
	held map[digest.Digest]swarm.Download // nil: not needed
}

// ahead begins for the pull of one layer; end ends it and lets go of what nobody
// has asked for until then.
func (m *Mirror) ahead(ctx context.Context, p *pull) (end func()) {
	m.engaged.start(p.digest)
	e, _ := m.catalog.get(p.repo, p.digest)
	if len(e.layers) == 0 {
		return func() { m.engaged.stop(p.digest) }
	}
	a := &ahead{m: m, p: p, held: map[digest.Digest]swarm.Download{p.digest: nil}}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.run(ctx, e.layers)
	}()
	return func() {
		cancel()
		<-done
		m.engaged.stop(p.digest)
		for d, dl := range a.held {
			if dl != nil {
				dl.Close()
				m.engaged.stop(d)
			}
		}
	}
}

func (a *ahead) run(ctx context.Context, layers []ocispec.Descriptor) {
	for wait := aheadFirst; ; wait = min(2*wait, aheadMost) {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		missing := false
		for _, l := range layers {
			if _, known := a.held[l.Digest]; !known {
				missing = !a.take(ctx, l) || missing
			}
		}
		if !missing {
			return
		}
	}
}

// take fetches a layer, unless it is here or on its way; false: nobody else
// pulls it yet.
func (a *ahead) take(ctx context.Context, l ocispec.Descriptor) bool {
	if r, err := a.m.open(ctx, l.Digest); err == nil {
		_ = r.Close() // nothing was written through it
		a.held[l.Digest] = nil
		return true
	}
	if !a.m.engaged.start(l.Digest) {
		a.m.engaged.stop(l.Digest)
		a.held[l.Digest] = nil
		return true
	}
	dl := a.fetch(ctx, l)
	if dl == nil {
		a.m.engaged.stop(l.Digest)
		return false
	}
	a.held[l.Digest] = dl
	a.m.met.ahead.Inc()
	return true
}

func (a *ahead) fetch(ctx context.Context, l ocispec.Descriptor) swarm.Download {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	m, p := a.m, a.p
	if n, err := m.cfg.Swarm.Pullers(ctx, l.Digest); err != nil || n == 0 || m.cooldown.active(l.Digest, time.Now()) {
		return nil
	}
	dl, err := m.whole(ctx, p, l.Digest, l.Size, p.who.up.Origin(p.repo, l.Digest, l.Size))
	if err != nil {
		m.cfg.Log.Debug().Err(err).Str("digest", l.Digest.String()).Msg("cannot fetch a layer ahead")
		return nil
	}
	return dl
}

// engaged counts who is at a blob on this node: requests and aheads.
type engaged struct {
	mu sync.Mutex
	n  map[digest.Digest]int
}

// start says whether it is the first one.
func (e *engaged) start(d digest.Digest) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.n[d]++
	return e.n[d] == 1
}

func (e *engaged) stop(d digest.Digest) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.n[d]--; e.n[d] == 0 {
		delete(e.n, d)
	}
}
