package mirror

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// download is one whose bytes, end and figures the test writes.
type download struct {
	read   func(ctx context.Context, p []byte) (int, error)
	wait   func(ctx context.Context) error
	stats  func() swarm.Stats
	closed atomic.Int32
}

type downloadReader struct {
	d   *download
	ctx context.Context
}

func (r downloadReader) Read(p []byte) (int, error) { return r.d.read(r.ctx, p) }
func (downloadReader) Close() error                 { return nil }

func (d *download) NewReader(ctx context.Context, _, _ int64) io.ReadCloser {
	return downloadReader{d, ctx}
}

func (d *download) Wait(ctx context.Context) error {
	if d.wait == nil {
		return nil
	}
	return d.wait(ctx)
}

func (d *download) Stats() swarm.Stats {
	if d.stats == nil {
		return swarm.Stats{}
	}
	return d.stats()
}

func (d *download) Close() { d.closed.Add(1) }

// never is a read that waits for a piece that does not come.
func never(ctx context.Context, _ []byte) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

type readFunc func(ctx context.Context, p []byte) (int, error)

// after reads n bytes, then goes on with next.
func after(n int, next readFunc) readFunc {
	return func(ctx context.Context, p []byte) (int, error) {
		if n == 0 {
			return next(ctx, p)
		}
		p = p[:min(n, len(p))]
		n -= len(p)
		return len(p), nil
	}
}

func fails(err error) readFunc {
	return func(context.Context, []byte) (int, error) { return 0, err }
}

func serving(d *download) *scripted {
	return &scripted{fetch: func(swarm.Request) (swarm.Download, error) { return d, nil }}
}

// aBlob is one that nobody has.
const aBlob = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// dialRaw sends a request on a connection of its own.
func dialRaw(t *testing.T, tm *testMirror, requests string) *net.TCPConn {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", tm.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, requests); err != nil {
		t.Fatal(err)
	}
	tcp, _ := c.(*net.TCPConn)
	return tcp
}

// TestCutIsFIN: whatever ends a body early, the connection ends with FIN
// before the promised length, and the client's next request for the blob is a
// miss. containerd goes on elsewhere after a FIN, and fails after an RST.
func TestCutIsFIN(t *testing.T) {
	const size = 10 << 20
	for name, c := range map[string]struct {
		sent   int
		then   readFunc
		reason string
	}{
		"download fails":               {3 << 20, fails(swarm.ErrUnavailable), reasonCutFailed},
		"wrong digest":                 {3 << 20, fails(&chunker.DigestError{}), reasonCutFailed},
		"short":                        {1000, fails(io.EOF), reasonCutFailed},
		"one byte short":               {size - 1, fails(io.EOF), reasonCutFailed},
		"stalls":                       {100, never, reasonCutStalled},
		"stalls before the first byte": {0, never, reasonCutStalled},
	} {
		for _, pipelined := range []bool{false, true} {
			d := &download{read: after(c.sent, c.then)}
			tm := newMirror(t, serving(d), yes{size}, func(c *Config) {
				c.FirstByteTimeout, c.StallTimeout = time.Nanosecond, 300*time.Millisecond
			}, "docker.io")
			request := "GET /v2/a/blobs/" + aBlob + "?ns=docker.io HTTP/1.1\r\nHost: x\r\n\r\n"
			if pipelined {
				request += request
			}
			conn := dialRaw(t, tm, request)
			br := bufio.NewReader(conn)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if resp.StatusCode != http.StatusOK || resp.ContentLength != size {
				t.Fatalf("%s: %d with %d bytes", name, resp.StatusCode, resp.ContentLength)
			}
			// The raw stream: io.Copy ends without error upon FIN only.
			n, err := io.Copy(io.Discard, br)
			if err != nil || n > int64(c.sent) || (!pipelined && n != int64(c.sent)) {
				t.Errorf("%s (pipelined %t): %d of %d bytes, then %v; want %d, then FIN", name, pipelined, n, size, err, c.sent)
			}
			eventually(t, name+" is counted", func() bool {
				return tm.counted(t, "shoal_mirror_fallbacks_total", "reason", c.reason) > 0
			})
			if r := tm.do(t, http.MethodGet, "/v2/a/blobs/"+aBlob+"?ns=docker.io", "Range", fmt.Sprintf("bytes=%d-", n)); r.status != http.StatusNotFound || r.reason() != reasonCooldown {
				t.Errorf("%s: the retry is answered %d %s", name, r.status, r.body)
			}
			if d.closed.Load() == 0 {
				t.Errorf("%s: the download was not closed", name)
			}
		}
	}
}

