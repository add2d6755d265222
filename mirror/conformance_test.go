package mirror

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestSpecification asks what the sections of the specification that concern a
// pull say, of the mirror and of the registry behind it, cold and warm, and
// compares docs/reference/conformance.md.
func TestSpecification(t *testing.T) {
	ofBlob, ofRange := []string{"Content-Length", "Docker-Content-Digest"}, []string{"Content-Length", "Content-Range"}
	ofManifest := append([]string{"Content-Type"}, ofBlob...)
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 5000)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	layer := img.layers[0].Digest.String()
	names := strings.NewReplacer("<digest of it>", img.desc.Digest.String(), "<layer>", layer, "<another>", someDigest)
	var table strings.Builder
	for _, c := range []struct {
		section, method, path, rng string
		// status is the mirror's, registry that of the registry alone, and code that
		// in the body of a mirror's error.
		status, registry int
		code             string
		// headers have to be, and to be those of the registry.
		headers []string
		note    string
	}{
		{"Determining Support", "GET", "/v2/", "", 200, 200, "", nil, ""},
		{"Pulling manifests", "GET", "/v2/app/manifests/v1", "", 200, 200, "", ofManifest, ""},
		{"Pulling manifests", "GET", "/v2/app/manifests/<digest of it>", "", 200, 200, "", ofManifest, ""},
		{"Pulling manifests", "GET", "/v2/app/manifests/gone", "", 404, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"Pulling manifests", "GET", "/v2/app/manifests/<another>", "", 404, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"Pulling manifests", "GET", "/v2/gone/manifests/v1", "", 404, 404, "MANIFEST_UNKNOWN", nil, ""},
		{"Pulling blobs", "GET", "/v2/app/blobs/<layer>", "", 200, 200, "", ofBlob, ""},
		{"Pulling blobs", "GET", "/v2/app/blobs/<another>", "", 404, 404, "BLOB_UNKNOWN", nil, ""},
		{"Pulling blobs", "GET", "/v2/app/blobs/<layer>", "bytes=10-19", 206, 206, "", ofRange, "of larger layers, [only that part](../lazy.md) is fetched"},
		{"Pulling blobs", "GET", "/v2/app/blobs/<layer>", "bytes=4990-", 206, 206, "", ofRange, ""},
		{"Pulling blobs", "GET", "/v2/app/blobs/<layer>", "bytes=5000-", 416, 416, "", nil, ""},
		{"Checking if content exists", "HEAD", "/v2/app/manifests/v1", "", 200, 200, "", ofManifest, ""},
		{"Checking if content exists", "HEAD", "/v2/app/manifests/<digest of it>", "", 200, 200, "", ofManifest, ""},
		{"Checking if content exists", "HEAD", "/v2/app/manifests/gone", "", 404, 404, "", nil, ""},
		{"Checking if content exists", "HEAD", "/v2/app/blobs/<layer>", "", 200, 200, "", ofBlob, ""},
		{"Checking if content exists", "HEAD", "/v2/app/blobs/<another>", "", 404, 404, "", nil, ""},
		{"Error Codes", "GET", "/v2/App/manifests/v1", "", 404, 404, "NAME_INVALID", nil, "404, so that the registry is asked, which may know better"},
		{"Error Codes", "GET", "/v2/app/manifests/.v1", "", 404, 404, "MANIFEST_INVALID", nil, ""},
		{"Error Codes", "GET", "/v2/app/blobs/sha256:0", "", 404, 400, "DIGEST_INVALID", nil, "404, so that the registry is asked"},
		{"Listing Tags", "GET", "/v2/app/tags/list", "", 404, 200, "UNSUPPORTED", nil, "left to the registry"},
		{"Listing Referrers", "GET", "/v2/app/referrers/<digest of it>", "", 404, 404, "UNSUPPORTED", nil, "left to the registry; this one has none"},
		{"Push", "POST", "/v2/app/blobs/uploads/", "", 404, 202, "UNSUPPORTED", nil, "left to the registry"},
		{"Push", "PUT", "/v2/app/manifests/v2", "", 405, 400, "UNSUPPORTED", nil, "left to the registry"},
		{"Content Management", "DELETE", "/v2/app/manifests/<digest of it>", "", 405, 405, "UNSUPPORTED", nil, "left to the registry"},
		{"Content Management", "DELETE", "/v2/app/blobs/<layer>", "", 405, 405, "UNSUPPORTED", nil, "left to the registry"},
	} {
		path := names.Replace(c.path)
		alone := ask(t, reg.Server, c.method, path, "Range", c.rng, "Accept", ocispec.MediaTypeImageManifest)
		if alone.status != c.registry {
			t.Errorf("%s %s %s: the registry says %d, want %d: %s", c.method, c.path, c.rng, alone.status, c.registry, alone.body)
		}
		for _, state := range []string{"first", "again"} {
			got := tm.do(t, c.method, path+"?ns="+reg.name, "Range", c.rng, "Accept", ocispec.MediaTypeImageManifest)
			var body specErrors
			switch {
			case got.status != c.status:
				t.Errorf("%s %s %s (%s): %d, want %d: %s", c.method, c.path, c.rng, state, got.status, c.status, got.body)
			case c.code != "" && (json.Unmarshal(got.body, &body) != nil || len(body.Errors) != 1 || body.Errors[0].Code != c.code):
				t.Errorf("%s %s (%s): %s, want code %s", c.method, c.path, state, got.body, c.code)
			case got.status < 300 && !bytes.Equal(got.body, alone.body):
				t.Errorf("%s %s %s (%s): %d bytes, not the registry's %d", c.method, c.path, c.rng, state, len(got.body), len(alone.body))
			}
			for _, h := range c.headers {
				if v := got.header.Get(h); v == "" || v != alone.header.Get(h) {
					t.Errorf("%s %s %s (%s): %s is %q, and %q from the registry", c.method, c.path, c.rng, state, h, v, alone.header.Get(h))
				}
			}
		}
		request := fmt.Sprintf("`%s %s`", c.method, c.path)
		if c.rng != "" {
			request += fmt.Sprintf(", `Range: %s`", c.rng)
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %d | %s |\n", c.section, request, strings.TrimSpace(fmt.Sprint(c.status, " ", c.code)), c.registry, c.note)
	}
	file := filepath.Join("..", "docs", "reference", "conformance.md")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const mark = "| --- | --- | --- | --- | --- |\n"
	head, have, ok := strings.Cut(string(text), mark)
	if !ok {
		t.Fatalf("%s has no table", file)
	}
	if *update {
		if err := os.WriteFile(file, []byte(head+mark+table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		have = table.String()
	}
	if diff := cmp.Diff(have, table.String()); diff != "" {
		t.Errorf("%s (-docs +test), see -update:\n%s", file, diff)
	}
}

// TestConformance runs the official suite of the distribution specification, once
// on the registry alone, and once with the mirror before it as containerd has it:
// the mirror is asked first for what it can serve, and the registry for the rest
// and for what the mirror refuses. The suite must see no difference; and the mirror
// must refuse nothing that the registry has, but for digests other than sha256.
func TestConformance(t *testing.T) {
	reg := newRegistry(t)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), func(c *Config) {
		c.DefaultRegistry = reg.name
		c.CheckTimeout = time.Minute // it takes its time with a manifest of 4 MiB, in a race detector
	}, reg.name)
	var served atomic.Int64
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		read := r.Method == http.MethodGet || r.Method == http.MethodHead
		pull := read && (strings.Contains(r.URL.Path, "/manifests/") || strings.Contains(r.URL.Path, "/blobs/sha"))
		first := httptest.NewRecorder()
		if pull {
			tm.Handler().ServeHTTP(first, r)
			if first.Code != http.StatusNotFound {
				served.Add(1)
				replay(w, first)
				return
			}
		}
		second := httptest.NewRecorder()
		reg.Config.Handler.ServeHTTP(second, r)
		if pull && second.Code < 300 && !strings.Contains(r.URL.Path, "sha512:") {
			t.Errorf("%s %s: the mirror refused what the registry has: %s", r.Method, r.URL, first.Body)
		}
		replay(w, second)
	}))
	defer front.Close()

	// A range that ends before it begins is no range, which RFC 9110 lets a server
	// ignore, as the mirror does, or refuse, as the registry does.
	const inverted = "/OCI Conformance Test/sha256 blobs/range requests/range 500-0: "
	alone := conformance(t, reg.Listener.Addr().String(), "alone")
	mirrored := conformance(t, front.Listener.Addr().String(), "mirrored")
	if alone[inverted+"passed"] != 1 || mirrored[inverted+"skipped"] != 1 {
		t.Errorf("%s is refused by the mirror, or ignored by the registry", inverted)
	}
	delete(alone, inverted+"passed")
	delete(mirrored, inverted+"skipped")
	if diff := cmp.Diff(alone, mirrored); diff != "" {
		t.Errorf("the suite sees the mirror (-registry alone, +mirrored):\n%s", diff)
	}
	passed, tests := 0, 0
	for name, n := range mirrored {
		tests += n
		if strings.HasSuffix(name, ": passed") {
			passed += n
		}
	}
	t.Logf("%d of %d passed; the mirror answered %d requests", passed, tests, served.Load())
	if passed < 100 || served.Load() < 100 {
		t.Errorf("only %d tests passed, and the mirror answered only %d requests", passed, served.Load())
	}
}

