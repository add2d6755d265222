package mirror

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-dev/shoal/swarm"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// image URLs, as containerd asks for them.
func (i image) manifestURL(reg *testRegistry, ref string) string {
	return "/v2/" + i.repo + "/manifests/" + ref + "?ns=" + reg.name
}

func (i image) blobURL(reg *testRegistry, d ocispec.Descriptor) string {
	return "/v2/" + i.repo + "/blobs/" + d.Digest.String() + "?ns=" + reg.name
}

// TestPull is a cold pull as containerd does it, with a real registry and a
// real node, and a warm one.
func TestPull(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "library/app", "v1", 10_000, 3<<20)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)

	head := tm.do(t, http.MethodHead, img.manifestURL(reg, "v1"))
	if got := head.header.Get("Docker-Content-Digest"); head.status != http.StatusOK || got != img.desc.Digest.String() {
		t.Fatalf("HEAD of the tag: %d, digest %s", head.status, got)
	}
	pull := func() {
		t.Helper()
		man := tm.do(t, http.MethodGet, img.manifestURL(reg, img.desc.Digest.String()))
		if man.status != http.StatusOK || !bytes.Equal(man.body, img.manifest) {
			t.Fatalf("GET of the manifest: %d, %d bytes", man.status, len(man.body))
		}
		for _, d := range append(img.layers, img.config) {
			b := tm.do(t, http.MethodGet, img.blobURL(reg, d))
			if b.status != http.StatusOK || b.err != nil || !bytes.Equal(b.body, img.content[d.Digest]) {
				t.Fatalf("GET of a blob of %d bytes: %d, %d bytes, %v", d.Size, b.status, len(b.body), b.err)
			}
		}
	}
	pull()
	total := float64(len(img.manifest)) + float64(img.config.Size)
	for _, l := range img.layers {
		total += float64(l.Size)
	}
	eventually(t, "all bytes are from the origin", func() bool {
		return tm.counted(t, "shoal_mirror_bytes_total", "source", "origin") == total
	})
	tm.Landed([]swarm.Held{
		{Digest: img.desc.Digest, Size: 1}, {Digest: img.layers[0].Digest, Size: 1},
		{Digest: digest.FromString("imported"), Size: 1},
	})
	tm.Landed([]swarm.Held{{Digest: img.layers[0].Digest, Size: 1}}) // once more, from elsewhere
	for way, want := range map[string]float64{throughMirror: 2, throughElsewhere: 2} {
		if n := tm.counted(t, "shoal_mirror_landed_blobs_total", "through", way); n != want {
			t.Errorf("%v blobs counted as landed through %s, want %v", n, way, want)
		}
	}
	reg.requests()
	pull()
	eventually(t, "all bytes again, from here", func() bool {
		return tm.counted(t, "shoal_mirror_bytes_total", "source", "local") == total
	})
	if r := reg.requests(); len(r) > 0 {
		t.Errorf("the warm pull asked the registry: %q", r)
	}
	for cache, want := range map[string]float64{"hit": 4, "miss": 5} {
		if n := tm.counted(t, "shoal_mirror_requests_total", "registry", reg.name, "cache", cache); n != want {
			t.Errorf("%v counted as %s, want %v", n, cache, want)
		}
	}
	if n := strings.Count(tm.log.String(), `"message":"pull"`); n != 9 {
		t.Errorf("%d lines of log for 9 requests", n)
	}
}

