package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-dev/shoal/swarm"
)

// MaxManifest is the largest manifest that is read, in bytes: what the OCI
// distribution specification (1.1, "Pushing manifests") tells registries to
// accept at least, and what Docker Hub and containerd cap it at.
const MaxManifest = 4 << 20

// accept is what containerd sends, so that a registry that converts between
// formats gives us what it would give containerd.
var accept = strings.Join([]string{
	"application/vnd.docker.distribution.manifest.v2+json",
	"application/vnd.docker.distribution.manifest.list.v2+json",
	v1.MediaTypeImageManifest,
	v1.MediaTypeImageIndex,
	"*/*",
}, ", ")

// Client speaks to origin registries, in the name of this node unless it was
// made by Anonymous or As. It is safe for concurrent use.
type Client struct {
	cfg      Config // with defaults
	insecure map[string]bool
	net      *network
	auth     authorizer
	met      *metrics
	slots    *lru.Cache[string, chan struct{}] // registry → its blob streams
}

// knownRegistries bounds the memory of registries' streams. With more in use
// at once, the bound on connections is no longer exact.
const knownRegistries = 256

// New checks the configuration, including the files that it names, and
// returns a Client. Close it when it is no longer used.
func New(c Config) (*Client, error) {
	c = c.withDefaults()
	insecure, err := hostSet(c.Insecure)
	if err != nil {
		return nil, fmt.Errorf("new registry client: insecure hosts: %w", err)
	}
	net, err := newNetwork(c)
	if err != nil {
		return nil, fmt.Errorf("new registry client: %w", err)
	}
	if c.DockerConfig != "" {
		if _, err := readDockerConfig(c.DockerConfig); err != nil {
			return nil, fmt.Errorf("new registry client: %w", err)
		}
	}
	slots, err := lru.New[string, chan struct{}](knownRegistries)
	if err != nil {
		return nil, fmt.Errorf("new registry client: %w", err)
	}
	cl := &Client{cfg: c, insecure: insecure, net: net, met: newMetrics(c.Registerer), slots: slots}
	var creds credentialSource
	if c.DockerConfig != "" {
		creds = dockerCredentials{path: c.DockerConfig}
	}
	cl.auth = newTokens(cl, creds)
	return cl, nil
}

// Anonymous returns a client that shows no credentials of this node: it gets
// what registries, and their token services, give to everybody. It shares
// connections, bounds and metrics with c.
func (c *Client) Anonymous() *Client {
	a := *c
	a.auth = newTokens(&a, nil)
	return &a
}

// As returns a client that sends the Authorization header of somebody else to
// one registry, and none to others. It answers no challenges: those are for
// who has the password, see Error.Challenges. It shares connections, bounds
// and metrics with c.
func (c *Client) As(registry, authorization string) *Client {
	a := *c
	a.auth = forwarded{registry: registry, header: authorization}
	return &a
}

// Through returns a client that reaches registries through other proxies, chosen as
// in Config.Proxy. It has connections of its own: close it, too.
func (c *Client) Through(proxy func(*http.Request) (*url.URL, error)) (*Client, error) {
	a := *c
	a.cfg.Proxy = proxy
	var err error
	if a.net, err = newNetwork(a.cfg); err != nil {
		return nil, fmt.Errorf("new registry client: %w", err)
	}
	return &a, nil
}

// Close closes idle connections, of all clients that share c's too. Streams that
// are open go on.
func (c *Client) Close() { c.net.closeIdle() }

// Ping asks a registry for its version, without credentials: whether it answers,
// in the way that everything else goes. A refusal is an answer too, but for 429,
// which is ErrRateLimited.
func (c *Client) Ping(ctx context.Context, registry string) error {
	k := task{op: "ask", repo: Repository{Registry: registry}}
	resp, _, err := c.follow(ctx, k, request{method: http.MethodGet, url: c.Endpoint(registry).JoinPath("v2/"), header: http.Header{}})
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusTooManyRequests {
		return k.status(resp, c.cfg.Now())
	}
	drop(resp)
	return nil
}

// task is one operation, for its errors and metrics.
type task struct {
	op    string
	repo  Repository
	ref   string // tag or digest
	token bool   // speaks to the token service
}

