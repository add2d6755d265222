package mirror

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

// refuse refuses a repository with a status.
func (reg *testRegistry) refuse(repo string, status int) {
	reg.guard(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/v2/"+repo+"/") {
			w.WriteHeader(status)
			return false
		}
		return true
	})
}

// TestDenied: what upstream refuses is a miss, cached or not, and the second
// question is answered without upstream.
func TestDenied(t *testing.T) {
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		reg := newRegistry(t)
		img := reg.pushImage(t, "secret", "v1", 1000)
		node := new(cluster).join(t)
		up := newClient(t, reg)
		// Another mirror, with rights, brings the image to the node.
		with := newMirror(t, node, up, asNode, reg.name)
		targets := []string{
			img.manifestURL(reg, "v1"), img.manifestURL(reg, img.desc.Digest.String()),
			img.blobURL(reg, img.layers[0]), img.blobURL(reg, img.config),
		}
		for _, target := range targets {
			if r := with.do(t, http.MethodGet, target); r.status != http.StatusOK {
				t.Fatalf("%s: %d", target, r.status)
			}
		}
		reg.refuse("secret", status)
		without := newMirror(t, node, up, asNode, reg.name)
		reg.requests()
		for _, target := range targets {
			if r := without.do(t, http.MethodGet, target); r.status != http.StatusNotFound || r.reason() != reasonDenied {
				t.Errorf("%d upstream, %s: %d %s", status, target, r.status, r.body)
			}
		}
		if got := reg.requests(); len(got) != 1 {
			t.Errorf("upstream was asked %d times about one repository: %q", len(got), got)
		}
		// An outage does not open what was refused. The refusal is old by now.
		without.grants.set(grantKey{repo: Repository{Registry: reg.name, Name: "secret"}}, upstream.ErrDenied, time.Now().Add(-deniedFor))
		reg.answer(http.StatusBadGateway)
		for _, target := range targets {
			if r := without.do(t, http.MethodGet, target); r.status != http.StatusNotFound || r.reason() != reasonDenied {
				t.Errorf("%d, then an outage, %s: %d %s", status, target, r.status, r.body)
			}
		}
		// Rights that were withdrawn are noticed when the grant has aged.
		reg.refuse("secret", status)
		with.grants.set(grantKey{repo: Repository{Registry: reg.name, Name: "secret"}}, nil, time.Now().Add(-with.cfg.GrantTTL))
		if r := with.do(t, http.MethodGet, targets[1]); r.status != http.StatusNotFound {
			t.Errorf("withdrawn rights: %d", r.status)
		}
	}
}

// TestForeignDigest: the right to pull from one repository opens no content of
// another, not even to those who know its digest.
func TestForeignDigest(t *testing.T) {
	reg := newRegistry(t)
	secret := reg.pushImage(t, "secret", "v1", 1000)
	public := reg.pushImage(t, "public", "v1", 500)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	for _, img := range []image{secret, public} {
		for _, target := range []string{img.manifestURL(reg, "v1"), img.blobURL(reg, img.layers[0])} {
			if r := tm.do(t, http.MethodGet, target); r.status != http.StatusOK {
				t.Fatalf("%s: %d", target, r.status)
			}
		}
	}
	thief := public
	for _, target := range []string{thief.manifestURL(reg, secret.desc.Digest.String()), thief.blobURL(reg, secret.config)} {
		if r := tm.do(t, http.MethodGet, target); r.status != http.StatusNotFound {
			t.Errorf("%s: %d", target, r.status)
		}
	}
	// Layers with the same content in both are served, of course.
	if r := tm.do(t, http.MethodGet, thief.blobURL(reg, public.layers[0])); r.status != http.StatusOK {
		t.Errorf("own layer: %d", r.status)
	}
}

// TestForeignDigestInAnOutage is not to be had either, nor afterwards.
func TestForeignDigestInAnOutage(t *testing.T) {
	reg := newRegistry(t)
	secret := reg.pushImage(t, "secret", "v1", 1000)
	reg.pushImage(t, "public", "v1", 500)
	thief := image{repo: "public"}
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), nil, reg.name)
	tm.do(t, http.MethodGet, secret.manifestURL(reg, "v1"))
	tm.do(t, http.MethodGet, secret.blobURL(reg, secret.layers[0]))

	reg.answer(http.StatusServiceUnavailable)
	for _, target := range []string{
		thief.blobURL(reg, secret.layers[0]), thief.blobURL(reg, secret.config), thief.manifestURL(reg, secret.desc.Digest.String()),
	} {
		if r := tm.do(t, http.MethodGet, target); r.status != http.StatusNotFound {
			t.Errorf("in the outage, %s: %d", target, r.status)
		}
	}
	reg.guard(nil)
	tm.oracle.mark(reg.name, true)
	if r := tm.do(t, http.MethodGet, thief.manifestURL(reg, "v1")); r.status != http.StatusOK {
		t.Fatalf("public image: %d", r.status)
	}
	for _, target := range []string{
		thief.blobURL(reg, secret.layers[0]), thief.blobURL(reg, secret.config), thief.manifestURL(reg, secret.desc.Digest.String()),
	} {
		if r := tm.do(t, http.MethodGet, target); r.status != http.StatusNotFound {
			t.Errorf("after the outage, %s: %d", target, r.status)
		}
	}
}

