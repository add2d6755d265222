package upstream

import (
	"bytes"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-dev/shoal/swarm"
)

func TestManifest(t *testing.T) {
	body := []byte(`{"schemaVersion":2,"config":{},"layers":[]}`)
	d := digest.FromBytes(body)
	other := digest.FromString("other")
	image := swarm.Descriptor{MediaType: v1.MediaTypeImageManifest, Digest: d, Size: int64(len(body))}
	// answer serves p with a header; an empty value leaves it out.
	answer := func(p []byte, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(p)))
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			if r.Method != http.MethodHead {
				_, _ = w.Write(p)
			}
		}
	}
	const ct, dcd = "Content-Type", "Docker-Content-Digest"
	for _, tt := range []struct {
		name        string
		ref         string
		answer      http.HandlerFunc
		want        swarm.Descriptor
		head        error // of Head; for Manifest see get
		get         error
		headHasWord bool // Head believes what only Manifest can check
	}{
		{name: "tag", ref: "x", answer: answer(body, ct, v1.MediaTypeImageManifest, dcd, d.String()), want: image},
		{name: "digest", ref: d.String(), answer: answer(body, ct, v1.MediaTypeImageManifest, dcd, d.String()), want: image},
		{name: "type with parameters", ref: "x", answer: answer(body, ct, v1.MediaTypeImageManifest+"; charset=utf-8", dcd, d.String()), want: image},
		{name: "digest without header", ref: d.String(), answer: answer(body, ct, v1.MediaTypeImageManifest), want: image},
		{name: "tag without header", ref: "x", answer: answer(body, ct, v1.MediaTypeImageManifest), want: image},
		{name: "vague type", ref: "x", answer: answer(body, ct, "application/octet-stream", dcd, d.String()), want: image},
		{name: "header with another digest", ref: d.String(), answer: answer(body, ct, v1.MediaTypeImageManifest, dcd, other.String()), head: ErrInvalid, want: image},
		{name: "content with another digest than the header", ref: "x", answer: answer(body, ct, v1.MediaTypeImageManifest, dcd, other.String()), get: ErrInvalid, headHasWord: true},
		{name: "content with another digest than asked for", ref: other.String(), answer: answer(body, ct, v1.MediaTypeImageManifest), get: ErrInvalid, headHasWord: true},
		{name: "foreign digest", ref: "x", answer: answer(body, ct, v1.MediaTypeImageManifest, dcd, "md5:00"), head: ErrInvalid, get: ErrInvalid},
		{name: "too large", ref: "x", answer: answer(make([]byte, MaxManifest+1), ct, v1.MediaTypeImageManifest, dcd, d.String()), head: ErrInvalid, get: ErrInvalid},
		{name: "empty", ref: "x", answer: answer(nil, ct, v1.MediaTypeImageManifest, dcd, digest.FromString("").String()), head: ErrInvalid, get: ErrInvalid},
		{name: "no type at all", ref: "x", answer: answer([]byte(`{}`), ct, "text/plain"), head: ErrInvalid, get: ErrInvalid},
		{name: "compressed", ref: "x", answer: answer(body, ct, v1.MediaTypeImageManifest, dcd, d.String(), "Content-Encoding", "gzip"), head: ErrInvalid, get: ErrInvalid},
		{name: "head not allowed", ref: "x", want: image, answer: func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return
			}
			answer(body, ct, v1.MediaTypeImageManifest)(w, r)
		}},
		{name: "not found", ref: "x", answer: http.NotFound, head: swarm.ErrNotFound, get: swarm.ErrNotFound},
		{name: "forbidden", ref: "x", head: ErrDenied, get: ErrDenied, answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }},
		{name: "unauthorized without a challenge", ref: "x", head: ErrDenied, get: ErrDenied, answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Accept") != accept {
					t.Errorf("accept %q", r.Header.Get("Accept"))
				}
				tt.answer(w, r)
			})
			c := newClient(t, Config{}, host)
			repo := Repository{host, "a"}
			got, err := c.Head(t.Context(), repo, tt.ref)
			if !errors.Is(err, tt.head) {
				t.Errorf("head: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); tt.head == nil && !tt.headHasWord && diff != "" {
				t.Errorf("head: %s", diff)
			}
			got, p, err := c.Manifest(t.Context(), repo, tt.ref)
			if !errors.Is(err, tt.get) {
				t.Errorf("get: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); tt.get == nil && (diff != "" || !bytes.Equal(p, body)) {
				t.Errorf("get: %s %q", diff, p)
			}
			if tt.get != nil && p != nil {
				t.Error("get: bytes beside an error")
			}
		})
	}
}