func (k task) subject() string {
	if k.ref == "" {
		return k.repo.Name
	}
	if strings.Contains(k.ref, ":") {
		return k.repo.Name + "@" + k.ref
	}
	return k.repo.Name + ":" + k.ref
}

// manifestTask checks the names; d is empty for a tag.
func manifestTask(op string, repo Repository, ref string) (k task, d digest.Digest, err error) {
	k = task{op: op, repo: repo, ref: ref}
	if err := repo.validate(); err != nil {
		return k, "", (task{op: op, repo: Repository{Registry: "registry"}}).notFound(err)
	}
	d, err = parseReference(ref)
	if err != nil {
		return k, "", (task{op: op, repo: repo, ref: "?"}).notFound(err)
	}
	return k, d, nil
}

// Head asks what a tag or digest resolves to, without its content. Registries
// that do not say everything in the header are sent a GET instead.
func (c *Client) Head(ctx context.Context, repo Repository, ref string) (swarm.Descriptor, error) {
	k, want, err := manifestTask("head manifest", repo, ref)
	if err != nil {
		return swarm.Descriptor{}, err
	}
	var desc swarm.Descriptor
	err = c.retry(ctx, func(ctx context.Context) error {
		resp, _, err := c.exchange(ctx, k, http.MethodHead, k.manifestURL(c), manifestHeader())
		if err != nil {
			return err
		}
		drop(resp)
		desc, err = k.describe(resp, want)
		return err
	})
	var e *Error
	if errors.Is(err, errVague) || errors.As(err, &e) && (e.Status == http.StatusMethodNotAllowed || e.Status == http.StatusNotImplemented) {
		desc, _, err = c.Manifest(ctx, repo, ref)
	}
	return desc, err
}

// Manifest reads a manifest or index. Its digest is right: that of ref, when
// it is a digest, and else the one in the registry's header, when it sends
// one.
func (c *Client) Manifest(ctx context.Context, repo Repository, ref string) (swarm.Descriptor, []byte, error) {
	k, want, err := manifestTask("get manifest", repo, ref)
	if err != nil {
		return swarm.Descriptor{}, nil, err
	}
	var (
		desc swarm.Descriptor
		body []byte
	)
	err = c.retry(ctx, func(ctx context.Context) error {
		resp, _, err := c.exchange(ctx, k, http.MethodGet, k.manifestURL(c), manifestHeader())
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		desc, body, err = c.readManifest(ctx, k, resp, want)
		return err
	})
	if err != nil {
		return swarm.Descriptor{}, nil, err
	}
	return desc, body, nil
}

func manifestHeader() http.Header {
	return http.Header{"Accept": {accept}, "Accept-Encoding": {"identity"}}
}

func (k task) manifestURL(c *Client) *url.URL {
	return c.Endpoint(k.repo.Registry).JoinPath("v2", k.repo.Name, "manifests", k.ref)
}

// errVague says that the answer to a HEAD lacks digest or size.
var errVague = errors.New("header does not say digest and size")

// describe reads a descriptor off the header of an answer to HEAD.
func (k task) describe(resp *http.Response, want digest.Digest) (swarm.Descriptor, error) {
	if err := k.plain(resp); err != nil {
		return swarm.Descriptor{}, err
	}
	d := want
	if h := resp.Header.Get("Docker-Content-Digest"); h != "" {
		got, err := parseDigest(h)
		if err != nil {
			return swarm.Descriptor{}, k.fail(ErrInvalid, err)
		}
		if want != "" && got != want {
			return swarm.Descriptor{}, k.invalid("header names digest %s", got)
		}
		d = got
	}
	mt := mediaType(resp)
	if d == "" || resp.ContentLength <= 0 || mt == "" {
		return swarm.Descriptor{}, k.fail(ErrInvalid, errVague)
	}
	if resp.ContentLength > MaxManifest {
		return swarm.Descriptor{}, k.invalid("manifest of %d bytes, more than %d", resp.ContentLength, MaxManifest)
	}
	return swarm.Descriptor{MediaType: mt, Digest: d, Size: resp.ContentLength}, nil
}

