//go:build e2e

package e2e

import (
	"os"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// How managed distributions have it, with 2.x and with 1.x.
const (
	discard2 = "[plugins.\"io.containerd.cri.v1.images\"]\n  discard_unpacked_layers = true\n"
	discard1 = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  discard_unpacked_layers = true\n"
)

// TestDiscarded: containerd throws layers away once the image is unpacked, which
// is long after the first of them has landed. The swarm serves them all the same,
// from Shoal's own store.
func TestDiscarded(t *testing.T) {
	// The large layer takes longer than the others would stay in the store if
	// containerd kept them.
	const rate = 12 * lab.Mbit
	l := newLab(t, lab.Config{
		Nodes: 4, Rate: rate, RegistryRate: rate,
		Containerd: allVersions, ContainerdConfig: []string{discard2, discard1, discard1, discard2},
	})
	hello, err := os.ReadFile(l.Hello())
	if err != nil {
		t.Fatal(err)
	}
	ref, layers := pushLayers(t, l, "discarded", layerOf(t, types.OCILayer, compression.GZip, "hello", hello),
		layerOf(t, types.OCILayer, compression.GZip, "small", random(31, 200e3)),
		layerOf(t, types.OCILayer, compression.GZip, "large", random(32, 40e6)))
	pull(t, ref, l.Nodes()[:3]...)
	for _, n := range l.Nodes()[:3] {
		eventually(t, n.Name+" to discard the layers", func() bool {
			for _, layer := range layers {
				if n.HasBlobs(layer) {
					return false
				}
			}
			return true
		})
	}
	for _, n := range l.Nodes() {
		if err := n.SetRate(100 * lab.Mbit); err != nil {
			t.Fatal(err)
		}
	}
	m := startMeter(t, l)
	pull(t, ref, l.Node(3))
	copies := m.copies(t, lab.Image{Layers: layers})
	t.Logf("%.4f copies left the registry for a node that came later", copies)
	if copies > 0.01 {
		t.Errorf("%.4f copies left the registry, want none", copies)
	}
}

// pushLayers makes an image of layers and pushes it.
func pushLayers(t *testing.T, l *lab.Lab, repository string, layers ...v1.Layer) (ref string, descs []ocispec.Descriptor) {
	t.Helper()
	to, err := name.ParseReference("127.0.0.1:5000/e2e/"+repository+":v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	client := l.Registry.Client()
	defer client.CloseIdleConnections()
	image := imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON, layers...)
	if err := remote.Write(to, image, remote.WithTransport(client.Transport), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		d, err := layer.Digest()
		if err != nil {
			t.Fatal(err)
		}
		size, err := layer.Size()
		if err != nil {
			t.Fatal(err)
		}
		descs = append(descs, ocispec.Descriptor{Digest: digest.Digest(d.String()), Size: size})
	}
	return lab.RegistryHost + "/e2e/" + repository + ":v1", descs
}
