package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm"
)

// shortcutLife is how long the target of a redirect is used for further
// ranges of a blob. Signed URLs live for minutes at least (20 with the
// distribution registry), so a minute is sure to be within, and covers the
// ranges that one download asks for in quick succession.
const shortcutLife = time.Minute

// Blob is one blob at its registry. It is safe for concurrent use.
type Blob struct {
	c      *Client
	repo   Repository
	digest digest.Digest
	size   int64
	err    error // the names are invalid

	mu sync.Mutex
	// shortcut is where the registry has redirected to, until shortcutEnd.
	shortcut    *url.URL
	shortcutEnd time.Time
}

var _ swarm.Origin = (*Blob)(nil)

// Blob returns a blob without asking for it yet. size is in bytes, as the
// manifest names it; with 0 only Size is of use.
func (c *Client) Blob(repo Repository, d digest.Digest, size int64) *Blob {
	b := &Blob{c: c, repo: repo, digest: d, size: size}
	if _, _, err := manifestTask("get blob", repo, string(d)); err != nil {
		b.err = err
	} else if _, err := parseDigest(string(d)); err != nil {
		b.err = b.task("get").notFound(err)
	}
	return b
}

func (b *Blob) task(verb string) task {
	return task{op: verb + " blob", repo: b.repo, ref: string(b.digest)}
}

func (b *Blob) url() *url.URL {
	return b.c.Endpoint(b.repo.Registry).JoinPath("v2", b.repo.Name, "blobs", string(b.digest))
}

// Size asks the registry for the blob's size in bytes. It is not verified.
func (b *Blob) Size(ctx context.Context) (int64, error) {
	if b.err != nil {
		return 0, b.err
	}
	size, err := b.ask(ctx, b.task("head"), http.MethodHead, blobHeader(-1, 0))
	if e := (*Error)(nil); errors.As(err, &e) && ctx.Err() == nil && e.headRefused() {
		return b.ask(ctx, b.task("get size of"), http.MethodGet, blobHeader(0, 1))
	}
	return size, err
}

// headRefused says whether it may have been the method that a HEAD failed by:
// signed URLs often hold for GET only, and some servers send no length.
func (e *Error) headRefused() bool {
	switch e.Status {
	case 0:
		return errors.Is(e.kind, ErrInvalid)
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return true
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
		return e.elsewhere
	}
	return false
}

// EmptyDigest is that of the blob of no bytes.
var EmptyDigest = digest.FromBytes(nil)

// ask reads the size off the header of an answer.
func (b *Blob) ask(ctx context.Context, k task, method string, h http.Header) (int64, error) {
	var size int64
	err := b.c.retry(ctx, func(ctx context.Context) error {
		resp, _, err := b.c.exchange(ctx, k, method, b.url(), h)
		if err != nil {
			return err
		}
		drop(resp)
		size = resp.ContentLength
		if resp.StatusCode == http.StatusPartialContent {
			if _, _, size, err = parseContentRange(resp.Header.Get("Content-Range")); err != nil {
				return k.fail(ErrInvalid, err)
			}
		}
		switch {
		case b.digest == EmptyDigest:
			size = 0 // Go's servers give no length for it upon a HEAD
		case size <= 0:
			return k.invalid("answer without a size")
		}
		return k.plain(resp)
	})
	if err != nil {
		return 0, err
	}
	return size, nil
}

// Open implements swarm.Origin: see there. It returns when the header has
// come; the body is resumed where it breaks. At most Config.Connections
// streams are open per registry, and Open waits for its turn. Reads of one
// stream take turns; Close may be called at any time, also during a Read.
func (b *Blob) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if b.err != nil {
		return nil, b.err
	}
	if off < 0 || n <= 0 || off > b.size-n {
		return nil, fmt.Errorf("get blob %s@%s: %d bytes from byte %d are not within its %d", b.repo, b.digest, n, off, b.size)
	}
	release, err := b.c.slot(ctx, b.task("get"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	s := &body{
		b: b, ctx: ctx, cancel: cancel, release: sync.OnceFunc(release),
		off: off, end: off + n, whole: n == b.size, tries: attempts{c: b.c},
	}
	for {
		if s.cur, err = b.connect(ctx, s.off, s.end, s.whole); err == nil {
			return s, nil
		}
		if err = s.tries.again(ctx, err); err != nil {
			_ = s.Close()
			return nil, err
		}
	}
}

// slot waits until another stream from the registry may be opened.
func (c *Client) slot(ctx context.Context, k task) (release func(), err error) {
	fresh := make(chan struct{}, c.cfg.Connections)
	slots, ok, _ := c.slots.PeekOrAdd(k.repo.Registry, fresh)
	if !ok {
		slots = fresh
	} else {
		c.slots.Get(k.repo.Registry) // it is in use
	}
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, k.broken(ctx, ctx.Err())
	}
}