// TestFailureBeforeTheFirstByte is a clean miss.
func TestFailureBeforeTheFirstByte(t *testing.T) {
	for name, c := range map[string]struct {
		s      *scripted
		hold   bool
		reason string
	}{
		"no room": {s: &scripted{fetch: func(swarm.Request) (swarm.Download, error) {
			return nil, fmt.Errorf("fetch: %w", &chunker.NoSpaceError{Need: 1})
		}}, reason: reasonDisk},
		"cannot start":     {s: &scripted{}, reason: reasonFailed},
		"nobody has it":    {s: &scripted{fetch: func(swarm.Request) (swarm.Download, error) { return nil, swarm.ErrUnavailable }}, reason: reasonUpstream},
		"gone upstream":    {s: serving(&download{read: fails(swarm.ErrNotFound)}), reason: reasonNotFound},
		"denied upstream":  {s: serving(&download{read: fails(upstream.ErrDenied)}), reason: reasonDenied},
		"too slow":         {s: serving(&download{read: fails(context.DeadlineExceeded)}), reason: reasonSlow},
		"first read":       {s: serving(&download{read: fails(errors.New("disk on fire"))}), reason: reasonFailed},
		"held, then wrong": {s: serving(&download{wait: func(context.Context) error { return &chunker.DigestError{} }}), hold: true, reason: reasonFailed},
	} {
		tm := newMirror(t, c.s, yes{1 << 20}, func(cfg *Config) { cfg.Hold = c.hold }, "docker.io")
		if r := tm.do(t, http.MethodGet, "/v2/a/blobs/"+aBlob+"?ns=docker.io"); r.status != http.StatusNotFound || r.reason() != c.reason {
			t.Errorf("%s: %d %s, want reason %s", name, r.status, r.body, c.reason)
		}
	}
}

// spoilt is an Upstream whose blobs have one wrong byte.
type spoilt struct {
	Upstream
	at int64
}

func (u spoilt) Origin(r Repository, d digest.Digest, size int64) swarm.Origin {
	return spoiltOrigin{u.Upstream.Origin(r, d, size), u.at}
}

type spoiltOrigin struct {
	swarm.Origin
	at int64
}

func (o spoiltOrigin) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	body, err := o.Origin.Open(ctx, off, n)
	if err != nil {
		return nil, err
	}
	return &spoiltBody{body, o.at - off}, nil
}

type spoiltBody struct {
	io.ReadCloser
	in int64 // bytes until the wrong one
}

func (b *spoiltBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.in >= 0 && b.in < int64(n) {
		p[b.in] ^= 1
	}
	b.in -= int64(n)
	return n, err
}

// TestWrongBytesAreNeverCompleted: not of a large blob, a small one, or a
// manifest, wherever in them the wrong byte is.
func TestWrongBytesAreNeverCompleted(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 2<<20, 1000)
	for _, hold := range []bool{false, true} {
		for _, at := range []int64{0, 999, 1<<20 + 5, 2<<20 - 1} {
			for i, l := range img.layers {
				if at >= l.Size {
					continue
				}
				tm := newMirror(t, new(cluster).join(t), spoilt{newClient(t, reg), at}, func(c *Config) { c.Hold = hold }, reg.name)
				r := tm.do(t, http.MethodGet, img.blobURL(reg, l))
				if r.status == http.StatusOK && r.err == nil {
					t.Errorf("hold %t: layer %d with a wrong byte %d is complete", hold, i, at)
				}
				if hold && (r.status == http.StatusOK || bytes.HasPrefix(r.body, img.content[l.Digest][:100])) {
					t.Errorf("hold: layer %d, wrong byte %d: %d, %d bytes sent", i, at, r.status, len(r.body))
				}
			}
		}
	}
	reg.guard(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet {
			return true
		}
		_, _ = w.Write([]byte(`{"schemaVersion":2,"config":{},"layers":[]}`))
		return false
	})
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	if r := tm.do(t, http.MethodGet, img.manifestURL(reg, "v1")); r.status != http.StatusNotFound {
		t.Errorf("a wrong manifest is served: %d %s", r.status, r.body)
	}
}

