package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

const (
	// SpanLength is the unit, in bytes, in which parts of a blob are brought in from
	// the origin and shared: span i begins at byte i*SpanLength. stargz reads 50 kB
	// and up, SOCI about 2 MiB. Longer spans would bring in more that nobody reads;
	// of shorter ones there would be more to keep account of than of pieces.
	SpanLength = smallBlob
	// spanTTL is how long the cluster goes by what one node says a span is. Spans
	// do not change; but nothing in a blob's digest proves a part of it, and so a
	// node that says something wrong does harm for no longer.
	spanTTL = suspectFor
	// spanTimeout bounds the fetching of one, as that of small content.
	spanTimeout = 30 * time.Second
	// spansKept bounds this node's own memory of what spans are, about 400 bytes
	// each.
	spansKept = 16384
)

// spanCache is this node's memory of what spans are.
type spanCache = lru.Cache[string, knownSpan]

type knownSpan struct {
	digest digest.Digest
	by     string // who said so
	at     time.Time
}

func newSpanCache() *spanCache {
	c, err := lru.New[string, knownSpan](spansKept)
	if err != nil {
		panic(err) // only for a size below one
	}
	return c
}

// span is a part of a blob that this node wants: from where it is in the cluster,
// else from the origin, from which one node takes it.
//
// What a span is, the node says that took it: its digest is agreed upon like that
// of a tag, and from then on it is small content like any other.
type span struct {
	n   *Node
	r   Request
	i   int64
	ref string
	own []byte // from the origin, by this caller
	by  string // who said what the span is
}

func (n *Node) newSpan(r Request, i int64) *span {
	return &span{n: n, r: r, i: i, ref: tracker.SpanRef(r.Digest, i)}
}

// length in bytes: the last one may be shorter.
func (s *span) length() int64 { return min(SpanLength, s.r.Size-s.i*SpanLength) }

// get brings the span in.
func (s *span) get(ctx context.Context) ([]byte, Source, error) {
	n := s.n
	ranked := n.rank(tagKey(s.ref))
	d, ok, err := s.agreed(ctx, ranked)
	if err != nil {
		return nil, "", err
	}
	if !ok {
		p, err := s.fetch(ctx)
		if err == nil {
			s.share(ctx, ranked, p)
			return p, SourceOrigin, nil
		}
		n.publishTag(ctx, first(ranked, 1), s.ref, nil)
		if !errors.Is(err, ErrUnavailable) {
			return nil, "", err
		}
		// An older word is better than none.
		last := n.lastWord(ctx, ranked, s.ref)
		if last == nil {
			return nil, "", err
		}
		n.met.fallbacks.WithLabelValues(staleSpan).Inc()
		d, s.by = last.Digest, last.By
	}
	p, source, err := n.Small(ctx, d, SpanLength, s.fetch)
	if err == nil && int64(len(p)) == s.length() {
		return p, source, nil
	}
	n.spans.Remove(s.ref) // the cluster may know better by now
	switch {
	case ctx.Err() != nil:
		return nil, "", ctx.Err()
	case err == nil:
		if s.own, err = s.fetch(ctx); err != nil {
			return nil, "", err
		}
	case s.own == nil:
		return nil, "", err
	}
	// The registry itself contradicts the node that said what the span is.
	n.cfg.Log.Error().Str("digest", s.r.Digest.String()).Int64("span", s.i).Str("voucher", s.by).Dur("for", suspectFor).
		Msg("this node told the wrong digest of a part of a blob, and is not believed for a while: check its disk and memory")
	n.met.corrupt.WithLabelValues(corruptSpan).Inc()
	if s.by != "" && s.by != n.self() {
		n.addSuspect(s.by)
	}
	s.share(ctx, ranked, s.own)
	return s.own, SourceOrigin, nil
}

// agreed returns the digest that the cluster goes by; if not ok, this node is to
// fetch the span and to say.
func (s *span) agreed(ctx context.Context, ranked []members.Member) (d digest.Digest, ok bool, err error) {
	k, ok := s.n.spans.Get(s.ref)
	if !ok || time.Since(k.at) >= spanTTL {
		known, ok, err := s.n.agreed(ctx, ranked, s.ref, spanTTL, tracker.SpanPatience)
		if err != nil || !ok {
			return "", false, err
		}
		k = s.n.knowSpan(s.ref, known)
	}
	s.by = k.by
	return k.digest, !s.n.suspect(k.by), nil
}

func (n *Node) knowSpan(ref string, r tracker.Resolution) knownSpan {
	k := knownSpan{digest: r.Digest, by: r.By, at: time.Now().Add(-r.Age)}
	n.spans.Add(ref, k)
	return k
}

// fetch takes the span from the origin.
func (s *span) fetch(ctx context.Context) ([]byte, error) {
	if s.r.Origin == nil {
		return nil, fmt.Errorf("no origin: %w", ErrUnavailable)
	}
	body, err := s.r.Origin.Open(ctx, s.i*SpanLength, s.length())
	if err != nil {
		return nil, err
	}
	defer body.Close()
	p := make([]byte, s.length())
	if _, err := io.ReadFull(body, p); err != nil {
		return nil, fmt.Errorf("read span %d of %s: %w: %w", s.i, s.r.Digest, ErrUnavailable, err)
	}
	s.own = p
	return p, nil
}

// share keeps the span for others, and then says what it is.
func (s *span) share(ctx context.Context, ranked []members.Member, p []byte) {
	r := tracker.Resolution{Digest: digest.FromBytes(p), Size: int64(len(p))}
	// When others hear of it, its tracker has to know that it can be had here.
	if _, _, err := s.n.Small(ctx, r.Digest, SpanLength, func(context.Context) ([]byte, error) { return p, nil }); err != nil {
		s.n.cfg.Log.Debug().Str("digest", s.r.Digest.String()).Int64("span", s.i).Err(err).Msg("a part of a blob is served but not shared")
	}
	r.By = s.n.self()
	s.n.knowSpan(s.ref, r)
	s.n.publishTag(ctx, ranked, s.ref, &r)
}
