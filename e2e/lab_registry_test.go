//go:build e2e

package e2e

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestLabRegistry: what the registry says it served, new versions of images,
// and images that are deleted.
func TestLabRegistry(t *testing.T) {
	l := newPlainLab(t, lab.Config{Nodes: 1})
	n := l.Node(0)
	served := func() int64 {
		t.Helper()
		b, err := l.Registry.Served(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	spec := lab.ImageSpec{Repository: "e2e/versions", Tag: "v1", Size: 20 * mib, Layers: 2, Seed: 1, Compressible: true}
	v1, err := l.Push(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Tag, spec.LastSeed = "v2", 2
	v2, err := l.Push(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if v1.Layers[0].Digest != v2.Layers[0].Digest || v1.Layers[1].Digest == v2.Layers[1].Digest {
		t.Errorf("v1 has the layers %v, v2 %v", v1.Layers, v2.Layers)
	}
	start := served()
	pull(t, v1.Ref, n)
	first := served()
	if got := first - start; got < v1.Size() || got > v1.Size()+10_000 {
		t.Errorf("the registry served %d bytes of %d", got, v1.Size())
	}
	pull(t, v2.Ref, n)
	if got, want := served()-first, v2.Layers[1].Size; got < want || got > want+10_000 {
		t.Errorf("the registry served %d bytes for an upgrade by %d", got, want)
	}
	if err := l.Registry.Delete(v1, v2); err != nil {
		t.Fatal(err)
	}
	for _, d := range []digest.Digest{v1.Layers[0].Digest, v2.Manifest.Digest} {
		if _, err := os.Stat(l.Registry.BlobPath(d)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("blob %s: %v", d, err)
		}
	}
	for _, img := range []lab.Image{v1, v2} {
		if err := n.Remove(t.Context(), img.Ref); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Pull(t.Context(), v2.Ref); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("a deleted image is pulled: %v", err)
	}
}