// counting counts the bytes that its origins were asked for.
type counting struct {
	Upstream
	bytes *atomic.Int64
}

func (u counting) Origin(r Repository, d digest.Digest, size int64) swarm.Origin {
	return countingOrigin{u.Upstream.Origin(r, d, size), u.bytes}
}

type countingOrigin struct {
	swarm.Origin
	bytes *atomic.Int64
}

func (o countingOrigin) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	o.bytes.Add(n)
	return o.Origin.Open(ctx, off, n)
}

// TestCoalescing: many clients of one node, one copy from upstream.
func TestCoalescing(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 2_000_000)
	up := counting{newClient(t, reg), new(atomic.Int64)}
	tm := newMirror(t, new(cluster).join(t), up, nil, reg.name)
	all := func(target string, want []byte) {
		t.Helper()
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				if r := tm.do(t, http.MethodGet, target); !bytes.Equal(r.body, want) {
					t.Errorf("%s: %d, %d bytes", target, r.status, len(r.body))
				}
			})
		}
		wg.Wait()
	}
	all(img.manifestURL(reg, img.desc.Digest.String()), img.manifest)
	if got := reg.requests(); len(got) != 2 {
		t.Errorf("16 clients of one manifest cost %q", got)
	}
	all(img.blobURL(reg, img.layers[0]), img.content[img.layers[0].Digest])
	if n := up.bytes.Load(); n != img.layers[0].Size {
		t.Errorf("16 clients of a blob of %d bytes cost %d", img.layers[0].Size, n)
	}
	// Split over 16 clients, the origin's bytes are still all there is.
	eventually(t, "the bytes are counted", func() bool {
		return tm.counted(t, "shoal_mirror_bytes_total") == 16*float64(img.layers[0].Size+img.desc.Size)
	})
}

// TestDisconnect: when the last client is gone, nothing more is fetched.
func TestDisconnect(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 4<<20)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	tm.do(t, http.MethodGet, img.manifestURL(reg, "v1"))
	began, ended := make(chan struct{}, 100), make(chan struct{}, 100)
	data := img.content[img.layers[0].Digest]
	reg.guard(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(data)-1, len(data)))
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(data[:1000])
		_ = http.NewResponseController(w).Flush()
		began <- struct{}{}
		<-r.Context().Done()
		ended <- struct{}{}
		return false
	})
	conn := dialRaw(t, tm, "GET "+img.blobURL(reg, img.layers[0])+" HTTP/1.1\r\nHost: x\r\n\r\n")
	<-began
	_ = conn.Close()
	<-ended
	eventually(t, "the request ends", func() bool {
		return tm.counted(t, "shoal_mirror_fallbacks_total", "reason", reasonClient) == 1
	})
}

// TestClientThatDoesNotRead costs a connection for ClientTimeout only.
func TestClientThatDoesNotRead(t *testing.T) {
	const size = 1 << 30
	tm := newMirror(t, serving(&download{read: after(size, never)}), yes{size}, func(c *Config) { c.ClientTimeout = 50 * time.Millisecond }, "docker.io")
	dialRaw(t, tm, "GET /v2/a/blobs/"+aBlob+"?ns=docker.io HTTP/1.1\r\nHost: x\r\n\r\n")
	eventually(t, "the request ends", func() bool {
		return tm.counted(t, "shoal_mirror_fallbacks_total", "reason", reasonClient) == 1
	})
	if r := tm.do(t, http.MethodHead, "/v2/a/blobs/"+aBlob+"?ns=docker.io"); r.status != http.StatusOK {
		t.Errorf("another client gets %d: the blob is not to blame", r.status)
	}
}