// TestPullFromPeers is a pull with the registry gone: by tag and by digest,
// on a node that has never seen the image.
func TestPullFromPeers(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 2_000_000)
	up := newClient(t, reg)
	c := new(cluster)
	one := newMirror(t, c.join(t), up, nil, reg.name)
	two := newMirror(t, c.join(t), up, nil, reg.name)
	late := newMirror(t, c.join(t), up, func(c *Config) { c.OutageGrace = time.Nanosecond }, reg.name)
	pull := func(tm *testMirror, stale bool) {
		t.Helper()
		for _, method := range []string{http.MethodHead, http.MethodGet} {
			if r := tm.do(t, method, img.manifestURL(reg, "v1")); r.status != http.StatusOK || r.header.Get("Docker-Content-Digest") != img.desc.Digest.String() {
				t.Fatalf("%s of the tag: %d %s", method, r.status, r.body)
			} else if got := r.header.Get("Warning"); (got != "") != stale || stale && !strings.HasPrefix(got, `299 - "`+reg.name+" does not answer: v1 as of ") {
				t.Errorf("%s of the tag, stale %t: warning %q", method, stale, got)
			}
		}
		for _, d := range append(img.layers, img.config) {
			if b := tm.do(t, http.MethodGet, img.blobURL(reg, d)); !bytes.Equal(b.body, img.content[d.Digest]) {
				t.Fatalf("blob of %d bytes: %d, %d bytes, %v: %.200s", d.Size, b.status, len(b.body), b.err, b.body)
			}
		}
	}
	pull(one, false)
	reg.answer(http.StatusServiceUnavailable)
	// Announcements are batched.
	eventually(t, "the cluster knows where the blobs are", func() bool {
		for _, d := range append(img.layers, img.config, img.desc) {
			if _, n, err := two.cfg.Swarm.Locate(t.Context(), d.Digest); err != nil || n == 0 {
				return false
			}
		}
		return true
	})
	pull(two, true)
	if r := late.do(t, http.MethodHead, img.manifestURL(reg, "v1")); r.status != http.StatusNotFound {
		t.Errorf("an answer older than the grace is served: %d", r.status)
	}
	if n := two.counted(t, "shoal_mirror_bytes_total", "source", "origin"); n != 0 {
		t.Errorf("%v bytes from a registry that is down", n)
	}
	for _, what := range []string{"permission", "tag"} {
		eventually(t, what+" is counted as degraded", func() bool {
			return two.counted(t, "shoal_mirror_degraded_total", "what", what) > 0
		})
	}
	if !strings.Contains(two.log.String(), `"offline":true`) || !strings.Contains(two.log.String(), `"stale":true`) {
		t.Errorf("the log does not tell of the outage:\n%s", two.log.String())
	}
}

// TestRequestsOfACluster: public registries count a GET of a manifest against a
// limit, and not a HEAD. Eight nodes that pull a tag at once need one.
func TestRequestsOfACluster(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 100_000)
	c := new(cluster)
	var nodes []*testMirror
	for range 8 {
		nodes = append(nodes, newMirror(t, c.join(t), newClient(t, reg), nil, reg.name))
	}
	var wg sync.WaitGroup
	for _, tm := range nodes {
		wg.Go(func() {
			// containerd's order; the last is what other clients do.
			for _, q := range []struct{ method, ref string }{{http.MethodHead, "v1"}, {http.MethodGet, img.desc.Digest.String()}, {http.MethodGet, "v1"}} {
				r := tm.do(t, q.method, img.manifestURL(reg, q.ref))
				if r.status != http.StatusOK || r.header.Get("Docker-Content-Digest") != img.desc.Digest.String() {
					t.Errorf("%s %s: %d %.200s", q.method, q.ref, r.status, r.body)
				}
			}
		})
	}
	wg.Wait()
	got := map[string]int{}
	for _, r := range reg.requests() {
		if method, path, _ := strings.Cut(r, " "); strings.Contains(path, "/manifests/") {
			got[method]++
		}
	}
	t.Logf("8 nodes: %v", got)
	// Each node asks once whether it may, and again maybe for the tag.
	if got[http.MethodGet] != 1 || got[http.MethodHead] > 16 {
		t.Errorf("8 nodes asked the registry for manifests by %v", got)
	}
}

// TestHeadEqualsGet: the same status and headers, whatever is asked for and
// whatever is known already.
func TestHeadEqualsGet(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 1000, 600_000)
	for _, first := range []string{http.MethodHead, http.MethodGet} {
		tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
		second := map[string]string{http.MethodHead: http.MethodGet, http.MethodGet: http.MethodHead}[first]
		for _, target := range []string{
			"/v2/", "/v2",
			img.manifestURL(reg, "v1"),
			img.manifestURL(reg, img.desc.Digest.String()),
			img.manifestURL(reg, "gone"),
			img.manifestURL(reg, someDigest),
			img.blobURL(reg, img.layers[0]),
			img.blobURL(reg, img.layers[1]),
			img.blobURL(reg, ocispec.Descriptor{Digest: img.desc.Digest}),
			"/v2/app/blobs/sha256:x?ns=" + reg.name,
			"/v2/App/manifests/v1?ns=" + reg.name,
			"/v2/app/manifests/v1?ns=elsewhere.example",
			"/v2/app/manifests/v1",
			"/v2/app/tags/list?ns=" + reg.name,
			"/",
		} {
			a, b := tm.do(t, first, target), tm.do(t, second, target)
			a.header.Del("Date")
			b.header.Del("Date")
			if diff := cmp.Diff(a.header, b.header); a.status != b.status || diff != "" {
				t.Errorf("%s of %s: %d, then %s: %d\n%s", first, target, a.status, second, b.status, diff)
			}
			get, head := a, b
			if first == http.MethodHead {
				get, head = b, a
			}
			if len(head.body) > 0 || fmt.Sprint(len(get.body)) != get.header.Get("Content-Length") {
				t.Errorf("%s: HEAD has %d bytes of body, GET %d of %s", target, len(head.body), len(get.body), get.header.Get("Content-Length"))
			}
		}
	}
}

