//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// documented reads the n-th piece of TOML in docs/lazy.md, which speaks of docker.io.
func documented(t *testing.T, n int) string {
	t.Helper()
	page, err := os.ReadFile("../docs/lazy.md")
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(page), "```toml\n")
	if len(parts) <= n+1 {
		t.Fatalf("docs/lazy.md has %d pieces of TOML", len(parts)-1)
	}
	text, _, _ := strings.Cut(parts[n+1], "```")
	return strings.ReplaceAll(text, "docker.io", lab.RegistryHost)
}

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
	l := newLab(t, lab.Config{Nodes: 3, Rate: rate, RegistryRate: rate, ContainerdConfig: documented(t, 0)})
	ref, layer := pushStargz(t, l, program, files, size)
	t.Logf("a layer of %d bytes", layer)

	// Two ways of having a mirror: by hosts.toml, here with the registry in the path,
	// and by stargz's own configuration, which has no paths but sends ns.
	one, two, whole := l.Node(0), l.Node(1), l.Node(2)
	if err := one.SetMirrors(one.Mirror() + "/registry/" + lab.RegistryHost); err != nil {
		t.Fatal(err)
	}
	startStargz(t, program, one, "", "-config-path", one.HostsDir())
	startStargz(t, program, two, documented(t, 1))
	served := func() int64 {
		t.Helper()
		b, err := l.Registry.Served(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	// read reads a file of the image on a node, and returns what it cost the registry
	// and where the node had it from.
	read := func(n *lab.Node, file int) (origin int64, from func(string) int64) {
		t.Helper()
		before, err := n.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start := served()
		if err := readStargz(n, file, size); err != nil {
			t.Fatal(err)
		}
		after, err := n.Metrics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		from = func(source string) int64 {
			sample := fmt.Sprintf(`shoal_mirror_bytes_total{source=%q}`, source)
			return int64(after[sample] - before[sample])
		}
		origin = served() - start
		t.Logf("%s reads file %d: %d bytes left the registry; %d from the registry, %d from peers, %d from here",
			n.Name, file, origin, from("origin"), from("peers"), from("local"))
		return origin, from
	}
	// A file may begin and end in the middle of a span.
	const most = size + 2*mib

	start := served()
	for _, n := range []*lab.Node{one, two} {
		if took, err := n.Pull(t.Context(), ref); err != nil {
			t.Fatal(err)
		} else {
			t.Logf("%s has the image mounted in %v", n.Name, took.Round(time.Millisecond))
		}
		if layers, err := filepath.Glob(n.Path(filepath.Join(n.ContentRoot(), "blobs/sha256/*"))); err != nil || len(layers) > 2 {
			t.Errorf("%s has %d blobs, want the manifest and the config: %v", n.Name, len(layers), err)
		}
	}
	if got := served() - start; got > layer/10 {
		t.Errorf("%d bytes left the registry for two mounts of a layer of %d", got, layer)
	} else {
		t.Logf("%d bytes left the registry for two mounts", got)
	}
	for _, n := range []*lab.Node{one, two} {
		if out, err := n.RunOn(t.Context(), "stargz", ref); err != nil || !strings.HasPrefix(out, "hello from a container") {
			t.Errorf("a container on %s says %q, %v", n.Name, out, err)
		}
	}

	if origin, from := read(one, 3); origin < size || origin > most || from("origin") == 0 {
		t.Errorf("the first read of a file of %d bytes cost the registry %d", size, origin)
	}
	if origin, from := read(two, 3); origin > mib || from("peers") < size-mib {
		t.Errorf("the second node's read of it cost the registry %d", origin)
	}
	// Both at one time, in one copy.
	both := served()
	var g errgroup.Group
	for _, n := range []*lab.Node{one, two} {
		g.Go(func() error { return readStargz(n, 5, size) })
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if origin := served() - both; origin < size || origin > most {
		t.Errorf("a file of %d bytes that two nodes read at one time cost the registry %d", size, origin)
	}
	if got := served() - start; got > layer/4 {
		t.Errorf("%d bytes of a layer of %d left the registry", got, layer)
	}

	// What one node has read, others read without the registry.
	read(one, 10)
	if err := l.CutRegistry(); err != nil {
		t.Fatal(err)
	}
	if _, from := read(two, 10); from("origin") != 0 {
		t.Error("bytes came from a registry that is cut off")
	}
	if err := l.RestoreRegistry(); err != nil {
		t.Fatal(err)
	}

	// And so what another has pulled whole.
	if err := whole.CtrPull(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster to know the whole layer", func() bool {
		return metric(t, whole, "shoal_swarm_held_blobs") >= 3
	})
	if origin, from := read(one, 17); origin != 0 || from("peers") < size {
		t.Errorf("a file of a layer that a node has whole cost the registry %d bytes", origin)
	}
	// While Shoal is away, the registry is not asked in its place for a layer that was
	// mounted through it. Reading fails, or waits where it is configured to try again.
	for _, n := range []*lab.Node{one, two} {
		if err := n.Shoal().Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := readStargz(one, 20, size); !errors.Is(err, syscall.EIO) {
		t.Errorf("without Shoal, a read of what is not here: %v, want %v", err, syscall.EIO)
	}
	g.Go(func() error { return readStargz(two, 21, size) })
	time.Sleep(time.Second)
	for _, n := range []*lab.Node{one, two} {
		if err := n.StartShoal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.Wait(); err != nil {
		t.Errorf("a read during a restart: %v", err)
	}
	read(one, 20)
	for _, n := range []*lab.Node{one, two} {
		if whole := metric(t, n, "shoal_mirror_whole_for_part_total"); whole != 0 {
			t.Errorf("%s fetched %v layers whole", n.Name, whole)
		}
	}
}

// startStargz starts stargz-snapshotter on a node, where containerd expects it. Only
// what is read is fetched: what fetches ahead is off.
func startStargz(t *testing.T, program string, n *lab.Node, config string, more ...string) {
	t.Helper()
	const socket = "/run/containerd-stargz-grpc/containerd-stargz-grpc.sock"
	config = "noprefetch = true\nno_background_fetch = true\nno_prometheus = true\n" + config
	file := filepath.Join(n.Dir, "stargz.toml")
	if err := errors.Join(os.WriteFile(file, []byte(config), 0o644), os.Mkdir(n.Path(filepath.Dir(socket)), 0o755)); err != nil {
		t.Fatal(err)
	}
	// Overlays want another file system below them than an overlay.
	p, err := n.StartProgram("stargz", append([]string{
		program, "serve", "-address", socket, "-root", "/run/stargz", "-config", file,
	}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.WaitFor(t.Context(), p, func() error { _, err := os.Stat(n.Path(socket)); return err }); err != nil {
		t.Fatal(err)
	}
}

// pushStargz pushes an image of one layer in eStargz: the program, and files that
// cannot be compressed. It returns the layer's size.
func pushStargz(t *testing.T, l *lab.Lab, program string, files, size int) (ref string, layer int64) {
	t.Helper()
	hello, err := os.ReadFile(l.Hello())
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, text []byte) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(text); err != nil {
			t.Fatal(err)
		}
	}
	add("hello", hello)
	for i := range files {
		add(fmt.Sprintf("data/%d", i), random(uint64(i), size))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	from, to := filepath.Join(dir, "layer.tar"), filepath.Join(dir, "layer.esgz")
	if err := os.WriteFile(from, archive.Bytes(), 0o644); err != nil {
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
	to1, err := name.ParseReference("127.0.0.1:5000/lazy/stargz:v1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	client := l.Registry.Client()
	defer client.CloseIdleConnections()
	if err := remote.Write(to1, image, remote.WithTransport(client.Transport), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return lab.RegistryHost + "/lazy/stargz:v1", int64(len(blob))
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

// readStargz reads a file of the layer that is mounted on a node.
func readStargz(n *lab.Node, file, size int) error {
	mounts, err := os.ReadFile(n.Path("/proc/1/mounts"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if !strings.HasPrefix(f[2], "fuse") {
			continue
		}
		got, err := os.ReadFile(n.Path(fmt.Sprintf("%s/data/%d", f[1], file)))
		if err != nil {
			return err
		}
		if !bytes.Equal(got, random(uint64(file), size)) {
			return fmt.Errorf("%s reads something else from file %d", n.Name, file)
		}
		return nil
	}
	return fmt.Errorf("%s has no layer mounted by FUSE:\n%s", n.Name, mounts)
}
