//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestStargz: stargz-snapshotter mounts an eStargz image through the mirror, and files
// cross the registry's link when they are read, once for all nodes.
func TestStargz(t *testing.T) {
	program, err := lab.BuildStargz(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const (
		rate  = 100 * lab.Mbit
		files = 24
		size  = 2 * mib
	)
	l := newLab(t, lab.Config{Nodes: 3, Rate: rate, RegistryRate: rate, ContainerdConfig: []string{documented(t, 0)}})
	ref, layer := pushStargz(t, l, program, files, size)
	t.Logf("a layer of %d bytes", layer)

	// Two ways of having a mirror: by hosts.toml, here with the registry in the path,
	// and by stargz's own configuration, which has no paths but sends ns.
	one, two, whole := l.Node(0), l.Node(1), l.Node(2)
	if err := one.SetHosts(documented(t, 2)); err != nil {
		t.Fatal(err)
	}
	const ahead = "noprefetch = true\nno_background_fetch = true\nno_prometheus = true\n"
	startSnapshotter(t, one, program, ahead, "-config-path", one.HostsDir())
	startSnapshotter(t, two, program, ahead+documented(t, 1))
	lazy := lazyReader{t, l, size}
	// A file may begin and end in the middle of a span.
	const most = size + 2*mib

	start := lazy.served()
	for _, n := range []*lab.Node{one, two} {
		lazy.mount(n, ref, 2) // manifest and config
	}
	if got := lazy.served() - start; got > layer/10 {
		t.Errorf("%d bytes left the registry for two mounts of a layer of %d", got, layer)
	} else {
		t.Logf("%d bytes left the registry for two mounts", got)
	}
	for _, n := range []*lab.Node{one, two} {
		if out, err := n.RunOn(t.Context(), "stargz", ref); err != nil || !strings.HasPrefix(out, "hello from a container") {
			t.Errorf("a container on %s says %q, %v", n.Name, out, err)
		}
	}

	if origin, from := lazy.read(one, 3); origin < size || origin > most || from("origin") == 0 {
		t.Errorf("the first read of a file of %d bytes cost the registry %d", size, origin)
	}
	if origin, from := lazy.read(two, 3); origin > mib || from("peers") < size-mib {
		t.Errorf("the second node's read of it cost the registry %d", origin)
	}
	// Both at one time, in one copy.
	both := lazy.served()
	var g errgroup.Group
	for _, n := range []*lab.Node{one, two} {
		g.Go(func() error { return lazy.try(n, 5) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if origin := lazy.served() - both; origin < size || origin > most {
		t.Errorf("a file of %d bytes that two nodes read at one time cost the registry %d", size, origin)
	}
	if got := lazy.served() - start; got > layer/4 {
		t.Errorf("%d bytes of a layer of %d left the registry", got, layer)
	}

	// What one node has read, others read without the registry.
	lazy.read(one, 10)
	if err := l.CutRegistry(); err != nil {
		t.Fatal(err)
	}
	if _, from := lazy.read(two, 10); from("origin") != 0 {
		t.Error("bytes came from a registry that is cut off")
	}
	if err := l.RestoreRegistry(); err != nil {
		t.Fatal(err)
	}

	// And so what another has pulled whole.
	if _, err := whole.Ctr(t.Context(), "images", "pull", "--hosts-dir", whole.HostsDir(), ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster to know the whole layer", func() bool {
		return metric(t, whole, "shoal_swarm_held_blobs") >= 3
	})
	if origin, from := lazy.read(one, 17); origin != 0 || from("peers") < size {
		t.Errorf("a file of a layer that a node has whole cost the registry %d bytes", origin)
	}
	// While Shoal is away, the registry is not asked in its place for a layer that was
	// mounted through it. Reading fails, or waits where it is configured to try again.
	for _, n := range []*lab.Node{one, two} {
		if err := n.Shoal().Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := lazy.try(one, 20); !errors.Is(err, syscall.EIO) {
		t.Errorf("without Shoal, a read of what is not here: %v, want %v", err, syscall.EIO)
	}
	g.Go(func() error { return lazy.try(two, 21) })
	time.Sleep(time.Second)
	for _, n := range []*lab.Node{one, two} {
		if err := n.StartShoal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Wait(); err != nil {
		t.Errorf("a read during a restart: %v", err)
	}
	lazy.read(one, 20)
	for _, n := range []*lab.Node{one, two} {
		if whole := metric(t, n, "shoal_mirror_whole_for_part_total"); whole != 0 {
			t.Errorf("%s fetched %v layers whole", n.Name, whole)
		}
	}
}

// TestStargzPrivate: stargz's own keychain is docker's config.json, and goes by the host
// that is asked, which is the mirror. With an entry for its address, a private image is
// mounted and read through it, with tokens and with Basic.
func TestStargzPrivate(t *testing.T) {
	program, err := lab.BuildStargz(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []string{"Bearer", "Basic"} {
		t.Run(scheme, func(t *testing.T) {
			const size = 2 * mib
			l, service := newPrivateLab(t, scheme, "lazy/stargz", lab.Config{
				Nodes: 2, Rate: 100 * lab.Mbit, RegistryRate: 100 * lab.Mbit, ContainerdConfig: []string{documented(t, 0)},
			})
			ref, layer := pushStargz(t, l, program, 12, size)
			lazy := lazyReader{t, l, size}
			const ahead = "noprefetch = true\nno_background_fetch = true\nno_prometheus = true\n"
			start := lazy.served()
			for _, n := range l.Nodes() {
				// The snapshotter's environment is this program's.
				t.Setenv("DOCKER_CONFIG", dockerConfig(t, strings.TrimPrefix(n.Mirror(), "http://")))
				startSnapshotter(t, n, program, ahead+documented(t, 1))
				if _, err := n.PullAs(t.Context(), ref, podUser, podPassword); err != nil {
					t.Fatal(err)
				}
			}
			if got := lazy.served() - start; got > layer/10 {
				t.Errorf("%d bytes left the registry for two mounts of a layer of %d", got, layer)
			}
			if origin, from := lazy.read(l.Node(0), 3); origin < size || origin > size+2*mib || from("origin") == 0 {
				t.Errorf("the first read of a file of %d bytes cost the registry %d", size, origin)
			}
			if origin, from := lazy.read(l.Node(1), 3); origin > mib || from("peers") < size-mib {
				t.Errorf("the second node's read of it cost the registry %d", origin)
			}
			tellsNoSecret(t, l, append(service.all(), podPassword, basic(podUser, podPassword)))
		})
	}
}

// pushStargz pushes an image of one layer in eStargz, and returns the layer's size.
func pushStargz(t *testing.T, l *lab.Lab, program string, files, size int) (ref string, layer int64) {
	t.Helper()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "layer.tar"), filepath.Join(dir, "layer.esgz")
	if err := os.WriteFile(from, archiveOf(t, l, files, size), 0o644); err != nil {
		t.Fatal(err)
	}
	toc, err := exec.CommandContext(t.Context(), program, "convert", from, to).Output()
	if err != nil {
		t.Fatal(err)
	}
	blob, err := os.ReadFile(to)
	if err != nil {
		t.Fatal(err)
	}
	content, err := partial.CompressedToLayer(compressed(blob))
	if err != nil {
		t.Fatal(err)
	}
	image, err := mutate.Append(imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON), mutate.Addendum{
		Layer:       content,
		Annotations: map[string]string{"containerd.io/snapshot/stargz/toc.digest": strings.TrimSpace(string(toc))},
	})
	if err != nil {
		t.Fatal(err)
	}
	ref = lab.RegistryHost + "/lazy/stargz:v1"
	pushTo(t, l, ref, func(to name.Reference, opts ...remote.Option) error { return remote.Write(to, image, opts...) })
	return ref, int64(len(blob))
}

// compressed is a layer in gzip.
type compressed []byte

func (c compressed) Digest() (v1.Hash, error) {
	h, _, err := v1.SHA256(bytes.NewReader(c))
	return h, err
}
func (c compressed) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(c)), nil
}
func (c compressed) Size() (int64, error)                { return int64(len(c)), nil }
func (c compressed) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// TestSOCI: so does SOCI, which names the registry in the path.
func TestSOCI(t *testing.T) {
	program, err := lab.BuildSoci(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const (
		rate  = 100 * lab.Mbit
		files = 24
		size  = 2 * mib
		// SOCI fetches parts that are 4 MiB once unpacked, and a file may be in two.
		most = size + 10*mib
	)
	l := newLab(t, lab.Config{Nodes: 2, Rate: rate, RegistryRate: rate, ContainerdConfig: []string{documented(t, 3)}})
	ref, layer := pushSOCI(t, l, program, files, size)
	t.Logf("a layer of %d bytes", layer)
	lazy := lazyReader{t, l, size}
	one, two := l.Node(0), l.Node(1)
	start := lazy.served()
	for _, n := range l.Nodes() {
		startSnapshotter(t, n, program, "no_prometheus = true\n[background_fetch]\n  disable = true\n"+documented(t, 4))
		lazy.mount(n, ref, 4) // two indexes, manifest and config
		if out, err := n.RunOn(t.Context(), "soci", ref); err != nil || !strings.HasPrefix(out, "hello from a container") {
			t.Errorf("a container on %s says %q, %v", n.Name, out, err)
		}
	}
	if origin, from := lazy.read(one, 12); origin < size || origin > most || from("origin") < size {
		t.Errorf("the first read of a file of %d bytes cost the registry %d", size, origin)
	}
	if origin, from := lazy.read(two, 12); origin > mib || from("peers") < size {
		t.Errorf("the second node's read of it cost the registry %d", origin)
	}
	if got := lazy.served() - start; got > layer/2 {
		t.Errorf("%d bytes of a layer of %d left the registry", got, layer)
	}
}

// pushSOCI pushes an image of one layer, and an index of it, and returns the layer's
// size.
func pushSOCI(t *testing.T, l *lab.Lab, program string, files, size int) (ref string, bytes int64) {
	t.Helper()
	archive := archiveOf(t, l, files, size)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(archive))), nil },
		tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
	if err != nil {
		t.Fatal(err)
	}
	if bytes, err = layer.Size(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	image := imageOf(t, types.OCIManifestSchema1, types.OCIConfigJSON, layer)
	path, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image}))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), program, "convert", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	all, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	converted, err := all.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	index, err := all.ImageIndex(converted.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ref = lab.RegistryHost + "/lazy/soci:v1"
	pushTo(t, l, ref, func(to name.Reference, opts ...remote.Option) error { return remote.WriteIndex(to, index, opts...) })
	return ref, bytes
}

// pushTo pushes to the registry, which is found under another name from outside.
func pushTo(t *testing.T, l *lab.Lab, ref string, push func(name.Reference, ...remote.Option) error) {
	t.Helper()
	to, err := name.ParseReference(strings.Replace(ref, lab.RegistryHost, "127.0.0.1:5000", 1), name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	client := l.Registry.Client()
	defer client.CloseIdleConnections()
	auth := authn.Anonymous
	if scheme, secret, ok := strings.Cut(l.Registry.Authorization, " "); ok && scheme == "Bearer" {
		auth = &authn.Bearer{Token: secret}
	} else if ok {
		auth = authn.FromConfig(authn.AuthConfig{Auth: secret})
	}
	if err := push(to, remote.WithTransport(client.Transport), remote.WithAuth(auth), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}
