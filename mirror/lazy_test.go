package mirror

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm"
)

// TestLazyRange: a chunk costs its span, in one copy for all nodes, and the rest of
// the blob stays where it is.
func TestLazyRange(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 3_000_000)
	data := img.content[img.layers[0].Digest]
	up := counting{newClient(t, reg), new(atomic.Int64)}
	c := new(cluster)
	one, two, holder := newMirror(t, c.join(t), up, nil, reg.name), newMirror(t, c.join(t), up, nil, reg.name), newMirror(t, c.join(t), up, nil, reg.name)
	chunk := func(tm *testMirror, off int) {
		t.Helper()
		r := tm.do(t, http.MethodGet, img.blobURL(reg, img.layers[0]), "Range", fmt.Sprintf("bytes=%d-%d", off, off+99))
		if r.status != http.StatusPartialContent || !bytes.Equal(r.body, data[off:off+100]) {
			t.Fatalf("%d, %d bytes %.200s", r.status, len(r.body), r.body)
		}
	}
	sources := func(tm *testMirror, local, peers, origin float64) {
		t.Helper()
		for source, want := range map[swarm.Source]float64{swarm.SourceLocal: local, swarm.SourcePeers: peers, swarm.SourceOrigin: origin} {
			if got := tm.counted(t, "shoal_mirror_bytes_total", "source", string(source)); got != want {
				t.Errorf("%v bytes from %s, want %v", got, source, want)
			}
		}
	}
	chunk(one, 1_000_000)
	chunk(two, 1_000_100)
	chunk(two, 999_000)
	sources(one, 0, 0, 100)
	sources(two, 100, 100, 0)
	if n := up.bytes.Load(); n != swarm.SpanLength {
		t.Errorf("chunks of one span cost %d bytes", n)
	}
	if _, n, err := one.cfg.Swarm.Locate(t.Context(), img.layers[0].Digest); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("%d nodes have the whole blob, %v", n, err)
	}
	if !strings.Contains(two.log.String(), `"lazy":true`) || strings.Contains(holder.log.String(), `"lazy":true`) {
		t.Errorf("the log does not say who reads lazily:\n%s", two.log)
	}

	holder.do(t, http.MethodGet, img.blobURL(reg, img.layers[0]))
	eventually(t, "the cluster knows the blob", func() bool {
		_, n, err := one.cfg.Swarm.Locate(t.Context(), img.layers[0].Digest)
		return err == nil && n > 0
	})
	before := up.bytes.Load()
	chunk(one, 2_000_000)
	if n := up.bytes.Load() - before; n != 0 {
		t.Errorf("a chunk that a node has cost %d bytes", n)
	}
	reg.answer(http.StatusServiceUnavailable)
	chunk(one, 100)
	chunk(two, 2_999_000)
}

