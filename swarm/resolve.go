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

// tagKey is what the nodes responsible for a reference are ranked by.
func tagKey(ref string) string { return "tag " + ref }

// Resolve returns what a reference (registry/repository:tag) points to, not
// older than TagTTL: known in the cluster, or asked from upstream by one node
// while the others wait. When upstream fails, the last known answer is returned
// instead, with the time that it is of in last, which is zero otherwise. An
// upstream error wrapping ErrNotFound is final and returned, since the tag is gone.
func (n *Node) Resolve(ctx context.Context, ref string, upstream func(context.Context) (Descriptor, error)) (desc Descriptor, last time.Time, err error) {
	if err := tracker.CheckRef(ref); err != nil {
		return Descriptor{}, time.Time{}, fmt.Errorf("resolve: %w: %w", ErrNotFound, err)
	}
	if k, ok := n.tags.c.Get(ref); ok && time.Since(k.at) < n.cfg.TagTTL {
		return k.desc, time.Time{}, nil
	}
	ctx, span := StartSpan(ctx, "resolve tag", trace.SpanKindInternal)
	defer func() { EndSpan(span, err) }()
	ranked := n.rank(tagKey(ref))
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
	if k, ok := n.recall(ctx, ranked, ref); ok {
		return k.desc, k.at, nil
	}
	return Descriptor{}, time.Time{}, err
}

// Recall returns what a reference last pointed to and when upstream said so, however
// long ago: for a node to which upstream does not answer. It neither asks upstream nor
// waits for a node that does. The error wraps ErrNotFound if nobody knows.
func (n *Node) Recall(ctx context.Context, ref string) (desc Descriptor, last time.Time, err error) {
	err = tracker.CheckRef(ref)
	if err == nil {
		if k, ok := n.recall(ctx, n.rank(tagKey(ref)), ref); ok {
			return k.desc, k.at, nil
		}
		err = ctx.Err()
	}
	return Descriptor{}, time.Time{}, fmt.Errorf("recall %.200s: %w", ref, errors.Join(ErrNotFound, err))
}

// recall asks the cluster, and then this node's own memory.
func (n *Node) recall(ctx context.Context, ranked []members.Member, ref string) (knownTag, bool) {
	var k knownTag
	r := n.lastWord(ctx, ranked, ref)
	if r != nil {
		k = n.knowTag(ref, r)
	} else if own, ok := n.tags.c.Get(ref); ok {
		k = own
	} else {
		return k, false
	}
	n.met.fallbacks.WithLabelValues(staleTag).Inc()
	return k, true
}

// agreed returns what the cluster knows of a reference, no older than ttl, while
// another node asks upstream also a moment later, up to wait. If not ok, this node is to ask, and
// to publish what it hears.
func (n *Node) agreed(ctx context.Context, ranked []members.Member, ref string, ttl, wait time.Duration) (known tracker.Resolution, ok bool, err error) {
	if len(ranked) == 0 {
		return known, false, nil
	}
	deadline := time.Now().Add(wait)
	for {
		a, err := n.lookupTag(ctx, ranked[0], tagLookup{Ref: ref, TTL: ttl})
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

// lookupTag asks one member.
func (n *Node) lookupTag(ctx context.Context, m members.Member, q tagLookup) (a tracker.TagAnswer, err error) {
	switch {
	case m.ID != n.self():
		if err = n.peers.call(ctx, m, http.MethodPost, pathLookup, q, &a); err != nil {
			n.markDeaf(m.ID, err)
		}
	case q.Last:
		a.Known = n.tracker.Last(q.Ref)
	default:
		a = n.tracker.Lookup(q.Ref, m.ID, q.TTL)
	}
	if err == nil && a.Known != nil {
		if err = a.Known.Check(); err != nil {
			err = fmt.Errorf("look up %s: node %s answers: %w", q.Ref, m.ID, err)
		}
	}
	return a, err
}

// lastWord asks members in turn until one knows what the reference last pointed to.
func (n *Node) lastWord(ctx context.Context, ranked []members.Member, ref string) *tracker.Resolution {
	for _, m := range first(ranked, staleAsk) {
		if a, err := n.lookupTag(ctx, m, tagLookup{Ref: ref, Last: true}); err == nil && a.Known != nil {
			return a.Known
		}
	}
	return nil
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
