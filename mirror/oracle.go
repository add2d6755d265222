package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// Why the oracle has no answer. Both come wrapped with swarm.ErrUnavailable.
var (
	errSlow = errors.New("gave up waiting")
	errDown = errors.New("the registry did not answer a moment ago")
	errBusy = errors.New("too many questions to registries are open")
)

const (
	// questionLife bounds a question beyond the clients' wait for it, so that
	// a slow registry's late answer still counts for the next request.
	questionLife = 10 * time.Second
	// downFor is how long a registry that did not answer is taken to be down:
	// requests are answered at once, and one of them asks again in the
	// background. Shorter than the pause before a kubelet's retry (10 s).
	downFor = 5 * time.Second
	// watchedRegistries bounds the memory of registries that are down.
	watchedRegistries = 256
	// maxQuestions bounds the questions open at one time. containerd has at
	// most a handful; the bound is for whoever makes names up.
	maxQuestions = 128
)

// question is one HEAD request to a registry, in somebody's name.
type question struct {
	repo Repository
	kind kind
	ref  reference
	who  caller
}

// flightKey is what makes questions identical.
type flightKey struct {
	repo       Repository
	kind       kind
	ref        reference
	space, who string
}

func (q question) key() flightKey {
	return flightKey{q.repo, q.kind, q.ref, q.who.space, q.who.id}
}

func (q question) String() string { return fmt.Sprintf("%s %s@%s", q.kind, q.repo, q.ref) }

// oracle asks registries about manifests and blobs: identical questions once,
// no caller waiting beyond its bound, and none at all for a registry that has
// just failed to answer.
type oracle struct {
	// patience is how long a caller waits.
	patience time.Duration
	// heard is told of every answer, before any caller is.
	heard func(question, swarm.Descriptor, error)

	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[flightKey]*flight
	down   *simplelru.LRU[string, time.Time] // registry → when to ask again
}

// flight is an open question; desc and err may be read when done is closed.
type flight struct {
	done chan struct{}
	desc swarm.Descriptor
	err  error
}

func newOracle(patience time.Duration, heard func(question, swarm.Descriptor, error)) *oracle {
	o := &oracle{
		patience: patience, heard: heard,
		open: map[flightKey]*flight{}, down: newLRU[string, time.Time](watchedRegistries),
	}
	o.life, o.end = context.WithCancel(context.Background())
	return o
}

// close ends all questions and waits for them; later ones fail.
func (o *oracle) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.end()
	o.work.Wait()
}

// ask returns the registry's answer. The error wraps upstream.ErrDenied,
// swarm.ErrNotFound or swarm.ErrUnavailable, or is ctx's.
func (o *oracle) ask(ctx context.Context, q question) (swarm.Descriptor, error) {
	ctx, span := swarm.StartSpan(ctx, "ask registry", trace.SpanKindInternal)
	d, err := o.wait(ctx, q)
	swarm.EndSpan(span, err)
	return d, err
}

// wait joins the flight, and waits for it as long as a caller does.
func (o *oracle) wait(ctx context.Context, q question) (swarm.Descriptor, error) {
	f, err := o.join(ctx, q, time.Now())
	if err != nil {
		return swarm.Descriptor{}, fmt.Errorf("ask for %s: %w: %w", q, swarm.ErrUnavailable, err)
	}
	patience := time.NewTimer(o.patience)
	defer patience.Stop()
	select {
	case <-f.done:
		return f.desc, f.err
	case <-patience.C:
		o.mark(q.repo.Registry, false)
		return swarm.Descriptor{}, fmt.Errorf("ask for %s: %w: %w", q, swarm.ErrUnavailable, errSlow)
	case <-ctx.Done():
		return swarm.Descriptor{}, ctx.Err()
	}
}

// join returns the flight to wait for. It outlives ctx, and is traced as a part of
// the request that begins it.
func (o *oracle) join(ctx context.Context, q question, now time.Time) (*flight, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	again, down := o.down.Get(q.repo.Registry)
	if down && now.Before(again) {
		return nil, errDown
	}
	f := o.open[q.key()]
	switch {
	case o.closed:
		return nil, errDown
	case f == nil && len(o.open) >= maxQuestions:
		return nil, errBusy
	case f == nil:
		f = &flight{done: make(chan struct{})}
		o.open[q.key()] = f
		life := trace.ContextWithSpan(o.life, trace.SpanFromContext(ctx))
		o.work.Go(func() { o.fly(life, q, f) })
	}
	if down {
		// This request finds out whether the registry is back, for the next.
		o.down.Add(q.repo.Registry, now.Add(downFor))
		return nil, errDown
	}
	return f, nil
}

// fly asks, and tells everybody.
func (o *oracle) fly(life context.Context, q question, f *flight) {
	ctx, cancel := context.WithTimeout(life, questionLife)
	defer cancel()
	f.desc, f.err = o.put(ctx, q)
	if o.life.Err() == nil {
		// Nonsense is an answer, too.
		o.mark(q.repo.Registry, !errors.Is(f.err, swarm.ErrUnavailable) || errors.Is(f.err, upstream.ErrInvalid))
		o.heard(q, f.desc, f.err)
	}
	o.mu.Lock()
	delete(o.open, q.key())
	o.mu.Unlock()
	close(f.done)
}

func (o *oracle) put(ctx context.Context, q question) (d swarm.Descriptor, err error) {
	if q.kind == kindBlob {
		d.Digest = q.ref.digest
		d.Size, err = q.who.up.Size(ctx, q.repo, q.ref.digest)
	} else {
		d, err = q.who.up.Head(ctx, q.repo, q.ref.String())
	}
	switch {
	case err != nil && !errors.Is(err, upstream.ErrDenied) && !errors.Is(err, swarm.ErrNotFound) && !errors.Is(err, swarm.ErrUnavailable):
		err = fmt.Errorf("%w: %w", swarm.ErrUnavailable, err)
	case err == nil && q.ref.tag == "" && d.Digest != q.ref.digest:
		err = fmt.Errorf("registry answers with %.80q: %w: %w", d.Digest, swarm.ErrUnavailable, upstream.ErrInvalid)
	case err == nil:
		if _, bad := parseDigest(d.Digest.String()); bad != nil {
			// Not an outage: a registry that uses other digests is left to
			// the client.
			err = fmt.Errorf("registry answers: %w: %w", swarm.ErrNotFound, bad)
		}
	}
	if err != nil {
		return swarm.Descriptor{}, fmt.Errorf("ask for %s: %w", q, err)
	}
	return d, nil
}

// mark notes whether a registry answers.
func (o *oracle) mark(registry string, answers bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if answers {
		o.down.Remove(registry)
	} else {
		o.down.Add(registry, time.Now().Add(downFor))
	}
}

// silent says whether the registry did not answer a moment ago.
func (o *oracle) silent(registry string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	until, ok := o.down.Get(registry)
	return ok && time.Now().Before(until)
}
