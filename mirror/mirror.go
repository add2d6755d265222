package mirror

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// Swarm is what the mirror needs of the cluster; *swarm.Node has it. The
// methods' contracts are documented there.
type Swarm interface {
	// Open opens a whole blob on this node.
	Open(ctx context.Context, d digest.Digest) (swarm.Reader, error)
	// Fetch starts or joins a download. ctx bounds the call, not the download.
	Fetch(ctx context.Context, r swarm.Request) (swarm.Download, error)
	// Range brings in a part of a blob, and not the rest.
	Range(ctx context.Context, r swarm.Request, off, n int64) (swarm.Download, error)
	// Small gets small content by digest; a nil origin means peers only.
	Small(ctx context.Context, d digest.Digest, limit int64, origin func(context.Context) ([]byte, error)) ([]byte, swarm.Source, error)
	// Resolve finds what a tag points to.
	Resolve(ctx context.Context, ref string, upstream func(context.Context) (swarm.Descriptor, error)) (d swarm.Descriptor, last time.Time, err error)
	// Recall finds what a tag pointed to when a registry last said so.
	Recall(ctx context.Context, ref string) (d swarm.Descriptor, last time.Time, err error)
	// Locate tells the size of a blob and how many nodes hold it.
	Locate(ctx context.Context, d digest.Digest) (size int64, holders int, err error)
	// Pullers tells how many nodes pull a blob now.
	Pullers(ctx context.Context, d digest.Digest) (int, error)
}

// Repository names what is pulled from: a registry, as image references spell
// it (docker.io, registry.example.com:5000), and a name in it.
type Repository = upstream.Repository

// Upstream is the registries' side, in one caller's name. Its errors wrap
// upstream.ErrDenied (401, 403; an *upstream.Error has the challenges),
// swarm.ErrNotFound (404), or else count as swarm.ErrUnavailable.
// Implementations are safe for concurrent use and give up when ctx ends.
type Upstream interface {
	Manifests
	Blobs
}

// Manifests reads manifests upstream. ref is a tag or a digest.
type Manifests interface {
	Head(ctx context.Context, r Repository, ref string) (swarm.Descriptor, error)
	Manifest(ctx context.Context, r Repository, ref string) (swarm.Descriptor, []byte, error)
}

// Blobs reads blobs upstream.
type Blobs interface {
	// Size asks for a blob's size in bytes.
	Size(ctx context.Context, r Repository, d digest.Digest) (int64, error)
	// Origin returns the source of a blob, without asking anything yet.
	Origin(r Repository, d digest.Digest, size int64) swarm.Origin
}

// client is an Upstream of the client.
type client struct{ *upstream.Client }

func (c client) Size(ctx context.Context, r Repository, d digest.Digest) (int64, error) {
	return c.Blob(r, d, 0).Size(ctx)
}

func (c client) Origin(r Repository, d digest.Digest, size int64) swarm.Origin {
	return c.Blob(r, d, size)
}

// Config of a Mirror. Swarm, Upstream and Registries are required.
type Config struct {
	Swarm    Swarm
	Upstream Upstreams
	// Registries are mirrored, all others answered 404: host[:port] as image
	// references spell it, or a glob as in path.Match over that ("*" crosses
	// dots). A glob matches neither IP addresses nor localhost.
	Registries []string
	// DefaultRegistry serves requests without an ns parameter, which clients
	// other than containerd send. Empty: they are answered 404.
	DefaultRegistry string
	// Hold sends nothing of a blob before the whole of it is verified. By
	// default the verified prefix is streamed as it grows, and only the end
	// waits. Holding costs time (containerd cannot unpack meanwhile) and
	// gains that not even a prefix vouched for by a broken node goes out.
	Hold bool

	// Authorization says for registries, spelled like Registries, whose right
	// to pull counts. A registry's own entry goes before patterns, and longer
	// patterns before shorter ones. Others: AuthorizeUpstream.
	Authorization map[string]Authorization
	// GrantTTL is how long upstream's consent to let a caller pull from a
	// repository is believed. Longer spares HEAD requests, shorter notices
	// revoked rights sooner. Default 5 min.
	GrantTTL time.Duration
	// Outage says what is served while upstream does not answer, beyond
	// GrantTTL. Default OutageAllowRecent.
	Outage Outage
	// OutageGrace is how old consent may be that OutageAllowRecent goes by, and how
	// old an answer about a tag.
	// Default 24 h.
	OutageGrace time.Duration
	// CheckTimeout bounds a client's wait for what upstream says of a tag, a
	// permission or a size. Default 2.5 s: a cold TLS connection and a token
	// over 200 ms of latency take 2 s.
	CheckTimeout time.Duration
	// FirstByteTimeout bounds the wait for the first byte of a blob, from the
	// request on, before the response header is sent; until then a failure is a
	// clean 404. After it the header goes out and the wait goes on under
	// StallTimeout. containerd 2.3 waits 30 s for a header. Default 20 s: a client
	// that asks for a thousand small blobs at once lets the last of them wait for
	// more than 10 s on a busy computer.
	FirstByteTimeout time.Duration
	// StallTimeout bounds the time in which a download brings in nothing
	// although the client waits; then the body is cut, and the client's
	// retry sent upstream. Default 60 s: beyond all patience of the swarm.
	StallTimeout time.Duration
	// ClientTimeout bounds a client's silence in mid-body. containerd stops
	// reading when its disk is slow. Default 5 min.
	ClientTimeout time.Duration

	// Tracer makes a span of each request, which is the parent of those of all that
	// is done for it, here and below. nil: no traces.
	Tracer trace.Tracer

	Log        zerolog.Logger
	Registerer prometheus.Registerer
}

