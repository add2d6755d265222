//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// lazyReader reads files of an image that nodes have mounted: file i is made of random
// bytes by that seed.
type lazyReader struct {
	t    *testing.T
	lab  *lab.Lab
	size int // of each file
}

// served is what has left the registry so far.
func (r lazyReader) served() int64 {
	r.t.Helper()
	b, err := r.lab.Registry.Served(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// mount pulls the image, of which containerd is to keep some blobs at most.
func (r lazyReader) mount(n *lab.Node, ref string, blobs int) {
	r.t.Helper()
	took, err := n.Pull(r.t.Context(), ref)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("%s has the image mounted in %v", n.Name, took.Round(time.Millisecond))
	kept, err := filepath.Glob(n.Path(filepath.Join(n.ContentRoot(), "blobs/sha256/*")))
	if err != nil || len(kept) > blobs {
		r.t.Errorf("%s keeps %d blobs, want at most %d: %v", n.Name, len(kept), blobs, err)
	}
}

// try reads a file where the layer is mounted on a node.
func (r lazyReader) try(n *lab.Node, file int) error {
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
		if !bytes.Equal(got, random(uint64(file), r.size)) {
			return fmt.Errorf("%s reads something else from file %d", n.Name, file)
		}
		return nil
	}
	return fmt.Errorf("%s has no layer mounted by FUSE:\n%s", n.Name, mounts)
}

// read does so and returns what it cost the registry, and where the node had the bytes
// from.
func (r lazyReader) read(n *lab.Node, file int) (origin int64, from func(string) int64) {
	r.t.Helper()
	before, err := n.Metrics(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	start := r.served()
	if err := r.try(n, file); err != nil {
		r.t.Fatal(err)
	}
	after, err := n.Metrics(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	from = func(source string) int64 {
		sample := fmt.Sprintf(`shoal_mirror_bytes_total{source=%q}`, source)
		return int64(after[sample] - before[sample])
	}
	origin = r.served() - start
	r.t.Logf("%s reads file %d: %d bytes left the registry; %d from the registry, %d from peers, %d from here",
		n.Name, file, origin, from("origin"), from("peers"), from("local"))
	return origin, from
}

// startSnapshotter starts a snapshotter on a node, where containerd expects it.
func startSnapshotter(t *testing.T, n *lab.Node, program, config string, more ...string) {
	t.Helper()
	name := filepath.Base(program)
	grpc := map[string]string{"stargz": "containerd-stargz-grpc", "soci": "soci-snapshotter-grpc"}[name]
	socket := fmt.Sprintf("/run/%s/%s.sock", grpc, grpc)
	file := filepath.Join(n.Dir, name+".toml")
	if err := errors.Join(os.WriteFile(file, []byte(config), 0o644), os.Mkdir(n.Path(filepath.Dir(socket)), 0o755)); err != nil {
		t.Fatal(err)
	}
	// Overlays want another file system below them than an overlay.
	p, err := n.StartProgram(name, append([]string{
		program, "serve", "-address", socket, "-root", filepath.Join("/run", name), "-config", file,
	}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.WaitFor(t.Context(), p, func() error { _, err := os.Stat(n.Path(socket)); return err }); err != nil {
		t.Fatal(err)
	}
}

// archiveOf is a layer, not compressed: the program, and files that cannot be.
func archiveOf(t *testing.T, l *lab.Lab, files, size int) []byte {
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
	return archive.Bytes()
}
