package mirror

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestLayersAhead: two nodes pull different layers of an image. Each takes part
// in what the other one pulls, and in nothing that nobody does.
func TestLayersAhead(t *testing.T) {
	reg := newRegistry(t)
	img := reg.pushImage(t, "app", "v1", aheadLeast, aheadLeast, aheadLeast, 1_000_000)
	reg.guard(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
			time.Sleep(2 * aheadFirst)
		}
		return true
	})
	// What nobody reads any more is given up when the linger is over.
	c := &cluster{patience: time.Minute, linger: time.Minute}
	up := newClient(t, reg)
	nodes := []*testMirror{newMirror(t, c.join(t), up, nil, reg.name), newMirror(t, c.join(t), up, nil, reg.name)}
	for _, tm := range nodes {
		if r := tm.do(t, http.MethodGet, img.manifestURL(reg, "v1")); r.status != http.StatusOK {
			t.Fatalf("manifest: %d %s", r.status, r.body)
		}
	}
	get := func(k, layer int) {
		l := img.layers[layer]
		if r := nodes[k].do(t, http.MethodGet, img.blobURL(reg, l)); !bytes.Equal(r.body, img.content[l.Digest]) {
			t.Errorf("layer %d on node %d: %d, %d bytes, %v", layer, k, r.status, len(r.body), r.err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		get(1, 1)
	}()
	get(0, 0)
	<-done
	for k, tm := range nodes {
		if n := tm.counted(t, "shoal_mirror_layers_ahead_total"); n != 1 {
			t.Errorf("node %d fetched %v layers ahead, want 1", k, n)
		}
		has := func(layer int) bool {
			r, err := tm.cfg.Swarm.Open(t.Context(), img.layers[layer].Digest)
			if err == nil {
				_ = r.Close()
			}
			return err == nil
		}
		eventually(t, "both nodes have both layers", func() bool { return has(0) && has(1) })
		if has(2) || has(3) {
			t.Errorf("node %d has a layer that nobody pulled", k)
		}
		if len(tm.engaged.n) != 0 {
			t.Errorf("node %d believes %v to be under way", k, tm.engaged.n)
		}
	}
}

// TestWorthAhead: what may be fetched ahead is large, not foreign, and not alone.
func TestWorthAhead(t *testing.T) {
	layer := func(s string, size int64, urls ...string) ocispec.Descriptor {
		return ocispec.Descriptor{Digest: digest.FromString(s), Size: size, URLs: urls}
	}
	large, larger := layer("a", aheadLeast), layer("b", 10*aheadLeast)
	small, foreign := layer("c", aheadLeast-1), layer("d", aheadLeast, "https://elsewhere.example/d")
	broken := ocispec.Descriptor{Digest: "sha256:nonsense", Size: aheadLeast}
	if got := worthAhead([]ocispec.Descriptor{large, small, foreign, broken, larger}); len(got) != 2 || got[0].Digest != large.Digest || got[1].Digest != larger.Digest {
		t.Errorf("worth it are %v", got)
	}
	if got := worthAhead([]ocispec.Descriptor{large, small}); got != nil {
		t.Errorf("worth it is %v, which has no other", got)
	}
	if got := worthAhead(make([]ocispec.Descriptor, 100_000)); got != nil {
		t.Errorf("worth it are %v", got)
	}
}
