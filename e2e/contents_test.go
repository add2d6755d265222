//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestContents: images of all forms that registries have come through the mirror,
// with all versions of containerd.
func TestContents(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 3, Containerd: allVersions})
	hello, err := os.ReadFile(l.Hello())
	if err != nil {
		t.Fatal(err)
	}
	// 100 layers are near what a node's kernel can lay over each other.
	many := make([]v1.Layer, 0, 100)
	many = append(many, layerOf(t, types.OCILayer, compression.GZip, "hello", hello))
	for i := range 99 {
		many = append(many, layerOf(t, types.OCILayer, compression.GZip, fmt.Sprintf("small-%d", i), random(uint64(i), 10e3)))
	}
	program := layerOf(t, types.OCILayer, compression.GZip, "hello", hello)
	oci := func(seed uint64) []v1.Layer {
		return []v1.Layer{program, layerOf(t, types.OCILayer, compression.GZip, "fill", random(seed, 6e6))}
	}
	// What no kernel can lay over each other can still be fetched.
	thousand := make([]v1.Layer, 0, 1000)
	for i := range 1000 {
		thousand = append(thousand, layerOf(t, types.OCILayer, compression.GZip, fmt.Sprintf("tiny-%d", i), random(uint64(1000+i), 1e3)))
	}
	foreign := layerOf(t, types.OCIRestrictedLayer, compression.GZip, "foreign", random(4, 6e6))
	for _, c := range []struct {
		name string
		push func(name.Reference, ...remote.Option) error
		// blobs that land on each node: manifests, config and different layers.
		blobs int
		// elsewhere is how many more do, past the mirror.
		elsewhere int
		// fetched: it is not a thing to unpack.
		fetched bool
	}{
		{name: "docker", push: func(ref name.Reference, opts ...remote.Option) error {
			return remote.Write(ref, imageOf(t, types.DockerManifestSchema2, types.DockerConfigJSON,
				layerOf(t, types.DockerLayer, compression.GZip, "hello", hello),
				layerOf(t, types.DockerLayer, compression.GZip, "fill", random(1, 6e6))), opts...)
		}, blobs: 4},
		{name: "index", push: func(ref name.Reference, opts ...remote.Option) error {
			index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
			for i, arch := range []string{"s390x", runtime.GOARCH, "riscv64"} {
				index = mutate.AppendManifests(index, mutate.IndexAddendum{
					Add:        imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON, oci(uint64(10+i))...),
					Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}},
				})
			}
			return remote.WriteIndex(ref, index, opts...)
		}, blobs: 5},
		{name: "zstd", push: func(ref name.Reference, opts ...remote.Option) error {
			return remote.Write(ref, imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON,
				layerOf(t, types.OCILayerZStd, compression.ZStd, "hello", hello),
				layerOf(t, types.OCILayerZStd, compression.ZStd, "fill", random(2, 6e6))), opts...)
		}, blobs: 4},
		{name: "empty", push: func(ref name.Reference, opts ...remote.Option) error {
			return remote.Write(ref, imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON,
				append(oci(3), layerOf(t, types.OCILayer, compression.GZip, "", nil))...), opts...)
		}, blobs: 5},
		{name: "many", push: func(ref name.Reference, opts ...remote.Option) error {
			return remote.Write(ref, imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON, many...), opts...)
		}, blobs: 102},
		{name: "thousand", push: func(ref name.Reference, opts ...remote.Option) error {
			return remote.Write(ref, imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON, thousand...), opts...)
		}, blobs: 1002, fetched: true},
		{name: "artifact", push: func(ref name.Reference, opts ...remote.Option) error {
			artifact := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), "application/vnd.example.model.config+json")
			artifact, err := mutate.AppendLayers(artifact, static.NewLayer(random(5, 6e6), "application/vnd.example.weights"),
				static.NewLayer([]byte("# A model"), "text/markdown"))
			if err != nil {
				return err
			}
			return remote.Write(ref, artifact, opts...)
		}, blobs: 4, fetched: true},
		{name: "foreign", push: func(ref name.Reference, opts ...remote.Option) error {
			image, err := mutate.Append(imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON, oci(6)...), mutate.Addendum{
				Layer: foreign, MediaType: types.OCIRestrictedLayer, URLs: []string{"http://registry.lab:" + foreignPort + "/foreign"},
			})
			if err != nil {
				return err
			}
			serveForeign(t, l.Registry, foreign)
			return remote.Write(ref, image, opts...)
		}, blobs: 4, elsewhere: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			to, err := name.ParseReference("127.0.0.1:5000/contents/"+c.name+":v1", name.Insecure)
			if err != nil {
				t.Fatal(err)
			}
			client := l.Registry.Client()
			defer client.CloseIdleConnections()
			if err := c.push(to, remote.WithTransport(client.Transport), remote.WithContext(t.Context())); err != nil {
				t.Fatal(err)
			}
			before := make([]lab.Metrics, len(l.Nodes()))
			for i, n := range l.Nodes() {
				if before[i], err = n.Metrics(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			ref := lab.RegistryHost + "/contents/" + c.name + ":v1"
			var g errgroup.Group
			for _, n := range l.Nodes() {
				g.Go(func() error {
					var err error
					if c.fetched {
						_, err = n.Ctr(t.Context(), "content", "fetch", "--hosts-dir", n.HostsDir(), ref)
					} else {
						_, err = n.Pull(t.Context(), ref)
					}
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			for i, n := range l.Nodes() {
				if !c.fetched {
					out, err := n.Run(t.Context(), ref)
					if err != nil || !strings.HasPrefix(out, "hello from a container") {
						t.Errorf("%s: a container says %q, %v", n.Name, out, err)
					}
				}
				const landed = "shoal_mirror_landed_blobs_total"
				delta := func(way string) float64 {
					label := fmt.Sprintf(`%s{through=%q}`, landed, way)
					return metric(t, n, label) - before[i][label]
				}
				// The program's layer has landed with an earlier image, maybe.
				eventually(t, n.Name+" to count what has landed", func() bool {
					return delta("mirror") >= float64(c.blobs-1)
				})
				if past := delta("elsewhere"); past != float64(c.elsewhere) {
					t.Errorf("%s: %v blobs came past the mirror, want %d", n.Name, past, c.elsewhere)
				}
			}
		})
	}
}

// foreignPort is where a layer is that registries may not distribute.
const foreignPort = "5003"

// serveForeign serves it on the registry's machine until the test ends.
func serveForeign(t *testing.T, on *lab.Registry, layer v1.Layer) {
	t.Helper()
	serve(t, on.Machine, foreignPort, func(w http.ResponseWriter, _ *http.Request) {
		body, err := layer.Compressed()
		if err != nil {
			t.Error(err)
			return
		}
		defer body.Close()
		_, _ = io.Copy(w, body) // the client sees
	})
}

// layerOf is an archive with a file; without a name, with none.
func layerOf(t *testing.T, kind types.MediaType, how compression.Compression, file string, text []byte) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if file != "" {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o755, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil },
		tarball.WithMediaType(kind), tarball.WithCompression(how), tarball.WithCompressionLevel(1))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

func imageOf(t *testing.T, manifest, config types.MediaType, layers ...v1.Layer) v1.Image {
	t.Helper()
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, manifest), config)
	image, err := mutate.ConfigFile(image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Entrypoint: []string{"/hello"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if image, err = mutate.AppendLayers(image, layers...); err != nil {
		t.Fatal(err)
	}
	return image
}

func random(seed uint64, size int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(p) // never fails
	return p
}
