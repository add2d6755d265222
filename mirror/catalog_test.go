package mirror

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/swarm"
)

func TestParseManifest(t *testing.T) {
	desc := `{"mediaType":"application/x","digest":"` + someDigest + `","size":7}`
	for name, c := range map[string]struct {
		in, hint, want string
		names          int
	}{
		"image":                {in: `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":` + desc + `,"layers":[` + desc + `]}`, want: ocispec.MediaTypeImageManifest, names: 2},
		"image without type":   {in: `{"schemaVersion":2,"config":` + desc + `,"layers":[` + desc + `,` + desc + `]}`, want: ocispec.MediaTypeImageManifest, names: 3},
		"its word, not hint's": {in: `{"schemaVersion":2,"mediaType":"` + typeDockerManifest + `","config":` + desc + `}`, hint: ocispec.MediaTypeImageManifest, want: typeDockerManifest, names: 1},
		"index":                {in: `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[` + desc + `]}`, want: ocispec.MediaTypeImageIndex, names: 1},
		"index without type":   {in: `{"schemaVersion":2,"manifests":[` + desc + `]}`, want: ocispec.MediaTypeImageIndex, names: 1},
		"docker list":          {in: `{"schemaVersion":2,"mediaType":"` + typeDockerList + `","manifests":[]}`, want: typeDockerList},
		"docker v1":            {in: `{"schemaVersion":1,"fsLayers":[{"blobSum":"` + someDigest + `"}]}`, want: typeDockerV1, names: 1},
		"docker v1 signed":     {in: `{"schemaVersion":1,"fsLayers":[{"blobSum":"` + someDigest + `"}],"signatures":[{}]}`, want: typeDockerV1Signed, names: 1},
		"artifact":             {in: `{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[` + desc + `]}`, want: "application/vnd.oci.artifact.manifest.v1+json", names: 1},
		"unknown with a hint":  {in: `{"future":1}`, hint: "application/vnd.future.v9+json", want: "application/vnd.future.v9+json"},
		"ambiguous":            {in: `{"schemaVersion":2,"config":` + desc + `,"manifests":[` + desc + `]}`, names: 2},
		"a config":             {in: `{"architecture":"amd64","os":"linux"}`},
		"header injection":     {in: `{"mediaType":"application/x+json\r\nSet-Cookie: a","future":1}`},
		"page":                 {in: `{"mediaType":"text/html","future":1}`},
		"parameters":           {in: `{"mediaType":"application/a+json; charset=x","future":1}`},
		"not JSON":             {in: "\x1f\x8b\x08"},
		"empty":                {in: ""},
		"an array":             {in: "[]"},
		"wrong types":          {in: `{"layers":{"a":1}}`},
		"too large":            {in: `{"manifests":[` + strings.Repeat(" ", maxManifest) + `]}`},
	} {
		man, ok := parseManifest([]byte(c.in), c.hint)
		if man.mediaType != c.want || ok != (c.want != "") || len(man.names) != c.names {
			t.Errorf("%s: %q with %d names, want %q with %d", name, man.mediaType, len(man.names), c.want, c.names)
		}
	}
}

func TestCatalogKeepsToItsRepository(t *testing.T) {
	c := newCatalog()
	mine, theirs := Repository{Registry: "r", Name: "mine"}, Repository{Registry: "r", Name: "theirs"}
	layer := digest.FromString("layer")
	man := manifest{mediaType: ocispec.MediaTypeImageManifest, names: []ocispec.Descriptor{
		{Digest: layer, Size: 5}, {Digest: "sha256:bad", Size: 1}, {Digest: "sha512:x", Size: 1},
	}}
	c.learn(mine, someDigest, 100, man)
	if e, _ := c.get(mine, layer); e.size != 5 || e.mediaType != "" {
		t.Errorf("layer: %+v", e)
	}
	if e, ok := c.get(theirs, layer); ok {
		t.Errorf("another repository knows the layer: %+v", e)
	}
	// Later, lesser knowledge takes nothing away.
	c.add(mine, someDigest, entry{})
	c.add(mine, someDigest, entry{size: 99})
	if e, _ := c.get(mine, someDigest); e.size != 100 || e.mediaType != man.mediaType {
		t.Errorf("manifest: %+v", e)
	}
	if n := c.c.Len(); n != 2 {
		t.Errorf("%d digests known, want 4: malformed ones must not be kept", n)
	}
}