// TestSnapshottersRequests sends what lazy snapshotters do, through the prefix and
// without ns: stargz-snapshotter before 0.19 and soci-snapshotter 0.16.1, both in
// fs/remote/resolver.go. In e2e they mount images for real, stargz in a version that
// sends ns.
func TestSnapshottersRequests(t *testing.T) {
	const size = 5_000_000
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", size)
	data := img.content[img.layers[0].Digest]
	type exchange struct {
		method, ranges string
		status         int
		content        string // Content-Range
		off, n         int
	}
	// Both look for redirections by a GET of two bytes, and ask for the size.
	probes := []exchange{
		{http.MethodGet, "bytes=0-1", 206, "bytes 0-1/5000000", 0, 2},
		{http.MethodHead, "", 200, "", 0, 0},
	}
	for name, exchanges := range map[string][]exchange{
		"stargz": {
			// The footer, the table of contents, a file's chunks of 50 kB. Chunks that do not
			// follow each other are asked for again as one range, upon the 400 and from then on.
			{http.MethodGet, "bytes=4950000-4999999", 206, "bytes 4950000-4999999/5000000", 4_950_000, 50_000},
			{http.MethodGet, "bytes=0-49999,50000-99999", 206, "bytes 0-99999/5000000", 0, 100_000},
			{http.MethodGet, "bytes=200000-249999,300000-349999", 400, "", 0, 0},
			{http.MethodGet, "bytes=200000-349999", 206, "bytes 200000-349999/5000000", 200_000, 150_000},
		},
		"SOCI": {
			{http.MethodGet, "bytes=10-1999999", 206, "bytes 10-1999999/5000000", 10, 1_999_990},
			{http.MethodGet, "bytes=2000000-4999999", 206, "bytes 2000000-4999999/5000000", 2_000_000, 3_000_000},
		},
	} {
		t.Run(name, func(t *testing.T) {
			up := counting{newClient(t, reg), new(atomic.Int64)}
			tm := newMirror(t, new(cluster).join(t), up, nil, reg.name)
			url := "/registry/" + reg.name + "/v2/app/blobs/" + img.layers[0].Digest.String()
			for _, e := range append(probes, exchanges...) {
				r := tm.do(t, e.method, url, "Range", e.ranges, "Accept-Encoding", "identity")
				if r.status != e.status || r.header.Get("Content-Range") != e.content || e.n > 0 && !bytes.Equal(r.body, data[e.off:e.off+e.n]) {
					t.Errorf("%s %q: %d, %q, %d bytes, %v", e.method, e.ranges, r.status, r.header.Get("Content-Range"), len(r.body), r.err)
				}
				if e.status < 300 && r.header.Get("Accept-Ranges") != "bytes" {
					t.Errorf("%s %q: no Accept-Ranges", e.method, e.ranges)
				}
				if e.status == 200 && r.header.Get("Content-Length") != fmt.Sprint(size) {
					t.Errorf("the size is %q", r.header.Get("Content-Length"))
				}
			}
			if n := up.bytes.Load(); n > size {
				t.Errorf("%d bytes left the registry for parts of %d", n, size)
			}
		})
	}
}

// TestNotLazy: what has to be fetched whole to be of use, or to be believed.
func TestNotLazy(t *testing.T) {
	for name, c := range map[string]struct {
		size    int
		hold    bool
		noRange bool
		whole   float64
	}{
		"held until verified":       {size: 2_000_000, hold: true},
		"of one span":               {size: swarm.SpanLength},
		"a registry without ranges": {size: 2_000_000, noRange: true, whole: 1},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t)
			img := reg.pushImage(t, "app", "v1", c.size)
			layer := img.layers[0]
			up := counting{newClient(t, reg), new(atomic.Int64)}
			tm := newMirror(t, new(cluster).join(t), up, func(cfg *Config) { cfg.Hold = c.hold }, reg.name)
			if c.noRange {
				reg.guard(func(_ http.ResponseWriter, r *http.Request) bool {
					r.Header.Del("Range")
					return true
				})
			}
			r := tm.do(t, http.MethodGet, img.blobURL(reg, layer), "Range", "bytes=1000-1999")
			if r.status != http.StatusPartialContent || !bytes.Equal(r.body, img.content[layer.Digest][1000:2000]) {
				t.Fatalf("%d, %d bytes %.200s", r.status, len(r.body), r.body)
			}
			eventually(t, "the whole blob is here", func() bool {
				b, err := tm.cfg.Swarm.Open(t.Context(), layer.Digest)
				if err == nil {
					_ = b.Close()
				}
				return err == nil
			})
			if got := tm.counted(t, "shoal_mirror_whole_for_part_total"); got != c.whole {
				t.Errorf("%v blobs counted as fetched whole for a part, want %v", got, c.whole)
			}
		})
	}
}

