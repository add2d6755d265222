package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/swarm/tracker"
)

// smallPatience is how long small content may take to come through the
// cluster before this node asks the origin itself.
const smallPatience = 3 * time.Second

// smallFlights is how many small blobs a node fetches at a time. containerd asks for
// three, but a client without a limit for all layers of an image at once, and as many
// sessions with trackers, each waiting for the others, run out of smallPatience.
const smallFlights = 64

// smallResult is what one flight brought; the callers share it.
type smallResult struct {
	data   []byte
	source Source
}

// Small returns small content by digest, verified: from this node, from a
// peer, or from origin, which one node of the cluster calls while the others
// wait for it. limit bounds its size in bytes. origin may be nil: peers only.
// The error wraps ErrNotFound when nobody has it, else it is origin's.
func (n *Node) Small(ctx context.Context, d digest.Digest, limit int64, origin func(context.Context) ([]byte, error)) ([]byte, Source, error) {
	if !validDigest(d) {
		return nil, "", fmt.Errorf("get %.80q: malformed digest: %w", d, ErrNotFound)
	}
	if p, err := n.readLocal(ctx, d, limit); err == nil {
		return p, SourceLocal, nil
	}
	ctx, span := StartSpan(ctx, "get content", trace.SpanKindInternal, attribute.String("shoal.digest", d.String()))
	p, src, err := n.fly(ctx, d, limit, origin)
	span.SetAttributes(attribute.String("shoal.source", string(src)), attribute.Int("shoal.size", len(p)))
	EndSpan(span, err)
	return p, src, err
}

// fly brings small content here.
func (n *Node) fly(ctx context.Context, d digest.Digest, limit int64, origin func(context.Context) ([]byte, error)) ([]byte, Source, error) {
	// The flight is shared: it must not die with the first caller's request,
	// nor outlive the node.
	c := n.small.DoChan(d.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		stop := context.AfterFunc(n.life, cancel)
		defer stop()
		select {
		case n.flights <- struct{}{}:
			defer func() { <-n.flights }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		// An earlier flight may have landed since the caller looked.
		if p, err := n.readLocal(ctx, d, limit); err == nil {
			return smallResult{p, SourceLocal}, nil
		}
		f := &smallFlight{n: n, d: d, limit: limit, origin: origin, work: make(chan tracker.Lease, 8), out: tracker.NewOutbox[tracker.Up]()}
		p, src, err := f.run(ctx)
		return smallResult{p, src}, err
	})
	select {
	case r := <-c:
		if r.Err != nil {
			return nil, "", fmt.Errorf("get %s: %w", d, r.Err)
		}
		res, _ := r.Val.(smallResult)
		return res.data, res.source, nil
	case <-ctx.Done():
		return nil, "", ctx.Err()
	}
}

func (n *Node) readLocal(ctx context.Context, d digest.Digest, limit int64) ([]byte, error) {
	r, err := n.Open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if r.Size() > limit {
		return nil, fmt.Errorf("read %s: %d bytes, limit is %d", d, r.Size(), limit)
	}
	return io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
}

// fetchSmall is Fetch for a blob below smallBlob.
func (n *Node) fetchSmall(ctx context.Context, r Request) (Download, error) {
	var origin func(context.Context) ([]byte, error)
	if r.Origin != nil {
		origin = func(ctx context.Context) ([]byte, error) {
			body, err := r.Origin.Open(ctx, 0, r.Size)
			if err != nil {
				return nil, err
			}
			defer body.Close()
			return io.ReadAll(io.LimitReader(body, r.Size+1))
		}
	}
	p, src, err := n.Small(ctx, r.Digest, smallBlob, origin)
	if err != nil {
		return nil, err
	}
	return memoryDownload{p, src}, nil
}

// memoryDownload is a small blob, already here and verified.
type memoryDownload struct {
	data   []byte
	source Source
}

func (m memoryDownload) NewReader(_ context.Context, off, n int64) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(m.data), off, n))
}

func (m memoryDownload) Wait(context.Context) error { return nil }
func (m memoryDownload) Close()                     {}
func (m memoryDownload) Stats() Stats {
	n := int64(len(m.data))
	switch m.source {
	case SourceOrigin:
		return Stats{Origin: n}
	case SourcePeers:
		return Stats{Peers: n}
	default:
		return Stats{Local: n}
	}
}

// smallFlight fetches one small blob through the tracker's order.
type smallFlight struct {
	n      *Node
	d      digest.Digest
	limit  int64
	origin func(context.Context) ([]byte, error)
	work   chan tracker.Lease
	out    *tracker.Outbox[tracker.Up, *tracker.Up]
	// starved carries the tracker's word that nobody has the content.
	starved chan struct{}
}

func (f *smallFlight) hello() tracker.Up {
	return tracker.Up{Hello: &tracker.Hello{Version: tracker.Version, Node: f.n.self(), Digest: f.d, Origin: f.origin != nil}}
}