// TestCredentialsAreRefused where the node's own count; and appear nowhere.
func TestCredentialsAreRefused(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", 100)
	tm := newMirror(t, new(cluster).join(t), newClient(t, reg), asNode, reg.name)
	for _, target := range []string{img.manifestURL(reg, "v1"), img.blobURL(reg, img.layers[0])} {
		tm.do(t, http.MethodGet, target)
		for _, auth := range []string{"Bearer hunter2", "Basic aHVudGVyMg==", "x"} {
			if r := tm.do(t, http.MethodGet, target, "Authorization", auth); r.status != http.StatusNotFound || r.reason() != reasonCredentials {
				t.Errorf("%s: %d %s", target, r.status, r.body)
			}
		}
	}
	if log := tm.log.String(); strings.Contains(log, "hunter2") || strings.Contains(log, "aHVud") {
		t.Errorf("credentials in the log:\n%s", log)
	}
	if got := reg.requests(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "GET /v2/app/blobs") }) == false {
		t.Errorf("the pull without credentials never reached upstream: %q", got)
	}
}

// TestNotAManifest: a layer is not to be had as a manifest, whatever upstream
// says of it.
func TestNotAManifest(t *testing.T) {
	layer := []byte("\x1f\x8b not a manifest")
	d := digest.FromBytes(layer)
	node := new(cluster).join(t)
	if _, _, err := node.Small(t.Context(), d, maxManifest, func(ctx context.Context) ([]byte, error) { return layer, nil }); err != nil {
		t.Fatal(err)
	}
	tm := newMirror(t, node, yes{}, nil, "docker.io")
	if r := tm.do(t, http.MethodGet, "/v2/a/manifests/"+d.String()+"?ns=docker.io"); r.status != http.StatusNotFound || r.reason() != reasonNotManifest {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestUpstreamOfOtherDigests: a registry that names its content by sha512 is
// left to the client.
func TestUpstreamOfOtherDigests(t *testing.T) {
	for _, d := range []digest.Digest{digest.SHA512.FromString("x"), "", "sha256:x"} {
		tm := newMirror(t, &scripted{}, otherDigests{yes{}, d}, nil, "docker.io")
		if r := tm.do(t, http.MethodGet, "/v2/a/manifests/latest?ns=docker.io"); r.status != http.StatusNotFound || r.reason() != reasonNotFound {
			t.Errorf("%q: %d %s", d, r.status, r.body)
		}
	}
}

type otherDigests struct {
	yes
	d digest.Digest
}

func (o otherDigests) Head(context.Context, Repository, string) (swarm.Descriptor, error) {
	return swarm.Descriptor{MediaType: typeDockerManifest, Digest: o.d, Size: 1}, nil
}

// TestManifestWithoutType: HEAD of a tag believes upstream's media type only
// if it could be a manifest's.
func TestManifestWithoutType(t *testing.T) {
	body := []byte(`{"schemaVersion":2,"manifests":[]}`)
	d := digest.FromBytes(body)
	tm := newMirror(t, &scripted{
		resolve: func(context.Context, func(context.Context) (swarm.Descriptor, error)) (swarm.Descriptor, time.Time, error) {
			return swarm.Descriptor{MediaType: "text/html", Digest: d}, time.Time{}, nil
		},
		small: func(context.Context, digest.Digest, func(context.Context) ([]byte, error)) ([]byte, swarm.Source, error) {
			return bytes.Clone(body), swarm.SourcePeers, nil
		},
	}, yes{}, nil, "docker.io")
	r := tm.do(t, http.MethodHead, "/v2/a/manifests/latest?ns=docker.io")
	if got := r.header.Get("Content-Type"); r.status != http.StatusOK || got != "application/vnd.oci.image.index.v1+json" || r.header.Get("Content-Length") != "34" {
		t.Errorf("%d, %v", r.status, r.header)
	}
}

// TestTagOfTheCluster: what another node has learned about a tag spares this
// one all questions, once it is let into the repository.
func TestTagOfTheCluster(t *testing.T) {
	body := []byte(`{"schemaVersion":2,"mediaType":"` + typeDockerList + `","manifests":[]}`)
	d := digest.FromBytes(body)
	up := &slowUpstream{}
	tm := newMirror(t, &scripted{
		resolve: func(context.Context, func(context.Context) (swarm.Descriptor, error)) (swarm.Descriptor, time.Time, error) {
			return swarm.Descriptor{MediaType: typeDockerList, Digest: d, Size: int64(len(body))}, time.Time{}, nil
		},
		small: func(context.Context, digest.Digest, func(context.Context) ([]byte, error)) ([]byte, swarm.Source, error) {
			return bytes.Clone(body), swarm.SourcePeers, nil
		},
	}, up, nil, "docker.io")
	tm.grants.set(grantKey{repo: Repository{Registry: "docker.io", Name: "a"}}, nil, time.Now())
	// containerd's order.
	for _, c := range []struct{ method, ref string }{{http.MethodHead, "latest"}, {http.MethodGet, d.String()}, {http.MethodGet, "latest"}} {
		if r := tm.do(t, c.method, "/v2/a/manifests/"+c.ref+"?ns=docker.io"); r.status != http.StatusOK {
			t.Errorf("%s %s: %d %s", c.method, c.ref, r.status, r.body)
		}
	}
	if n := up.asked.Load(); n != 0 {
		t.Errorf("upstream was asked %d times", n)
	}
}