// readManifest reads and verifies the answer to GET.
func (c *Client) readManifest(ctx context.Context, k task, resp *http.Response, want digest.Digest) (swarm.Descriptor, []byte, error) {
	if err := k.plain(resp); err != nil {
		return swarm.Descriptor{}, nil, err
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	c.met.received(k.repo.Registry).Add(float64(len(body)))
	if err != nil {
		return swarm.Descriptor{}, nil, k.broken(ctx, err)
	}
	if len(body) > MaxManifest {
		return swarm.Descriptor{}, nil, k.invalid("manifest of more than %d bytes", MaxManifest)
	}
	if len(body) == 0 {
		return swarm.Descriptor{}, nil, k.invalid("empty manifest")
	}
	if h := resp.Header.Get("Docker-Content-Digest"); want == "" && h != "" {
		if want, err = parseDigest(h); err != nil {
			return swarm.Descriptor{}, nil, k.fail(ErrInvalid, err)
		}
	}
	got := digest.FromBytes(body)
	if want != "" && got != want {
		return swarm.Descriptor{}, nil, k.invalid("content has digest %s instead of %s", got, want)
	}
	mt := mediaType(resp)
	if mt == "" {
		mt = inferMediaType(body)
	}
	if mt == "" {
		return swarm.Descriptor{}, nil, k.invalid("manifest without a media type")
	}
	return swarm.Descriptor{MediaType: mt, Digest: got, Size: int64(len(body))}, body, nil
}

// plain refuses content codings: nobody asked for one.
func (k task) plain(resp *http.Response) error {
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return k.invalid("content coding %s", quote(e))
	}
	return nil
}

// maxMediaType is what RFC 6838, section 4.2, allows; no node believes another a longer
// one.
const maxMediaType = 255

// mediaType returns the Content-Type if it tells something about a manifest.
// Object stores and simple file servers say octet-stream, plain text or JSON.
func mediaType(resp *http.Response) string {
	mt, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || len(mt) > maxMediaType {
		return ""
	}
	switch mt {
	case "application/octet-stream", "binary/octet-stream", "application/json", "text/plain":
		return ""
	}
	return mt
}

// exchange makes one attempt at a request: with the authorization known for
// the repository, once more after a challenge. It returns a response of
// status 200 or 206 and the URL that it came from, or an error. The caller
// closes the body.
func (c *Client) exchange(ctx context.Context, k task, method string, u *url.URL, h http.Header) (*http.Response, *url.URL, error) {
	r := request{method: method, url: u, header: h}
	var err error
	if r.authorization, err = c.auth.known(ctx, k.repo); err != nil {
		return nil, nil, err
	}
	resp, from, err := c.follow(ctx, k, r)
	if err != nil {
		return nil, nil, err
	}
	var demands []challenge // of the registry itself
	if resp.StatusCode == http.StatusUnauthorized && sameOrigin(from, u) {
		denial := k.status(resp, c.cfg.Now())
		demands = parseChallenges(resp.Header.Values("WWW-Authenticate"))
		authorization, err := c.auth.answer(ctx, k.repo, demands, r.authorization)
		if err != nil {
			return nil, nil, c.challenged(ctx, k, err, demands)
		}
		if authorization == "" {
			return nil, nil, c.challenged(ctx, k, denial, demands)
		}
		r.authorization = authorization
		if resp, from, err = c.follow(ctx, k, r); err != nil {
			return nil, nil, err
		}
	}
	if success(resp) {
		return resp, from, nil
	}
	e := k.status(resp, c.cfg.Now())
	e.elsewhere = !sameOrigin(from, u)
	if e.Status == http.StatusUnauthorized && !e.elsewhere {
		c.auth.forget(k.repo, r.authorization)
		demands = parseChallenges(resp.Header.Values("WWW-Authenticate"))
	}
	return nil, nil, c.challenged(ctx, k, e, demands)
}

func success(resp *http.Response) bool {
	return resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
}

// retry makes attempts at something short, each within Timeouts.Header, while
// they fail in a way that may pass.
func (c *Client) retry(ctx context.Context, try func(context.Context) error) error {
	a := attempts{c: c}
	for {
		err := func() error {
			ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeouts.Header, errHeader)
			defer cancel()
			return try(ctx)
		}()
		if err == nil {
			return nil
		}
		if err := a.again(ctx, err); err != nil {
			return err
		}
	}
}