func TestPathPrefixAndDefault(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "a/b", "v1", 10)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), func(c *Config) { c.DefaultRegistry = reg.name }, reg.name)
	for target, want := range map[string]int{
		"/registry/" + reg.name + "/v2/":                                      http.StatusOK,
		"/registry/" + reg.name + "/v2/a/b/manifests/v1":                      http.StatusOK,
		"/registry/" + reg.name + "/v2/a/b/manifests/v1?ns=other.io":          http.StatusOK,
		"/registry/other.io/v2/a/b/manifests/v1?ns=" + reg.name:               http.StatusNotFound,
		"/registry/a%2Fb/v2/a/b/manifests/v1":                                 http.StatusNotFound,
		"/v2/a/b/manifests/v1":                                                http.StatusOK,
		"/v2/a/b/blobs/" + img.config.Digest.String():                         http.StatusOK,
		"/v2/a/b/manifests/v1?ns=" + strings.ReplaceAll(reg.name, ":", "%3A"): http.StatusOK,
		"/v2/a/b/manifests/v1?ns=" + strings.ToUpper(reg.name):                http.StatusOK,
		"/v2/a//b/manifests/v1":                                               http.StatusNotFound,
		"/v2/../v2/a/b/manifests/v1":                                          http.StatusNotFound,
	} {
		if r := tm.do(t, http.MethodGet, target); r.status != want {
			t.Errorf("%s: %d, want %d: %s", target, r.status, want, r.body)
		}
	}
}

// TestEmptyBlob: some registries hold one, and no swarm can.
func TestEmptyBlob(t *testing.T) {
	tm := newMirror(t, &scripted{}, yes{}, nil, "docker.io")
	for _, header := range []string{"", "bytes=0-"} {
		r := tm.do(t, http.MethodGet, "/v2/a/blobs/"+someDigest+"?ns=docker.io", "Range", header)
		if r.status != http.StatusOK || r.header.Get("Content-Length") != "0" || r.err != nil {
			t.Errorf("Range %q: %d, %v", header, r.status, r.header)
		}
	}
}

func TestRanges(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 700_000)
	data := img.content[img.layers[0].Digest]
	for _, hold := range []bool{false, true} {
		for _, warm := range []bool{false, true} {
			for header, want := range map[string]struct {
				status  int
				content string
				body    []byte
			}{
				"":                      {200, "", data},
				"bytes=0-1":             {206, "bytes 0-1/700000", data[:2]},
				"bytes=699000-":         {206, "bytes 699000-699999/700000", data[699000:]},
				"bytes=-10":             {206, "bytes 699990-699999/700000", data[699990:]},
				"bytes=1000-2000":       {206, "bytes 1000-2000/700000", data[1000:2001]},
				"bytes=1000-1999,2000-": {206, "bytes 1000-699999/700000", data[1000:]},
				"bytes=700000-":         {416, "bytes */700000", nil},
				"bytes=0-1,5-6":         {400, "", nil},
				"bytes=nonsense":        {200, "", data},
			} {
				node := new(cluster).join(t)
				tm := newMirror(t, node, newClient(t, reg), func(c *Config) { c.Hold = hold }, reg.name)
				if warm {
					tm.do(t, http.MethodGet, img.blobURL(reg, img.layers[0]))
				}
				r := tm.do(t, http.MethodGet, img.blobURL(reg, img.layers[0]), "Range", header)
				if r.status != want.status || r.header.Get("Content-Range") != want.content || want.body != nil && !bytes.Equal(r.body, want.body) {
					t.Errorf("hold %t, warm %t, Range %q: %d, %q, %d bytes, %v", hold, warm, header, r.status, r.header.Get("Content-Range"), len(r.body), r.err)
				}
				if want.status != 400 && want.status != 416 && r.header.Get("Accept-Ranges") != "bytes" {
					t.Errorf("Range %q: no Accept-Ranges", header)
				}
			}
		}
	}
}