// connect makes one attempt to get bytes [off, end), for a reader of the whole
// blob or of a range.
func (b *Blob) connect(ctx context.Context, off, end int64, whole bool) (*stream, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(b.c.cfg.Timeouts.Header, func() { cancel(errHeader) })
	k := b.task("get")
	resp, err := b.get(ctx, k, off, end) //nolint:bodyclose // the stream closes it
	timer.Stop()
	if err != nil {
		cancel(nil)
		return nil, err
	}
	s := &stream{
		k: k, ctx: ctx, cancel: cancel, body: resp.Body,
		silent: b.c.cfg.Timeouts.Idle, count: b.c.met.received(b.repo.Registry),
	}
	if s.skip, s.left, err = b.check(k, resp, off, end, whole); err != nil {
		s.close()
		return nil, err
	}
	s.timer = time.AfterFunc(s.silent, func() { cancel(errSilent) })
	s.timer.Stop()
	return s, nil
}

// get sends the request, to where the registry has redirected to before if
// that is fresh and works. The response is of status 200 or 206.
func (b *Blob) get(ctx context.Context, k task, off, end int64) (*http.Response, error) {
	h := blobHeader(off, end)
	if off == 0 && end == b.size {
		// No Range: this works with registries that ignore it, or refuse it.
		h.Del("Range")
	}
	if u := b.short(); u != nil {
		resp, _, err := b.c.follow(ctx, k, request{method: http.MethodGet, url: u, header: h})
		if err == nil && success(resp) {
			return resp, nil
		}
		b.setShort(nil)
		if err == nil {
			drop(resp)
		} else if ctx.Err() != nil {
			return nil, err
		}
	}
	u := b.url()
	resp, from, err := b.c.exchange(ctx, k, http.MethodGet, u, h)
	if err != nil {
		return nil, err
	}
	if !sameOrigin(from, u) {
		b.setShort(from)
	}
	return resp, nil
}

func (b *Blob) short() *url.URL {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.shortcut != nil && !b.c.cfg.Now().Before(b.shortcutEnd) {
		b.shortcut = nil
	}
	return b.shortcut
}

func (b *Blob) setShort(u *url.URL) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shortcut, b.shortcutEnd = u, b.c.cfg.Now().Add(shortcutLife)
}

// check compares a response with what was asked for, [off, end). It returns
// how many bytes come before off, and how many from off on. An answer that
// ignores the range will do where the whole blob is wanted: what has come
// before the stream broke is then skipped.
func (b *Blob) check(k task, resp *http.Response, off, end int64, whole bool) (skip, n int64, err error) {
	if err := k.plain(resp); err != nil {
		return 0, 0, err
	}
	if resp.StatusCode == http.StatusOK {
		if resp.ContentLength >= 0 && resp.ContentLength != b.size {
			return 0, 0, k.invalid("blob has %d bytes instead of %d", resp.ContentLength, b.size)
		}
		if !whole {
			return 0, 0, k.fail(swarm.ErrNoRange, nil)
		}
		return off, end - off, nil
	}
	from, to, size, err := parseContentRange(resp.Header.Get("Content-Range"))
	switch {
	case err != nil:
		return 0, 0, k.fail(ErrInvalid, err)
	case size >= 0 && size != b.size:
		return 0, 0, k.invalid("blob has %d bytes instead of %d", size, b.size)
	case from != off || to > end:
		return 0, 0, k.invalid("bytes %d-%d instead of %d-%d", from, to-1, off, end-1)
	case resp.ContentLength >= 0 && resp.ContentLength != to-from:
		return 0, 0, k.invalid("%d bytes for bytes %d-%d", resp.ContentLength, from, to-1)
	}
	return 0, to - from, nil
}

// blobHeader asks for bytes [off, end); off < 0 for all.
func blobHeader(off, end int64) http.Header {
	h := http.Header{"Accept": {"*/*"}, "Accept-Encoding": {"identity"}}
	if off >= 0 {
		h.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+strconv.FormatInt(end-1, 10))
	}
	return h
}

var contentRangePattern = regexp.MustCompile(`^bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$`)

// parseContentRange parses the header of that name (RFC 9110, 14.4): the
// bytes [off, end) of size, which is -1 when the server does not say.
func parseContentRange(v string) (off, end, size int64, err error) {
	m := contentRangePattern.FindStringSubmatch(v)
	if m == nil {
		return 0, 0, 0, fmt.Errorf("content range %s", quote(v))
	}
	num := func(s string) int64 {
		if s == "*" {
			return -1
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			panic(err) // 18 digits fit
		}
		return n
	}
	off, end, size = num(m[1]), num(m[2])+1, num(m[3])
	if end <= off || size >= 0 && end > size {
		return 0, 0, 0, fmt.Errorf("content range %s", quote(v))
	}
	return off, end, size, nil
}
