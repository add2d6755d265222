package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

const (
	// lookTimeout bounds questions within the node and the cluster that
	// normally take a millisecond: is the blob here, who has it.
	lookTimeout = 2 * time.Second
	// blobType is what registries call a layer or a config.
	blobType = "application/octet-stream"
)

// blob answers for a blob.
func (m *Mirror) blob(w http.ResponseWriter, r *http.Request, p *pull) error {
	ctx := r.Context()
	p.source = swarm.SourceLocal
	pm, err := m.authorise(ctx, p.question(p.ref))
	if err != nil {
		return err
	}
	p.offline = pm.offline
	local, err := m.open(ctx, p.digest)
	if err == nil {
		defer local.Close()
		p.size = local.Size()
	} else if p.size, err = m.sizeOf(ctx, p, pm); err != nil {
		return err
	}
	if p.method == http.MethodHead {
		// Range is defined for GET only, by RFC 9110 section 14.2.
		describeBlob(w.Header(), p.digest, byteRange{n: p.size}, p.size)
		w.WriteHeader(http.StatusOK)
		return nil
	}
	rg, err := m.wanted(w, r, p.size)
	if err != nil {
		return err
	}
	if local != nil {
		return m.deliver(w, r, p, here{local}, rg)
	}
	p.lazy = m.lazy(rg, p.size)
	dl, err := m.fetch(ctx, p, rg)
	if err != nil {
		return err
	}
	defer dl.Close()
	if !p.lazy {
		defer m.ahead(ctx, p)()
	}
	return m.deliver(w, r, p, dl, rg)
}

// open opens a blob that is whole on this node.
func (m *Mirror) open(ctx context.Context, d digest.Digest) (swarm.Reader, error) {
	if d == upstream.EmptyDigest {
		return nothing{}, nil // no swarm is needed for that
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	return m.cfg.Swarm.Open(ctx, d)
}

// sizeOf finds the size of a blob that is not on this node: from a manifest
// that passed by, from the cluster, or from upstream.
func (m *Mirror) sizeOf(ctx context.Context, p *pull, pm permit) (int64, error) {
	if pm.known.size > 0 {
		return pm.known.size, nil
	}
	bounded, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	size, holders, err := m.cfg.Swarm.Locate(bounded, p.digest)
	if err == nil && holders > 0 && size > 0 {
		return size, nil
	}
	d, err := m.oracle.ask(ctx, p.question(p.ref))
	if err == nil && d.Size <= 0 {
		err = fmt.Errorf("registry gives no size for %s: %w", p.digest, swarm.ErrUnavailable)
	}
	return d.Size, err
}

// wanted reads the Range header.
func (m *Mirror) wanted(w http.ResponseWriter, r *http.Request, size int64) (byteRange, error) {
	header := r.Header.Get("Range")
	if r.Header.Get("If-Range") != "" {
		header = "" // we give no validators, so none can match
	}
	rg, err := parseRange(header, size)
	switch {
	case errors.Is(err, errUnsatisfiable):
		w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		return rg, &miss{status: http.StatusRequestedRangeNotSatisfiable, code: codeUnsupported, reason: reasonRange, message: err.Error()}
	case err != nil:
		// The whole blob would be a legal answer, and the worst for a lazy
		// snapshotter; stargz takes 400 as a sign to ask for single ranges.
		return rg, &miss{status: http.StatusBadRequest, code: codeUnsupported, reason: reasonRange, message: err.Error()}
	}
	return rg, nil
}

// lazy says whether a range is read by somebody who wants a few files now, and not
// the blob later: lazy snapshotters name its end, those that resume a pull do not.
// A blob of a span is brought in whole, and verified.
func (m *Mirror) lazy(rg byteRange, size int64) bool {
	return rg.closed && rg.n < size && size > swarm.SpanLength && !m.cfg.Hold
}

// fetch gets hold of a blob that is not on this node, or of a part of it.
func (m *Mirror) fetch(ctx context.Context, p *pull, rg byteRange) (swarm.Download, error) {
	// A lazy snapshotter has no next host for a layer that it has mounted.
	if !p.lazy && m.cooldown.active(p.digest, time.Now()) {
		return nil, &miss{reason: reasonCooldown, message: "this blob failed here a moment ago"}
	}
	// In the caller's name: its credential is held for as long as the download
	// lasts. A later caller that joins in brings its own, which then counts.
	origin := p.who.up.Origin(p.repo, p.digest, p.size)
	if p.who.id != "" {
		p.ended = make(chan error, 1)
		origin = mortal{origin, p.ended}
	}
	// A small blob, and the first part of a range, are fetched before they return.
	bounded, cancel := context.WithDeadline(ctx, m.firstByteBy(p))
	defer cancel()
	if p.lazy {
		r := p.request(p.digest, p.size, origin)
		if m.oracle.silent(p.repo.Registry) {
			r.Origin = nil // it would be waited for in vain
		}
		dl, err := m.cfg.Swarm.Range(bounded, r, rg.off, rg.n)
		if !errors.Is(err, swarm.ErrNoRange) {
			return dl, err
		}
		m.met.whole.Inc()
	}
	return m.whole(bounded, p, p.digest, p.size, origin)
}

// request asks the swarm for a blob of the repository.
func (p *pull) request(d digest.Digest, size int64, origin swarm.Origin) swarm.Request {
	return swarm.Request{Digest: d, Size: size, Origin: origin, Registry: p.repo.Registry, Repository: p.repo.Name}
}

// whole fetches all of a blob, after those that its client needs before it.
func (m *Mirror) whole(ctx context.Context, p *pull, d digest.Digest, size int64, origin swarm.Origin) (swarm.Download, error) {
	r := p.request(d, size, origin)
	r.After = m.catalog.before(p.repo, d)
	return m.cfg.Swarm.Fetch(ctx, r)
}

// mortal is an origin whose credential may end during the download. It tells,
// so that the client can come back with a new one.
type mortal struct {
	swarm.Origin
	ended chan<- error
}

func (o mortal) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := o.Origin.Open(ctx, off, n)
	if errors.Is(err, upstream.ErrDenied) {
		select {
		case o.ended <- &endedError{err}:
		default: // told already
		}
	}
	return body, err
}

