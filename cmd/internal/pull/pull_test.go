package pull

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a mirror of one repository, r.test/app.
type server struct {
	*httptest.Server
	manifests map[string]typed // by tag or digest
	blobs     map[digest.Digest][]byte
	// blob, if set, answers requests for blobs instead.
	blob     func(w http.ResponseWriter, r *http.Request, p []byte)
	requests atomic.Int64 // of blobs
	inFlight atomic.Int64
	most     atomic.Int64
}

type typed struct {
	mediaType string
	body      []byte
}

func newServer(t *testing.T) *server {
	s := &server{manifests: map[string]typed{}, blobs: map[digest.Digest][]byte{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/app/")
	if !ok || r.URL.Query().Get("ns") != "r.test" {
		http.NotFound(w, r)
		return
	}
	if ref, ok := strings.CutPrefix(rest, "manifests/"); ok {
		m, ok := s.manifests[ref]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", m.mediaType)
		_, _ = w.Write(m.body)
		return
	}
	s.requests.Add(1)
	now := s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	for most := s.most.Load(); now > most && !s.most.CompareAndSwap(most, now); most = s.most.Load() {
	}
	p, ok := s.blobs[digest.Digest(strings.TrimPrefix(rest, "blobs/"))]
	switch {
	case !ok:
		http.NotFound(w, r)
	case s.blob != nil:
		s.blob(w, r, p)
	default:
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p))
	}
}

func (s *server) addBlob(p []byte) v1.Descriptor {
	d := digest.FromBytes(p)
	s.blobs[d] = p
	return v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: int64(len(p))}
}

func (s *server) addManifest(t *testing.T, tag, mediaType string, v any) v1.Descriptor {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(p)
	s.manifests[d.String()] = typed{mediaType, p}
	if tag != "" {
		s.manifests[tag] = typed{mediaType, p}
	}
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
}

// addImage adds an image with layers of different content.
func (s *server) addImage(t *testing.T, tag string, layers ...string) v1.Descriptor {
	t.Helper()
	m := v1.Manifest{Config: s.addBlob([]byte(`{"for":"` + tag + strings.Join(layers, "") + `"}`))}
	for _, l := range layers {
		m.Layers = append(m.Layers, s.addBlob([]byte(l)))
	}
	return s.addManifest(t, tag, v1.MediaTypeImageManifest, m)
}

func (s *server) pull(t *testing.T, ref string, o Options) (Result, error) {
	t.Helper()
	o.Mirror = s.URL
	return Image(t.Context(), "r.test/app"+ref, o)
}

var layerText = strings.Repeat("0123456789", 10_000)

func TestImage(t *testing.T) {
	s := newServer(t)
	d := s.addImage(t, "latest", "one", "two", layerText, "one") // a layer twice
	for _, ref := range []string{"", ":latest", "@" + d.Digest.String(), ":latest@" + d.Digest.String()} {
		r, err := s.pull(t, ref, Options{})
		if err != nil {
			t.Fatalf("%q: %v", ref, err)
		}
		if r.Digest != d.Digest || len(r.Blobs) != 4 || len(r.Manifests) != 1 {
			t.Errorf("%q: %+v", ref, r)
		}
		want := d.Size
		for _, p := range s.blobs {
			want += int64(len(p))
		}
		if r.Bytes != want {
			t.Errorf("%q: %d bytes, want %d", ref, r.Bytes, want)
		}
	}
}

func TestParallel(t *testing.T) {
	s := newServer(t)
	s.addImage(t, "latest", "1", "2", "3", "4", "5", "6", "7")
	s.blob = func(w http.ResponseWriter, _ *http.Request, p []byte) {
		time.Sleep(20 * time.Millisecond) // so that the others can come
		_, _ = w.Write(p)
	}
	if _, err := s.pull(t, "", Options{}); err != nil {
		t.Fatal(err)
	}
	if most := s.most.Load(); most > 3 || most < 2 {
		t.Errorf("%d blobs in flight at one time, want 3", most)
	}
}

