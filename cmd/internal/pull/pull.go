package pull

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Options of a pull. Mirror is required.
type Options struct {
	// Mirror is the base URL of the mirror, for instance
	// http://127.0.0.1:6500.
	Mirror string
	// Platform is os/arch[/variant], or "all". Empty means this machine's.
	Platform string
	// Dir receives the image as an OCI layout. Empty: the bytes are verified
	// and thrown away.
	Dir string
	// Parallel is how many blobs are in flight at one time. Default 3, like
	// containerd.
	Parallel int
	// Attempts is how often in a row a blob may fail without a byte of
	// progress. Default 3, like containerd.
	Attempts int
	// Stall is how long a response may be silent. Default 2 min: beyond the
	// mirror's own patience.
	Stall time.Duration
	// Progress, if set, hears how it goes.
	Progress Progress
	// Client is the HTTP client. Default: one without a proxy, since mirrors
	// are local.
	Client *http.Client
}

// Progress hears how a pull goes. Its methods may be called concurrently,
// except Begin, which comes first.
type Progress interface {
	// Begin: so many blobs with so many bytes are about to be pulled.
	Begin(blobs int, bytes int64)
	// Received: n more bytes arrived.
	Received(n int64)
	// Finished: a blob is whole and verified.
	Finished(Blob)
}

// Blob is one verified blob.
type Blob struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"bytes"`
	// Seconds from the request to the last verified byte.
	Seconds float64 `json:"seconds"`
	// Resumed is how often the body was cut and taken up again.
	Resumed int `json:"resumed,omitempty"`
}

// Result is a pulled image. All of it was verified.
type Result struct {
	// Image is the reference in full.
	Image  string `json:"image"`
	Mirror string `json:"mirror"`
	// Digest is what the reference stands for: an index's or a manifest's.
	Digest digest.Digest `json:"digest"`
	// Bytes of all blobs and manifests, each counted once.
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	// Manifests are the index, if any, and the manifests pulled.
	Manifests []Blob `json:"manifests"`
	// Blobs are configs and layers, in the order of the manifests.
	Blobs []Blob `json:"blobs"`
}

// Image pulls an image and verifies every digest of it.
func Image(ctx context.Context, image string, o Options) (Result, error) {
	p, err := newPuller(image, o)
	if err != nil {
		return Result{}, err
	}
	return p.run(ctx)
}

// puller is one pull.
type puller struct {
	o      Options
	base   *url.URL
	ref    reference.Named
	out    *layout // nil: nowhere
	mu     sync.Mutex
	result Result
}

func newPuller(image string, o Options) (*puller, error) {
	ref, err := reference.ParseDockerRef(image)
	if err != nil {
		return nil, fmt.Errorf("%w: image %q: %w", ErrReference, image, err)
	}
	base, err := url.Parse(o.Mirror)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, fmt.Errorf("%w: mirror %q: want a URL such as http://127.0.0.1:6500", ErrReference, o.Mirror)
	}
	if o.Parallel <= 0 {
		o.Parallel = 3
	}
	if o.Attempts <= 0 {
		o.Attempts = 3
	}
	if o.Stall <= 0 {
		o.Stall = 2 * time.Minute
	}
	if o.Progress == nil {
		o.Progress = silent{}
	}
	if o.Client == nil {
		o.Client = &http.Client{Transport: &http.Transport{
			MaxIdleConnsPerHost: o.Parallel,
			DisableCompression:  true, // digests are of the bytes as they are
		}}
	}
	p := &puller{o: o, base: base, ref: ref, result: Result{Image: ref.String(), Mirror: o.Mirror}}
	if o.Dir != "" {
		if p.out, err = newLayout(o.Dir); err != nil {
			return nil, err
		}
	}
	return p, nil
}

func (p *puller) run(ctx context.Context) (Result, error) {
	began := time.Now()
	defer p.o.Client.CloseIdleConnections()
	top, blobs, err := p.manifests(ctx)
	if err != nil {
		return Result{}, err
	}
	p.result.Digest = top.Digest

	var total int64
	for _, d := range blobs {
		total += d.Size
	}
	p.o.Progress.Begin(len(blobs), total)
	p.result.Blobs = make([]Blob, len(blobs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.o.Parallel)
	for i, d := range blobs {
		g.Go(func() error {
			b, err := p.blob(gctx, d)
			if err != nil {
				return fmt.Errorf("pull blob %s: %w", d.Digest, err)
			}
			p.result.Blobs[i] = b
			p.o.Progress.Finished(b)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	if p.out != nil {
		if err := p.out.finish(top, p.ref); err != nil {
			return Result{}, err
		}
	}
	for _, b := range slices.Concat(p.result.Manifests, p.result.Blobs) {
		p.result.Bytes += b.Size
	}
	p.result.Seconds = time.Since(began).Seconds()
	return p.result, nil
}

// url of a manifest or blob of the image's repository.
func (p *puller) url(kind, ref string) string {
	u := *p.base
	u.Path = strings.TrimSuffix(u.Path, "/") + "/v2/" + reference.Path(p.ref) + "/" + kind + "/" + ref
	u.RawQuery = url.Values{"ns": {reference.Domain(p.ref)}}.Encode()
	return u.String()
}

// what names a descriptor for people.
func what(d v1.Descriptor) string {
	if d.Platform != nil {
		return fmt.Sprintf("%s (%s/%s)", d.Digest, d.Platform.OS, d.Platform.Architecture)
	}
	return d.Digest.String()
}

type silent struct{}

func (silent) Begin(int, int64) {}
func (silent) Received(int64)   {}
func (silent) Finished(Blob)    {}