// TestUpstreamHangs: one client waits for CheckTimeout, the next ones for
// nothing.
func TestUpstreamHangs(t *testing.T) {
	const timeout = 2 * time.Second
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 1000)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), func(c *Config) { c.CheckTimeout = timeout }, reg.name)
	reg.hang()
	if r := tm.do(t, http.MethodGet, img.blobURL(reg, img.layers[0])); r.status != http.StatusNotFound {
		t.Fatalf("%d", r.status)
	}
	reg.requests()
	for _, target := range []string{
		img.blobURL(reg, img.layers[0]), img.blobURL(reg, img.config),
		img.manifestURL(reg, img.desc.Digest.String()), img.manifestURL(reg, "v1"), img.manifestURL(reg, "v2"),
	} {
		r := tm.do(t, http.MethodGet, target)
		if r.status != http.StatusNotFound || r.reason() != reasonUpstream {
			t.Errorf("%s: %d %s", target, r.status, r.body)
		}
		if r.took > timeout/2 {
			t.Errorf("%s: a miss took %s", target, r.took)
		}
	}
	if got := reg.requests(); len(got) > 0 {
		t.Errorf("a registry that hangs was asked again: %q", got)
	}
}

// TestSize: a blob's size comes from whoever knows it, in order of cost.
func TestSize(t *testing.T) {
	repo := Repository{Registry: "docker.io", Name: "a"}
	held := func(digest.Digest) (int64, int, error) { return 20, 1, nil }
	for name, c := range map[string]struct {
		known  *entry
		locate func(digest.Digest) (int64, int, error)
		up     yes
		want   string
	}{
		"manifest":            {known: &entry{size: 10}, locate: held, up: yes{30}, want: "10"},
		"cluster":             {known: &entry{}, locate: held, up: yes{30}, want: "20"},
		"upstream":            {known: &entry{}, up: yes{30}, want: "30"},
		"nobody":              {known: &entry{}},
		"upstream, on asking": {up: yes{30}, want: "30"},
		"absurd":              {known: &entry{size: -5}, up: yes{-1}},
	} {
		tm := newMirror(t, &scripted{locate: c.locate}, c.up, nil, "docker.io")
		if c.known != nil {
			tm.grants.set(grantKey{repo: repo}, nil, time.Now())
			tm.catalog.add(repo, aBlob, *c.known)
		}
		r := tm.do(t, http.MethodHead, "/v2/a/blobs/"+aBlob+"?ns=docker.io")
		got := r.header.Get("Content-Length")
		if r.status != http.StatusOK {
			got = ""
		}
		if got != c.want {
			t.Errorf("%s: %d, size %q, want %q", name, r.status, got, c.want)
		}
	}
}

// TestMissesTellTheReason checks the mapping of errors once for all.
func TestMissesTellTheReason(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{upstream.ErrDenied, reasonDenied},
		{fmt.Errorf("%w: %w", swarm.ErrUnavailable, upstream.ErrDenied), reasonDenied},
		{swarm.ErrNotFound, reasonNotFound},
		{fmt.Errorf("%w: %w", swarm.ErrUnavailable, errSlow), reasonSlow},
		{fmt.Errorf("%w: %w", swarm.ErrUnavailable, errDown), reasonUpstream},
		{errStalled, reasonSlow},
		{context.DeadlineExceeded, reasonSlow},
		{context.Canceled, reasonClient},
		{&chunker.NoSpaceError{}, reasonDisk},
		{&chunker.DigestError{}, reasonFailed},
		{errors.New("x"), reasonFailed},
	} {
		if m := asMiss(fmt.Errorf("wrapped: %w", c.err), codeBlobUnknown); m.reason != c.want || m.code != codeBlobUnknown || m.httpStatus() != http.StatusNotFound || strings.Contains(m.message, "wrapped") {
			t.Errorf("%v: %+v, want %s", c.err, m, c.want)
		}
	}
}