// endedError is upstream's refusal of a credential that it accepted before.
type endedError struct{ err error }

func (e *endedError) Error() string { return "credential ended: " + e.err.Error() }
func (e *endedError) Unwrap() error { return e.err }

// describeBlob sets the headers of a whole or partial answer.
func describeBlob(h http.Header, d digest.Digest, rg byteRange, size int64) (status int) {
	describe(h, d, blobType, rg.n)
	h.Set("Accept-Ranges", "bytes")
	if !rg.partial {
		return http.StatusOK
	}
	h.Set("Content-Range", rg.contentRange(size))
	return http.StatusPartialContent
}

// nothing is the empty blob.
type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }
func (nothing) Size() int64                       { return 0 }
func (nothing) Close() error                      { return nil }

// here is a blob on this node, as a download that is over. Its owner closes
// the Reader.
type here struct{ swarm.Reader }

func (h here) NewReader(_ context.Context, off, n int64) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(h.Reader, off, n))
}
func (here) Wait(context.Context) error { return nil }
func (h here) Stats() swarm.Stats       { return swarm.Stats{Local: h.Size()} }
func (here) Close()                     {}

const (
	// cooldownFor is how long a blob whose body was cut is left to upstream:
	// containerd comes back for the rest at once, and must get a miss to turn
	// to its next host.
	cooldownFor = 10 * time.Second
	cooledBlobs = 256
)

// cooldown remembers the blobs that failed.
type cooldown struct {
	mu sync.Mutex
	c  *simplelru.LRU[digest.Digest, time.Time] // until when
}

func newCooldown() *cooldown {
	return &cooldown{c: newLRU[digest.Digest, time.Time](cooledBlobs)}
}

func (c *cooldown) start(d digest.Digest, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.c.Add(d, now.Add(cooldownFor))
}

func (c *cooldown) active(d digest.Digest, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	until, ok := c.c.Get(d)
	return ok && now.Before(until)
}