func TestResume(t *testing.T) {
	cutAt := func(n int) func(http.ResponseWriter, []byte) {
		return func(w http.ResponseWriter, p []byte) {
			w.Header().Set("Content-Length", fmt.Sprint(len(p)))
			_, _ = w.Write(p[:min(n, len(p))])
			// Returning early makes the server close the connection.
		}
	}
	for name, tt := range map[string]struct {
		answer  func(w http.ResponseWriter, r *http.Request, p []byte, request int64)
		want    error
		resumed int
	}{
		"cut twice, ranges": {resumed: 2, answer: func(w http.ResponseWriter, r *http.Request, p []byte, n int64) {
			var off int
			if h := r.Header.Get("Range"); h != "" {
				_, _ = fmt.Sscanf(h, "bytes=%d-", &off)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(p)-1, len(p)))
				w.Header().Set("Content-Length", fmt.Sprint(len(p)-off))
				w.WriteHeader(http.StatusPartialContent)
			}
			if n < 3 {
				_, _ = w.Write(p[off : off+len(p)/3])
				return
			}
			_, _ = w.Write(p[off:])
		}},
		"cut once, ranges ignored": {resumed: 1, answer: func(w http.ResponseWriter, _ *http.Request, p []byte, n int64) {
			if n == 1 {
				cutAt(len(p)/2)(w, p)
				return
			}
			_, _ = w.Write(p)
		}},
		"no progress": {want: errCut, answer: func(w http.ResponseWriter, _ *http.Request, p []byte, _ int64) {
			cutAt(0)(w, p)
		}},
		"wrong range": {want: errAny, answer: func(w http.ResponseWriter, r *http.Request, p []byte, n int64) {
			if n == 1 {
				cutAt(len(p)/2)(w, p)
				return
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(p)-1, len(p)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(p)
		}},
		"gone after the cut": {want: ErrNotFound, answer: func(w http.ResponseWriter, r *http.Request, p []byte, n int64) {
			if n == 1 {
				cutAt(len(p)/2)(w, p)
				return
			}
			http.NotFound(w, r)
		}},
		"wrong bytes": {want: ErrDigest, answer: func(w http.ResponseWriter, _ *http.Request, p []byte, _ int64) {
			_, _ = w.Write(bytes.ToUpper(append([]byte("x"), p[1:]...)))
		}},
		"too many bytes": {want: ErrDigest, answer: func(w http.ResponseWriter, _ *http.Request, p []byte, _ int64) {
			_, _ = w.Write(append(slices.Clone(p), 'x'))
		}},
		"too few bytes": {want: errCut, answer: func(w http.ResponseWriter, _ *http.Request, p []byte, _ int64) {
			_, _ = w.Write(p[:len(p)-1])
		}},
		"server error": {want: errAny, answer: func(w http.ResponseWriter, _ *http.Request, _ []byte, _ int64) {
			w.WriteHeader(http.StatusInternalServerError)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			d := s.addImage(t, "latest", layerText)
			var n atomic.Int64
			s.blob = func(w http.ResponseWriter, r *http.Request, p []byte) {
				if len(p) != len(layerText) {
					_, _ = w.Write(p) // the config
					return
				}
				tt.answer(w, r, p, n.Add(1))
			}
			r, err := s.pull(t, "", Options{})
			switch {
			case tt.want == errAny:
				if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrDigest) {
					t.Errorf("error %v", err)
				}
			case !errors.Is(err, tt.want):
				t.Errorf("error %v, want %v", err, tt.want)
			case err == nil:
				if r.Digest != d.Digest || r.Blobs[1].Resumed != tt.resumed {
					t.Errorf("%+v, want %d times resumed", r, tt.resumed)
				}
			}
		})
	}
}

// errAny stands for an error without a kind.
var errAny = errors.New("any")