// TestLazyFailures: a snapshotter goes on asking here for a layer that it has
// mounted, so a part that failed does not keep it away, and nobody else either.
func TestLazyFailures(t *testing.T) {
	const size = 4 << 20
	var mu sync.Mutex
	var asked []swarm.Request
	s := &scripted{part: func(r swarm.Request, _, _ int64) (swarm.Download, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r)
		return &download{read: after(1000, fails(swarm.ErrUnavailable))}, nil
	}}
	tm := newMirror(t, s, yes{size}, nil, "docker.io")
	target := "/v2/a/blobs/" + aBlob + "?ns=docker.io"
	for range 2 {
		r := tm.do(t, http.MethodGet, target, "Range", "bytes=0-9999")
		if r.status != http.StatusPartialContent || len(r.body) != 1000 || !errors.Is(r.err, io.ErrUnexpectedEOF) {
			t.Errorf("%d, %d bytes, %v", r.status, len(r.body), r.err)
		}
	}
	if tm.cooldown.active(digest.Digest(aBlob), time.Now()) {
		t.Error("pulls of the whole blob are sent away")
	}
	tm.cooldown.start(digest.Digest(aBlob), time.Now())
	if r := tm.do(t, http.MethodGet, target, "Range", "bytes=0-9"); r.status != http.StatusPartialContent {
		t.Errorf("after a pull of the whole blob has failed: %d %s", r.status, r.body)
	}
	// Without a word from the registry, peers may still do.
	tm.oracle.down.Add("docker.io", time.Now().Add(time.Minute))
	tm.do(t, http.MethodGet, target, "Range", "bytes=0-9")
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 4 || asked[2].Origin == nil || asked[3].Origin != nil {
		t.Errorf("asked for %+v", asked)
	}
	s.part = func(swarm.Request, int64, int64) (swarm.Download, error) { return nil, swarm.ErrUnavailable }
	if r := tm.do(t, http.MethodGet, target, "Range", "bytes=0-9"); r.status != http.StatusServiceUnavailable || r.reason() != reasonUpstream {
		t.Errorf("what nobody has at the moment is answered %d %s", r.status, r.body)
	}
	s.part = func(swarm.Request, int64, int64) (swarm.Download, error) { return nil, swarm.ErrNotFound }
	if r := tm.do(t, http.MethodGet, target, "Range", "bytes=0-9"); r.status != http.StatusNotFound || r.reason() != reasonNotFound {
		t.Errorf("what is nowhere is answered %d %s", r.status, r.body)
	}
}

// TestPrivateParts: a part that lies here is given to those whom the registry lets in,
// and to nobody else; and nodes trade it without their credentials.
func TestPrivateParts(t *testing.T) {
	for _, basic := range []bool{false, true} {
		t.Run(fmt.Sprintf("basic=%t", basic), func(t *testing.T) {
			k := newKeeper(t, basic)
			img := k.reg.pushImage(t, "private/app", "v1", 3_000_000)
			k.lock()
			tap := &logBuffer{}
			c := &cluster{tap: tap}
			one, two := k.mirror(t, c.join(t), nil), k.mirror(t, c.join(t), nil)
			p := pod()
			for _, c := range []struct {
				tm   *testMirror
				from swarm.Source
			}{{one, swarm.SourceOrigin}, {two, swarm.SourcePeers}} {
				r := p.get(t, c.tm, http.MethodGet, img.blobURL(k.reg, img.layers[0]), "Range", "bytes=0-9")
				if r.status != http.StatusPartialContent || !bytes.Equal(r.body, img.content[img.layers[0].Digest][:10]) {
					t.Errorf("%d %s", r.status, r.body)
				}
				eventually(t, "the read is counted", func() bool {
					return c.tm.counted(t, "shoal_mirror_bytes_total", "source", string(c.from)) == 10
				})
			}
			if n := k.blobBytes.Load(); n != swarm.SpanLength {
				t.Errorf("%d bytes left the registry, want a span", n)
			}
			for _, tm := range []*testMirror{one, two} {
				(&puller{}).refused(t, tm, k, img)
				(&puller{user: "pod", password: "wr0ng"}).refused(t, tm, k, img)
				noSecrets(t, "log", tm.log.String(), p.authorization)
			}
			noSecrets(t, "peers", tap.String(), p.authorization)
		})
	}
}
