package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-dev/shoal/swarm/members"
)

const (
	// spansAhead is how many spans of a range are on their way at a time, so that
	// its bytes do not wait for one round trip after the other.
	spansAhead = 4
	// rangeSources is how many nodes that should have a range are asked for it.
	rangeSources = 2
)

// Range brings a part of a blob to this node, and not the rest: for clients that
// read a few files of a layer. It comes from a node that holds the blob whole, or
// pulls it and has that part; else in spans of SpanLength bytes, each taken from
// the origin by one node of the cluster and kept for the others.
//
// The first bytes are here when Range returns; ctx bounds it, not the download.
// NewReader of the download may be called once, with the same off and length. If
// the registry ignores ranges and no node has the part, the error wraps
// ErrNoRange.
//
// Nothing proves a part of a blob. A span is verified against the digest that
// one node told, who had it from the registry; clients that read parts have
// digests of their own.
func (n *Node) Range(ctx context.Context, r Request, off, length int64) (Download, error) {
	if !validDigest(r.Digest) || off < 0 || length <= 0 || off > r.Size-length {
		return nil, fmt.Errorf("get %d bytes from byte %d of %.80q of %d bytes: malformed request", length, off, r.Digest, r.Size)
	}
	life := trace.ContextWithSpan(n.life, trace.SpanFromContext(ctx))
	ctx, span := StartSpan(ctx, "find part", trace.SpanKindInternal, attribute.String("shoal.digest", r.Digest.String()),
		attribute.Int64("shoal.offset", off), attribute.Int64("shoal.length", length))
	p := &part{n: n, r: r, pos: off, end: off + length, sources: n.rangeSources(ctx, r, off, length)}
	p.ctx, p.cancel = context.WithCancel(life)
	stop := context.AfterFunc(ctx, p.cancel)
	err := p.next()
	if !stop() {
		err = ctx.Err()
	}
	EndSpan(span, err)
	if err != nil {
		p.Close()
		return nil, fmt.Errorf("get %d bytes from byte %d of %s: %w", length, off, r.Digest, err)
	}
	return p, nil
}

// rangeSources are some nodes that have a range of a blob.
func (n *Node) rangeSources(ctx context.Context, r Request, off, length int64) []members.Member {
	var ms []members.Member
	for _, id := range n.rangeHolders(ctx, r.Digest, off, length) {
		if m, ok := n.member(id); ok && id != n.self() && !n.suspect(id) {
			ms = append(ms, m)
		}
	}
	rand.Shuffle(len(ms), func(i, k int) { ms[i], ms[k] = ms[k], ms[i] })
	return first(ms, rangeSources)
}

// part is a part of a blob on its way to one reader. Its methods but Stats and
// Close are for one goroutine.
type part struct {
	n      *Node
	r      Request
	ctx    context.Context // ends with Close, and with the node
	cancel context.CancelFunc

	pos, end int64
	sources  []members.Member
	body     io.ReadCloser // from one of them
	rest     []byte        // of the span at hand
	source   Source        // of it
	ahead    []spanCall    // the next ones

	peers, origin, local atomic.Int64
}

// spanCall is a span on its way.
type spanCall struct {
	span *span
	c    <-chan singleflight.Result
	mine *bool // this call began the flight; to be read when it is over
}

// NewReader implements Download.
func (p *part) NewReader(ctx context.Context, _, _ int64) io.ReadCloser {
	return &partReader{part: p, unlink: context.AfterFunc(ctx, p.cancel)}
}

type partReader struct {
	*part
	unlink func() bool
}

func (r *partReader) Close() error { r.unlink(); return nil }

func (p *part) Read(b []byte) (int, error) {
	for p.pos < p.end {
		b = b[:min(int64(len(b)), p.end-p.pos)]
		var k int
		var err error
		src := SourcePeers
		if p.body != nil {
			if k, err = p.body.Read(b); k == 0 && err != nil {
				p.n.cfg.Log.Debug().Str("digest", p.r.Digest.String()).Err(err).Msg("a part of a blob breaks off, going on elsewhere")
				_ = p.body.Close()
				p.body = nil
			}
			p.n.met.received.WithLabelValues("lease").Add(float64(k))
		} else {
			k, src = copy(b, p.rest), p.source
			p.rest = p.rest[k:]
		}
		p.pos += int64(k)
		p.counter(src).Add(int64(k))
		if k > 0 || len(b) == 0 {
			return k, nil
		}
		if p.body == nil {
			if err := p.next(); err != nil {
				return 0, err
			}
		}
	}
	return 0, io.EOF
}

func (p *part) counter(s Source) *atomic.Int64 {
	switch s {
	case SourcePeers:
		return &p.peers
	case SourceOrigin:
		return &p.origin
	default:
		return &p.local
	}
}

// next gets hold of the bytes at pos.
func (p *part) next() error {
	for len(p.sources) > 0 {
		m := p.sources[0]
		p.sources = p.sources[1:]
		body, err := p.n.peers.blob(p.ctx, m, p.r.Digest, p.pos, p.end-p.pos)
		if err == nil {
			p.body = body
			context.AfterFunc(p.ctx, func() { _ = body.Close() })
			return nil
		}
		if p.ctx.Err() != nil {
			return p.ctx.Err()
		}
		p.n.cfg.Log.Debug().Str("node", m.ID).Err(err).Msg("cannot get a part of a blob, going on elsewhere")
		if len(p.sources) == 0 {
			p.n.met.fallbacks.WithLabelValues(helpPeers).Inc()
		}
	}
	i := p.pos / SpanLength
	for k := i + int64(len(p.ahead)); len(p.ahead) < spansAhead && k*SpanLength < p.end; k++ {
		p.ahead = append(p.ahead, p.call(k))
	}
	c := p.ahead[0]
	p.ahead = p.ahead[1:]
	data, source, err := p.await(c)
	if err != nil {
		return err
	}
	p.rest, p.source = data[p.pos-i*SpanLength:min(int64(len(data)), p.end-i*SpanLength)], source
	return nil
}

// call begins to bring in a span, or joins in.
func (p *part) call(i int64) spanCall {
	c := spanCall{span: p.n.newSpan(p.r, i), mine: new(bool)}
	c.c = p.n.spanFlights.DoChan(c.span.ref, func() (any, error) {
		*c.mine = true
		// It is shared: it must not die with the first caller's request.
		ctx, cancel := context.WithTimeout(trace.ContextWithSpan(p.n.life, trace.SpanFromContext(p.ctx)), spanTimeout)
		defer cancel()
		data, source, err := c.span.get(ctx)
		return smallResult{data, source}, err
	})
	return c
}

func (p *part) await(c spanCall) ([]byte, Source, error) {
	select {
	case r := <-c.c:
		if r.Err == nil {
			res, _ := r.Val.(smallResult)
			return res.data, res.source, nil
		}
		if *c.mine || !errors.Is(r.Err, ErrDenied) {
			return nil, "", r.Err
		}
		// Those were somebody else's credentials.
		return c.span.get(p.ctx)
	case <-p.ctx.Done():
		return nil, "", p.ctx.Err()
	}
}

// Wait implements Download: what NewReader yields need not be waited for.
func (p *part) Wait(context.Context) error { return nil }

// Stats implements Download: what was read so far.
func (p *part) Stats() Stats {
	return Stats{Origin: p.origin.Load(), Peers: p.peers.Load(), Local: p.local.Load()}
}

// Close implements Download.
func (p *part) Close() { p.cancel() }