func TestIfRangeIsNeverMatched(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 1000)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	if r := tm.do(t, http.MethodGet, img.blobURL(reg, img.layers[0]), "Range", "bytes=5-", "If-Range", `"x"`); r.status != http.StatusOK || len(r.body) != 1000 {
		t.Errorf("%d, %d bytes", r.status, len(r.body))
	}
}

// TestErrorBodies compares the misses that need no upstream with their golden
// bodies.
func TestErrorBodies(t *testing.T) {
	tm := newMirror(t, &scripted{}, yes{}, nil, "docker.io")
	got := map[string]json.RawMessage{}
	for _, c := range []struct{ name, method, target, auth string }{
		{"registry", "GET", "/v2/a/manifests/x?ns=ghcr.io", ""},
		{"address", "GET", "/v2/a/manifests/x?ns=169.254.169.254", ""},
		{"no namespace", "GET", "/v2/a/manifests/x", ""},
		{"bad namespace", "GET", "/v2/a/manifests/x?ns=a/b", ""},
		{"bad name", "GET", "/v2/A/manifests/x?ns=docker.io", ""},
		{"bad tag", "GET", "/v2/a/manifests/.x?ns=docker.io", ""},
		{"bad digest of a manifest", "GET", "/v2/a/manifests/sha256:0?ns=docker.io", ""},
		{"bad digest of a blob", "GET", "/v2/a/blobs/x?ns=docker.io", ""},
		{"sha512", "GET", "/v2/a/blobs/sha512:00?ns=docker.io", ""},
		{"credentials", "GET", "/v2/a/blobs/" + someDigest + "?ns=docker.io", "Digest x"},
		{"unknown manifest", "GET", "/v2/a/manifests/x?ns=docker.io", ""},
		{"method", "POST", "/v2/a/blobs/" + someDigest + "?ns=docker.io", ""},
		{"route", "GET", "/v2/a/tags/list?ns=docker.io", ""},
	} {
		r := tm.do(t, c.method, c.target, "Authorization", c.auth)
		if ct := r.header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s: Content-Type %s", c.name, ct)
		}
		got[c.name] = json.RawMessage(fmt.Sprintf(`{"status":%d,"body":%s}`, r.status, r.body))
	}
	out, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "errors.golden.json")
	if *update {
		if err := os.WriteFile(golden, append(out, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.TrimSpace(string(want)), string(out)); diff != "" {
		t.Errorf("error bodies changed (-want +got), see -update:\n%s", diff)
	}
}

// TestHostileNamespaces: the metrics do not grow with what clients make up.
func TestHostileNamespaces(t *testing.T) {
	tm := newMirror(t, &scripted{
		open: func(digest.Digest) (swarm.Reader, error) { return inMemory{bytes.NewReader([]byte("x"))}, nil },
	}, yes{1}, nil, "docker.io", "*.example")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < 10_000; i += 8 {
				ns := [...]string{"docker.io", "h%d.evil.com", "h%d.example", "%%%d"}[i/8%4]
				if strings.Contains(ns, "%") {
					ns = fmt.Sprintf(ns, i)
				}
				r, err := http.NewRequest(http.MethodGet, "/v2/a/blobs/"+aBlob+"?ns="+ns, nil)
				if err != nil {
					t.Errorf("%s: %v", ns, err)
					continue
				}
				tm.Handler().ServeHTTP(&discard{h: http.Header{}}, r)
			}
		})
	}
	wg.Wait()
	fams, err := tm.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fams {
		if n := len(f.GetMetric()); n > 2*(labelledRegistries+2) {
			t.Errorf("%s has %d series", f.GetName(), n)
		}
	}
	if n := tm.counted(t, "shoal_mirror_requests_total"); n != 10_000 {
		t.Errorf("%v requests counted", n)
	}
	if n := tm.counted(t, "shoal_mirror_requests_total", "registry", "docker.io", "cache", "hit"); n != 2_504 {
		t.Errorf("%v of them are hits of docker.io", n)
	}
	for name, n := range map[string]int{"grants": tm.grants.c.Len(), "catalog": tm.catalog.c.Len()} {
		if n > max(knownDecisions, cataloguedDigests) {
			t.Errorf("%s has %d entries", name, n)
		}
	}
}
