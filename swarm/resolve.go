package swarm

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

const (
	// tagsKept bounds this node's own memory of resolved tags, about 300
	// bytes each.
	tagsKept = 4096
	// resolveWait bounds the wait for another node's upstream request, after
	// which this node asks by itself.
	resolveWait = 3 * time.Second
	// staleAsk is how many ranked members are asked for the last known
	// digest when upstream fails: the tracker, its standby, and one more in
	// case a node has just joined in front of them.
	staleAsk = 3
)

// tagCache is this node's memory of resolved tags.
type tagCache struct {
	c *lru.Cache[string, knownTag]
}

type knownTag struct {
	desc Descriptor
	at   time.Time
}

func newTagCache() *tagCache {
	c, err := lru.New[string, knownTag](tagsKept)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &tagCache{c}
}

// Resolve returns what a reference (registry/repository:tag) points to, not
// older than TagTTL: known in the cluster, or asked from upstream by one node
// while the others wait. When upstream fails, the last known answer is returned
// instead, with the time that it is of in last, which is zero otherwise. An
// upstream error wrapping ErrNotFound is final and returned, since the tag is gone.
func (n *Node) Resolve(ctx context.Context, ref string, upstream func(context.Context) (Descriptor, error)) (desc Descriptor, last time.Time, err error) {
	if ref == "" || len(ref) > maxRef {
		return Descriptor{}, time.Time{}, fmt.Errorf("resolve reference of %d bytes: %w", len(ref), ErrNotFound)
	}
	if k, ok := n.tags.c.Get(ref); ok && time.Since(k.at) < n.cfg.TagTTL {
		return k.desc, time.Time{}, nil
	}
	ctx, span := StartSpan(ctx, "resolve tag", trace.SpanKindInternal)
	defer func() { EndSpan(span, err) }()
	ranked := n.rank("tag " + ref)
	switch known, ok, err := n.agreed(ctx, ranked, ref, n.cfg.TagTTL, resolveWait); {
	case err != nil:
		return Descriptor{}, time.Time{}, err
	case ok:
		return n.knowTag(ref, &known).desc, time.Time{}, nil
	}
	desc, err = upstream(ctx)
	if err == nil {
		n.tags.c.Add(ref, knownTag{desc, time.Now()})
		n.publishTag(ctx, ranked, ref, &tracker.Resolution{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
		return desc, time.Time{}, nil
	}
	n.publishTag(ctx, first(ranked, 1), ref, nil)
	if errors.Is(err, ErrNotFound) || !errors.Is(err, ErrUnavailable) {
		return Descriptor{}, time.Time{}, err
	}
	if a, aerr := n.lookupTag(ctx, first(ranked, staleAsk), ref, 0); aerr == nil && a.Known != nil {
		n.met.fallbacks.WithLabelValues(staleTag).Inc()
		k := n.knowTag(ref, a.Known)
		return k.desc, k.at, nil
	}
	if k, ok := n.tags.c.Get(ref); ok {
		n.met.fallbacks.WithLabelValues(staleTag).Inc()
		return k.desc, k.at, nil
	}
	return Descriptor{}, time.Time{}, err
}

// agreed returns what the cluster knows of a reference, no older than ttl, while
// another node asks upstream also a moment later, up to wait. If not ok, this node is to ask, and
// to publish what it hears.
func (n *Node) agreed(ctx context.Context, ranked []members.Member, ref string, ttl, wait time.Duration) (known tracker.Resolution, ok bool, err error) {
	deadline := time.Now().Add(wait)
	for {
		a, err := n.lookupTag(ctx, first(ranked, 1), ref, ttl)
		switch {
		case err != nil && ctx.Err() != nil:
			return known, false, ctx.Err()
		case err == nil && a.Known != nil && a.Known.Age < ttl:
			return *a.Known, true, nil
		case err == nil && a.Wait && time.Now().Before(deadline):
			select {
			case <-time.After(25 * time.Millisecond):
				continue
			case <-ctx.Done():
				return known, false, ctx.Err()
			}
		}
		return known, false, nil
	}
}

func (n *Node) knowTag(ref string, r *tracker.Resolution) knownTag {
	k := knownTag{Descriptor{MediaType: r.MediaType, Digest: r.Digest, Size: r.Size}, time.Now().Add(-r.Age)}
	n.tags.c.Add(ref, k)
	return k
}

// lookupTag asks members in turn until one knows the tag; with one member, it
// returns that one's answer whatever it is.
func (n *Node) lookupTag(ctx context.Context, ask []members.Member, ref string, ttl time.Duration) (a tracker.TagAnswer, err error) {
	err = ErrUnavailable
	for _, m := range ask {
		a = tracker.TagAnswer{}
		if m.ID == n.self() {
			a, err = n.tracker.Lookup(ref, m.ID, ttl), nil
		} else if err = n.peers.call(ctx, m, http.MethodPost, pathLookup, tagLookup{Ref: ref, TTL: ttl}, &a); err != nil {
			n.markDeaf(m.ID, err)
			continue
		}
		if a.Known != nil && !validDigest(a.Known.Digest) {
			return tracker.TagAnswer{}, fmt.Errorf("look up %s: node %s answers digest %.80q", ref, m.ID, a.Known.Digest)
		}
		if a.Known != nil || len(ask) == 1 {
			return a, nil
		}
	}
	return a, err
}

// publishTag tells the tag's tracker and its standby.
func (n *Node) publishTag(ctx context.Context, ranked []members.Member, ref string, r *tracker.Resolution) {
	for _, m := range first(ranked, announceTo) {
		if m.ID == n.self() {
			n.tracker.Publish(ref, m.ID, r)
			continue
		}
		// The caller has its answer; the publication goes on without it.
		n.work.Go(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
			defer cancel()
			if err := n.peers.call(ctx, m, http.MethodPost, pathPublish, tagPublish{Ref: ref, Res: r}, nil); err != nil {
				n.markDeaf(m.ID, err)
			}
		})
	}
}