func (f *smallFlight) lost() {}

func (f *smallFlight) handle(m tracker.Down) {
	for _, l := range m.Grants {
		select {
		case f.work <- l:
		default: // eight grants unworked: the tracker will revoke this one
		}
	}
	if m.Starved {
		select {
		case f.starved <- struct{}{}:
		default:
		}
	}
}

func (f *smallFlight) run(ctx context.Context) ([]byte, Source, error) {
	f.starved = make(chan struct{}, 1)
	session, end := context.WithCancel(f.n.life)
	tracked := make(chan struct{})
	go func() {
		defer close(tracked)
		f.n.track(session, f.d, 0, f, f.out)
	}()
	defer func() {
		// What is in the outbox tells the others that they can come here. The
		// session ends when it is sent; the caller need not wait for that.
		f.out.Close()
		f.n.work.Go(func() {
			defer end()
			select {
			case <-tracked:
			case <-time.After(callTimeout):
			case <-f.n.life.Done():
			}
			end()
			<-tracked
		})
	}()
	impatience := time.NewTimer(smallPatience)
	defer impatience.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return nil, "", errors.Join(ctx.Err(), last)
		case l := <-f.work:
			p, src, err := f.fetch(ctx, l)
			if err == nil {
				f.n.met.received.WithLabelValues(leaseKind(l)).Add(float64(len(p)))
				f.keep(p)
				return p, src, nil
			}
			last = err
			if l.Source == "" {
				// The origin's answer is final for this node; another may
				// have better credentials or luck, but nobody waits for that.
				return nil, "", err
			}
			reason := tracker.FailSource
			if errors.Is(err, ErrNotFound) {
				reason = tracker.FailNotFound
			}
			f.out.Put(tracker.Up{Failed: []tracker.Failure{{Lease: l.ID, Reason: reason}}})
		case <-f.starved:
			return f.alone(ctx, helpStarved, last)
		case <-impatience.C:
			return f.alone(ctx, helpTracker, last)
		}
	}
}

func leaseKind(l tracker.Lease) string {
	if l.Source == "" {
		return "origin"
	}
	return "lease"
}

// alone asks the origin without the tracker's word.
func (f *smallFlight) alone(ctx context.Context, reason string, last error) ([]byte, Source, error) {
	if f.origin == nil {
		return nil, "", errors.Join(ErrNotFound, last)
	}
	f.n.met.fallbacks.WithLabelValues(reason).Inc()
	p, src, err := f.fetch(ctx, tracker.Lease{})
	if err != nil {
		return nil, "", err
	}
	f.n.met.received.WithLabelValues("origin").Add(float64(len(p)))
	f.keep(p)
	return p, src, nil
}

// fetch gets the content from a source and verifies it.
func (f *smallFlight) fetch(ctx context.Context, l tracker.Lease) ([]byte, Source, error) {
	var p []byte
	src := SourceOrigin
	var err error
	if l.Source == "" {
		if f.origin == nil {
			return nil, "", fmt.Errorf("no origin: %w", ErrNotFound)
		}
		p, err = f.origin(ctx)
	} else {
		src = SourcePeers
		p, err = f.fromPeer(ctx, l.Source)
	}
	if err != nil {
		return nil, "", err
	}
	if got := digest.FromBytes(p); got != f.d {
		f.n.met.corrupt.WithLabelValues(corruptSmall).Inc()
		f.n.cfg.Log.Error().Str("digest", f.d.String()).Str("got", got.String()).Str("source", leaseKind(l)).Str("node", l.Source).
			Msg("content does not match its digest: discarded")
		return nil, "", fmt.Errorf("content from %s does not match its digest: got %s: %w", leaseKind(l), got, ErrUnavailable)
	}
	return p, src, nil
}

func (f *smallFlight) fromPeer(ctx context.Context, node string) ([]byte, error) {
	m, ok := f.n.member(node)
	if !ok {
		return nil, fmt.Errorf("node %s left: %w", node, ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, smallPatience)
	defer cancel()
	body, err := f.n.peers.blob(ctx, m, f.d, 0, -1)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	p, err := io.ReadAll(io.LimitReader(body, f.limit+1))
	if err != nil {
		return nil, fmt.Errorf("read from node %s: %w", node, err)
	}
	if int64(len(p)) > f.limit {
		return nil, fmt.Errorf("node %s sends more than %d bytes: %w", node, f.limit, ErrUnavailable)
	}
	return p, nil
}

// keep stores the content for others, and says so.
func (f *smallFlight) keep(p []byte) {
	if err := f.n.cfg.Store.PutBytes(f.d, p); err != nil {
		f.n.cfg.Log.Debug().Str("digest", f.d.String()).Err(err).Msg("small content is served but not kept")
		return
	}
	f.out.Put(tracker.Up{Whole: true, WholeSize: int64(len(p))})
}
