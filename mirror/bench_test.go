package mirror

import (
	"bytes"
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/swarm"
)

// discard is a client that takes everything.
type discard struct {
	h      http.Header
	status int
	n      int64
}

func (d *discard) Header() http.Header { return d.h }
func (d *discard) WriteHeader(s int)   { d.status = s }
func (d *discard) Write(p []byte) (int, error) {
	d.n += int64(len(p))
	return len(p), nil
}

func benchMirror(b *testing.B, s Swarm) *Mirror {
	m, err := New(Config{
		Swarm: s, Upstream: sole{yes{1 << 20}}, Registries: []string{"docker.io"},
		Log: zerolog.New(&discard{}), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(m.Close)
	return m
}

func benchRequest(b *testing.B, m *Mirror, method, target string) {
	r, err := http.NewRequest(method, target, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w := &discard{h: http.Header{}, status: http.StatusOK}
		m.Handler().ServeHTTP(w, r)
		if w.status != http.StatusOK {
			b.Fatal(w.status)
		}
	}
}

// BenchmarkHeadManifest is the mirror's own part of a HEAD of a manifest that
// it knows; the bound for it is 5 ms.
func BenchmarkHeadManifest(b *testing.B) {
	for name, ref := range map[string]string{"tag": "latest", "digest": someDigest} {
		b.Run(name, func(b *testing.B) {
			m := benchMirror(b, &scripted{resolve: func(context.Context, func(context.Context) (swarm.Descriptor, error)) (swarm.Descriptor, time.Time, error) {
				return swarm.Descriptor{MediaType: typeDockerManifest, Digest: someDigest, Size: 500}, time.Time{}, nil
			}})
			repo := Repository{Registry: "docker.io", Name: "library/alpine"}
			m.heard(question{repo: repo, who: m.callers.anonymous}, swarm.Descriptor{Digest: someDigest, Size: 500}, nil)
			m.catalog.learn(repo, someDigest, 500, manifest{mediaType: typeDockerManifest})
			benchRequest(b, m, http.MethodHead, "/v2/library/alpine/manifests/"+ref+"?ns=docker.io")
		})
	}
}

// BenchmarkMiss is a request that is not for us.
func BenchmarkMiss(b *testing.B) {
	m := benchMirror(b, &scripted{})
	r, err := http.NewRequest(http.MethodGet, "/v2/library/alpine/manifests/latest?ns=ghcr.io", nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Handler().ServeHTTP(&discard{h: http.Header{}}, r)
	}
}

// BenchmarkLocalBlob is a layer of 64 MiB that is here.
func BenchmarkLocalBlob(b *testing.B) {
	data := make([]byte, 64<<20)
	m := benchMirror(b, &scripted{open: func(digest.Digest) (swarm.Reader, error) { return inMemory{bytes.NewReader(data)}, nil }})
	b.SetBytes(int64(len(data)))
	benchRequest(b, m, http.MethodGet, "/v2/library/alpine/blobs/"+someDigest[:70]+"0?ns=docker.io")
}