func TestCatalogIsBounded(t *testing.T) {
	c := newCatalog()
	var man manifest
	for i := range 3 * learnedDigests {
		man.names = append(man.names, ocispec.Descriptor{Digest: digest.FromString(fmt.Sprint(i)), Size: 1})
	}
	c.learn(Repository{Registry: "r", Name: "n"}, someDigest, 1, man)
	if n := c.c.Len(); n != learnedDigests+1 {
		t.Errorf("one manifest put %d digests into the catalog", n)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"digest":"`+someDigest+`","size":-1},"layers":[{}]}`), "")
	f.Add([]byte(`{"manifests":[{"digest":"sha256:../../x"}]}`), "text/html")
	f.Add([]byte(`{"fsLayers":[{"blobSum":""}],"schemaVersion":1}`), "a/b\r\nc: d")
	f.Fuzz(func(t *testing.T, p []byte, hint string) {
		man, ok := parseManifest(p, hint)
		if !ok {
			return
		}
		if strings.ContainsAny(man.mediaType, "\r\n\x00 ;") || !strings.HasPrefix(man.mediaType, "application/") {
			t.Fatalf("media type %q", man.mediaType)
		}
		c := newCatalog()
		c.learn(Repository{Registry: "r", Name: "n"}, someDigest, int64(len(p)), man)
		for _, k := range c.c.Keys() {
			if _, err := parseDigest(k.digest.String()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestGrants(t *testing.T) {
	g := newGrants(time.Minute, 24*time.Hour)
	k := grantKey{repo: Repository{Registry: "r", Name: "n"}, caller: "c"}
	no := errors.New("no")
	t0 := time.Unix(1e9, 0)
	for _, c := range []struct {
		set  bool
		no   error
		at   time.Duration
		want standing
	}{
		{at: 0, want: unknown},
		{set: true, at: 0, want: granted},
		{at: time.Minute - 1, want: granted},
		{at: time.Minute, want: wasGiven},
		{set: true, no: no, at: 2 * time.Minute, want: denied},
		{at: 2*time.Minute + deniedFor - 1, want: denied},
		{at: 2*time.Minute + deniedFor, want: wasDenied},
		{at: 48 * time.Hour, want: wasDenied},
		{set: true, at: 48 * time.Hour, want: granted},
		{at: 72*time.Hour - 1, want: wasGiven},
		{at: 72 * time.Hour, want: unknown},
	} {
		if c.set {
			g.set(k, c.no, t0.Add(c.at))
		}
		got, denial := g.standing(k, t0.Add(c.at))
		if got != c.want || (denial != nil) != (got == denied || got == wasDenied) {
			t.Errorf("after %s: %d with %v, want %d", c.at, got, denial, c.want)
		}
	}
	for _, other := range []grantKey{{repo: Repository{Registry: "r", Name: "other"}, caller: "c"}, {repo: k.repo, caller: "d"}, {repo: k.repo}} {
		if got, _ := g.standing(other, t0); got != unknown {
			t.Errorf("%+v: %d", other, got)
		}
	}
}

func TestApportion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(0, 1<<40)
		s := swarm.Stats{Origin: n.Draw(t, "origin"), Peers: n.Draw(t, "peers"), Local: n.Draw(t, "local")}
		sent := n.Draw(t, "sent")
		got := apportion(sent, s)
		if got.Origin+got.Peers+got.Local != sent {
			t.Fatalf("apportion(%d, %+v) = %+v: not all bytes are there", sent, s, got)
		}
		if got.Origin < 0 || got.Peers < 0 || got.Local < 0 {
			t.Fatalf("apportion(%d, %+v) = %+v", sent, s, got)
		}
		if sent <= s.Origin+s.Peers+s.Local && (got.Origin > 0 && s.Origin == 0 || got.Peers > 0 && s.Peers == 0 || got.Local > 0 && s.Local == 0) {
			t.Fatalf("apportion(%d, %+v) = %+v: bytes from a source that gave none", sent, s, got)
		}
	})
}