// Mirror answers pull requests. It is safe for concurrent use.
type Mirror struct {
	cfg        Config
	met        *metrics
	registries *Registries
	fallback   string // the default registry, parsed
	callers    *callers
	oracle     *oracle
	grants     *grants
	catalog    *catalog
	cooldown   *cooldown
	engaged    engaged
	delivered  delivered
	buffers    sync.Pool // of *[]byte, copyBuffer long
	handler    http.Handler
}

// copyBuffer is the unit in which bodies are copied, in bytes: a few pieces of a
// small blob, half a piece of one of 1 GiB.
const copyBuffer = 256 << 10

// New returns a Mirror. Close it when its Handler is no longer served.
func New(c Config) (*Mirror, error) {
	if c.Swarm == nil || c.Upstream == nil {
		return nil, errors.New("new mirror: swarm and upstream are required")
	}
	if len(c.Registries) == 0 {
		return nil, errors.New("new mirror: no registry to mirror")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.GrantTTL, 5*time.Minute)
	def(&c.OutageGrace, 24*time.Hour)
	def(&c.CheckTimeout, 2500*time.Millisecond)
	def(&c.FirstByteTimeout, 20*time.Second)
	def(&c.StallTimeout, time.Minute)
	def(&c.ClientTimeout, 5*time.Minute)
	regs, err := NewRegistries(c.Registries)
	if err != nil {
		return nil, fmt.Errorf("new mirror: %w", err)
	}
	m := &Mirror{
		cfg: c, met: newMetrics(c.Registerer), registries: regs,
		grants: newGrants(c.GrantTTL, c.OutageGrace), catalog: newCatalog(), cooldown: newCooldown(),
		engaged: engaged{n: map[digest.Digest]int{}}, delivered: newDelivered(),
	}
	if m.callers, err = newCallers(c.Upstream, c.Authorization); err != nil {
		return nil, fmt.Errorf("new mirror: %w", err)
	}
	switch c.Outage {
	case "":
		m.cfg.Outage = OutageAllowRecent
	case OutageAllowRecent, OutageDeny:
	default:
		return nil, fmt.Errorf("new mirror: outage policy %q: want %s or %s", c.Outage, OutageAllowRecent, OutageDeny)
	}
	if c.DefaultRegistry != "" {
		if m.fallback, err = parseRegistry(c.DefaultRegistry); err != nil {
			return nil, fmt.Errorf("new mirror: default registry: %w", err)
		}
		if !regs.Allowed(m.fallback) {
			return nil, fmt.Errorf("new mirror: default registry %s is not among those mirrored", m.fallback)
		}
	}
	m.oracle = newOracle(c.CheckTimeout, m.heard)
	m.buffers.New = func() any { b := make([]byte, copyBuffer); return &b }
	m.handler = m.routes()
	return m, nil
}

// Handler serves the pull API, over HTTP/1.1 on a loopback address. Its server
// needs ReadHeaderTimeout and IdleTimeout, and no WriteTimeout: the handler
// sets the write deadlines itself.
func (m *Mirror) Handler() http.Handler { return m.handler }

// Close ends what the mirror still asks upstream, and waits for it.
func (m *Mirror) Close() { m.oracle.close() }