// TestManifestTruncated is tried again as a whole.
func TestManifestTruncated(t *testing.T) {
	body := []byte(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	var n atomic.Int64
	host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		if n.Add(1) < 3 {
			_, _ = w.Write(body[:20])
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(body)
	})
	c := newClient(t, Config{}, host)
	desc, p, err := c.Manifest(t.Context(), Repository{host, "a"}, "x")
	if err != nil || !bytes.Equal(p, body) || desc.MediaType != v1.MediaTypeImageIndex {
		t.Errorf("%+v, %v", desc, err)
	}
	if got := testutil.ToFloat64(c.met.retries.WithLabelValues("connection")); got != 2 {
		t.Errorf("%v retries counted", got)
	}
}

func TestErrorText(t *testing.T) {
	for _, tt := range []struct {
		name, body, want string
		status           int
		header           []string
	}{
		{"code", `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"do not repeat"}]}`, ": 404 not found (manifest_unknown)", 404, nil},
		{"hostile code", `{"errors":[{"code":"\u001b[31m","message":"do not repeat"}]}`, ": 404 not found", 404, nil},
		{"no JSON", `<html>do not repeat`, ": 403 forbidden", 403, nil},
		{"rate limit", `{"errors":[{"code":"TOOMANYREQUESTS"}]}`, ": 429 too many requests (toomanyrequests), retry after 1h0m0s", 429, []string{"Retry-After", "3600"}},
		{"endless body", strings.Repeat("x", 1<<20), ": 403 forbidden", 403, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				for i := 0; i < len(tt.header); i += 2 {
					w.Header().Set(tt.header[i], tt.header[i+1])
				}
				w.WriteHeader(tt.status)
				_, _ = w.Write([]byte(tt.body))
			})
			_, _, err := newClient(t, Config{}, host).Manifest(t.Context(), Repository{host, "a"}, "x")
			want := "get manifest " + host + "/a:x" + tt.want
			if err == nil || err.Error() != want {
				t.Errorf("%v\nwant %s", err, want)
			}
			var e *Error
			if !errors.As(err, &e) || e.Status != tt.status || e.Registry != host {
				t.Errorf("%#v", err)
			}
		})
	}
}

func TestErrorKinds(t *testing.T) {
	// Nobody listens there any more.
	host := serve(t, func(http.ResponseWriter, *http.Request) {})
	dead := func() string {
		var h string
		t.Run("", func(t *testing.T) { h = serve(t, func(http.ResponseWriter, *http.Request) {}) })
		return h
	}()
	c := newClient(t, Config{}, dead)
	_, err := c.Head(t.Context(), Repository{dead, "a"}, "x")
	if !errors.Is(err, swarm.ErrUnavailable) {
		t.Errorf("refused connection: %v", err)
	}
	if got := testutil.ToFloat64(c.met.requests.WithLabelValues(otherRegistry, "error")); got != 4 {
		t.Errorf("refused connection: %v requests counted", got)
	}
	// A registry that speaks plain http but is not named insecure: one attempt.
	c = newClient(t, Config{Local: []string{host}})
	_, err = c.Head(t.Context(), Repository{host, "a"}, "x")
	if !errors.Is(err, swarm.ErrUnavailable) || testutil.ToFloat64(c.met.requests.WithLabelValues(otherRegistry, "error")) != 1 {
		t.Errorf("plain http: %v", err)
	}
	for _, err := range []error{
		func() error { _, err := c.Head(t.Context(), Repository{host, "../x"}, "x"); return err }(),
		func() error {
			_, err := c.Blob(Repository{host, "a"}, "sha512:00", 1).Open(t.Context(), 0, 1)
			return err
		}(),
		func() error { _, err := c.Blob(Repository{host, "a"}, "latest", 1).Size(t.Context()); return err }(),
	} {
		if !errors.Is(err, swarm.ErrNotFound) {
			t.Errorf("invalid name: %v", err)
		}
	}
}

func TestInferMediaType(t *testing.T) {
	for in, want := range map[string]string{
		`{"mediaType":"application/vnd.docker.distribution.manifest.v2+json"}`: "application/vnd.docker.distribution.manifest.v2+json",
		`{"manifests":[]}`:             v1.MediaTypeImageIndex,
		`{"config":{}}`:                v1.MediaTypeImageManifest,
		`{"config":{},"manifests":[]}`: "",
		`{"mediaType":"a\nb"}`:         "",
		`{}`:                           "", `[]`: "", ``: "",
	} {
		if got := inferMediaType([]byte(in)); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestLabelsAreBounded(t *testing.T) {
	m := newMetrics(nil)
	for i := range 1000 {
		m.answered("r"+strconv.Itoa(i), 200, true)
		m.answered("never"+strconv.Itoa(i), 404, true)
		m.answered("token"+strconv.Itoa(i), 200, false)
	}
	if got := testutil.CollectAndCount(m.requests); got != labelledRegistries+2 { // other: 2xx and 4xx
		t.Errorf("%d series", got)
	}
}