// replay answers with a recorded answer.
func replay(w http.ResponseWriter, from *httptest.ResponseRecorder) {
	for k, v := range from.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(from.Code)
	_, _ = w.Write(from.Body.Bytes())
}

// conformance runs the suite and counts what became of the tests of each name,
// which are several, in an order that changes. Deletions are left out: neither the
// registry, as it is configured, nor the mirror has them.
func conformance(t *testing.T, registry, repo string) map[string]int {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "tool", "conformance")
	cmd.Env = append(os.Environ(), "OCI_REGISTRY="+registry, "OCI_TLS=disabled", "OCI_RESULTS_DIR="+dir,
		"OCI_REPO1="+repo+"/one", "OCI_REPO2="+repo+"/two", "OCI_LOG=error",
		"OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false")
	out, failed := cmd.CombinedOutput() // as it does if anything is missing: the registry has no referrers
	p, err := os.ReadFile(filepath.Join(dir, "junit.xml"))
	if err != nil {
		t.Fatalf("conformance suite: %v, %v\n%s", failed, err, out)
	}
	var all struct {
		Suites []struct {
			Cases []struct {
				Name   string `xml:"name,attr"`
				Class  string `xml:"classname,attr"`
				Status string `xml:"status,attr"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(p, &all); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, s := range all.Suites {
		for _, c := range s.Cases {
			count[c.Class+"/"+c.Name+": "+c.Status]++
		}
	}
	return count
}