func TestUnreachableAndStalled(t *testing.T) {
	s := newServer(t)
	s.addImage(t, "latest", "one")
	s.Close()
	if _, err := s.pull(t, "", Options{Attempts: 1}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("error %v, want %v", err, ErrUnreachable)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = Image(t.Context(), "r.test/app", Options{Mirror: "http://" + l.Addr().String(), Attempts: 1, Stall: 20 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "nothing for 20ms") {
		t.Errorf("error %v", err)
	}
}

func TestManifestIsVerified(t *testing.T) {
	s := newServer(t)
	d := s.addImage(t, "latest", "one")
	m := s.manifests[d.Digest.String()]
	m.body = append(slices.Clone(m.body), ' ')
	s.manifests[d.Digest.String()] = m
	if _, err := s.pull(t, "@"+d.Digest.String(), Options{}); !errors.Is(err, ErrDigest) {
		t.Errorf("error %v, want %v", err, ErrDigest)
	}
	s.manifests["big"] = typed{v1.MediaTypeImageManifest, make([]byte, maxManifest+1)}
	if _, err := s.pull(t, ":big", Options{}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("error %v", err)
	}
	if _, err := s.pull(t, ":none", Options{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("error %v, want %v", err, ErrNotFound)
	}
}

func TestPlatforms(t *testing.T) {
	s := newServer(t)
	var index v1.Index
	for _, p := range []v1.Platform{
		{OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "arm64", Variant: "v8"},
		{OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm", Variant: "v7"},
		{OS: "unknown", Architecture: "unknown"}, // an attestation
	} {
		d := s.addImage(t, "", p.Architecture+p.Variant)
		d.Platform = &p
		index.Manifests = append(index.Manifests, d)
	}
	s.addManifest(t, "latest", v1.MediaTypeImageIndex, index)
	for platform, want := range map[string][]int{
		"linux/amd64": {0}, "linux/arm64": {1}, "linux/arm/v7": {3}, "linux/arm/v6": {2}, "all": {0, 1, 2, 3, 4},
	} {
		r, err := s.pull(t, "", Options{Platform: platform})
		if err != nil {
			t.Errorf("%s: %v", platform, err)
			continue
		}
		var got, wanted []digest.Digest
		for _, m := range r.Manifests[1:] {
			got = append(got, m.Digest)
		}
		for _, i := range want {
			wanted = append(wanted, index.Manifests[i].Digest)
		}
		if diff := cmp.Diff(wanted, got); diff != "" {
			t.Errorf("%s:\n%s", platform, diff)
		}
	}
	for _, platform := range []string{"windows/amd64", "a/b/c/d"} {
		if _, err := s.pull(t, "", Options{Platform: platform}); !errors.Is(err, ErrReference) {
			t.Errorf("%s: error %v, want %v", platform, err, ErrReference)
		}
	}
}

func TestLayout(t *testing.T) {
	s := newServer(t)
	d := s.addImage(t, "latest", "one", layerText)
	dir := t.TempDir()
	if _, err := s.pull(t, "", Options{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	if err != nil || len(names) != 4 {
		t.Fatalf("files %v, error %v, want 4", names, err)
	}
	for _, name := range names {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := digest.FromBytes(p).Encoded(); got != filepath.Base(name) {
			t.Errorf("%s contains %s", name, got)
		}
	}
	p, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var index v1.Index
	if err := json.Unmarshal(p, &index); err != nil || len(index.Manifests) != 1 || index.Manifests[0].Digest != d.Digest {
		t.Errorf("index %s, error %v", p, err)
	}

	// What is not verified leaves nothing behind.
	s.blob = func(w http.ResponseWriter, _ *http.Request, p []byte) { _, _ = w.Write(append([]byte("x"), p[1:]...)) }
	dir = t.TempDir()
	if _, err := s.pull(t, "", Options{Dir: dir}); !errors.Is(err, ErrDigest) {
		t.Errorf("error %v, want %v", err, ErrDigest)
	}
	names, _ = filepath.Glob(filepath.Join(dir, "blobs", "sha256", "*"))
	hidden, _ := filepath.Glob(filepath.Join(dir, "blobs", "sha256", ".*"))
	if len(names) != 1 || len(hidden) != 0 { // the manifest alone
		t.Errorf("left behind: %v %v", names, hidden)
	}
}

// record is a Progress that adds up.
type record struct {
	mu              sync.Mutex
	blobs, finished int
	bytes, received int64
}

func (r *record) Begin(blobs int, n int64) { r.blobs, r.bytes = blobs, n }
func (r *record) Received(n int64)         { r.mu.Lock(); r.received += n; r.mu.Unlock() }
func (r *record) Finished(Blob)            { r.mu.Lock(); r.finished++; r.mu.Unlock() }

func TestProgress(t *testing.T) {
	s := newServer(t)
	s.addImage(t, "latest", "one", layerText)
	var r record
	if _, err := s.pull(t, "", Options{Progress: &r}); err != nil {
		t.Fatal(err)
	}
	if r.blobs != 3 || r.finished != 3 || r.bytes != r.received || r.bytes < int64(len(layerText)) {
		t.Errorf("%+v", &r)
	}
}

func TestReferences(t *testing.T) {
	for _, image := range []string{"", "UPPER", "a b", "r.test/app@sha256:12"} {
		if _, err := Image(t.Context(), image, Options{Mirror: "http://127.0.0.1:1"}); !errors.Is(err, ErrReference) {
			t.Errorf("%q: error %v, want %v", image, err, ErrReference)
		}
	}
	p, err := newPuller("alpine", Options{Mirror: "http://127.0.0.1:6500/"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.url("manifests", "latest"), "http://127.0.0.1:6500/v2/library/alpine/manifests/latest?ns=docker.io"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// FuzzManifest: whatever a mirror sends as manifest or index, what comes out
// of it is safe to ask for and to name files after.
func FuzzManifest(f *testing.F) {
	d := digest.FromString("x")
	f.Add([]byte(`{"config":{"digest":"` + d.String() + `","size":2},"layers":[{"digest":"` + d.String() + `","size":3}]}`))
	f.Add([]byte(`{"manifests":[{"digest":"` + d.String() + `","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}`))
	f.Add([]byte(`{"layers":[{"digest":"sha256:../../x","size":-1}]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, p []byte) {
		blobs, err := blobsOf(p)
		if err != nil && blobs != nil {
			t.Error("blobs beside an error")
		}
		chosen, _ := choose(p, "linux/amd64")
		all, _ := choose(p, "all")
		if len(chosen) > 1 || len(all) > maxManifests {
			t.Errorf("%d and %d manifests chosen", len(chosen), len(all))
		}
		for _, d := range slices.Concat(blobs, chosen, all) {
			if strings.ContainsAny(d.Digest.Encoded(), "/.") || d.Size < 0 {
				t.Errorf("accepted %+v", d)
			}
		}
	})
}

// FuzzStatusError: error bodies are shown, never trusted.
func FuzzStatusError(f *testing.F) {
	f.Add(404, `{"errors":[{"code":"X","message":"y","detail":{"reason":"z"}}]}`)
	f.Add(500, `{"errors":[{}]}`)
	f.Add(302, `[`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		err := statusError(&http.Response{StatusCode: status, Status: "status", Body: io.NopCloser(strings.NewReader(body))})
		if err == nil || errors.Is(err, ErrNotFound) != (status == http.StatusNotFound) || len(err.Error()) > 10_000 {
			t.Errorf("%v", err)
		}
	})
}
