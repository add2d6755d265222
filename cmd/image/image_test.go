package main

import (
	"archive/tar"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// compile makes a static program for a platform, from a source that says text.
func compile(t *testing.T, arch, text string, env ...string) string {
	t.Helper()
	dir := t.TempDir()
	for file, content := range map[string]string{
		"go.mod":  "module example.test/program\n\ngo 1.26\n",
		"main.go": "package main\n\nfunc main() { println(\"" + text + "\") }\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-o", "program", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), append([]string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOFLAGS=", "GOWORK=off"}, env...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return filepath.Join(dir, "program")
}

// extract unpacks an archive that writeArchive made.
func extract(t *testing.T, path string) layout.Path {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestImage(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	amd64, arm64 := compile(t, "amd64", "hello"), compile(t, "arm64", "hello")
	server := httptest.NewServer(registry.New())
	t.Cleanup(server.Close)
	ref := strings.TrimPrefix(server.URL, "http://") + "/shoal:test"
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := run(t.Context(), t.Output(), options{
		output: archive, tag: ref, push: ref, insecure: true, binaries: []string{amd64, arm64},
	}); err != nil {
		t.Fatal(err)
	}

	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	pushed, err := remote.Index(parsed)
	if err != nil {
		t.Fatal(err)
	}
	top, err := extract(t, archive).ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	list, err := top.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Manifests) != 1 || list.Manifests[0].Annotations["io.containerd.image.name"] != ref {
		t.Fatalf("the archive holds %+v, want one image named %s", list.Manifests, ref)
	}
	archived, err := top.ImageIndex(list.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := digestOf(t, archived), digestOf(t, pushed); a != b {
		t.Errorf("archived %s, pushed %s", a, b)
	}
	if err := validate.Index(archived); err != nil {
		t.Error(err)
	}
	manifest, err := pushed.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for i, d := range manifest.Manifests {
		platforms = append(platforms, d.Platform.String())
		image, err := pushed.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, image, []string{amd64, arm64}[i])
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, platforms); diff != "" {
		t.Error(diff)
	}
}

// checkImage verifies that an image runs a binary, and holds nothing else.
func checkImage(t *testing.T, image v1.Image, binary string) {
	t.Helper()
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/usr/local/bin/shoal"}, config.Config.Entrypoint); diff != "" {
		t.Error(diff)
	}
	if config.Config.User != "65532:65532" || config.Created.Unix() != 1700000000 {
		t.Errorf("user %s, created %s", config.Config.User, config.Created)
	}
	layers, err := image.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	content, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Mode != 0o755 || h.ModTime.Unix() != 1700000000 {
			t.Errorf("header %+v", h)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		got, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		if h.Name != "usr/local/bin/shoal" || string(got) != string(want) {
			t.Errorf("%s of %d bytes, want the binary of %d", h.Name, len(got), len(want))
		}
	}
}

func digestOf(t *testing.T, index v1.ImageIndex) string {
	t.Helper()
	d, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// TestReproducible: what is built twice, in two places, is the same, and what
// differs is not.
func TestReproducible(t *testing.T) {
	digest := func(path string) string {
		t.Helper()
		index, err := newIndex([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		return digestOf(t, index)
	}
	one, two, other := compile(t, "amd64", "hello"), compile(t, "amd64", "hello"), compile(t, "amd64", "hullo")
	if a, b := digest(one), digest(two); a != b {
		t.Errorf("%s and %s of the same source", a, b)
	}
	if a, b := digest(one), digest(other); a == b {
		t.Error("another program makes the same image")
	}
	dir := t.TempDir()
	var archives [2]string
	for i, binary := range []string{one, two} {
		path := filepath.Join(dir, "image.tar")
		if err := run(t.Context(), t.Output(), options{output: path, binaries: []string{binary}}); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		archives[i] = string(text)
	}
	if archives[0] != archives[1] {
		t.Error("the archives differ")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".image-*")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestRefuses(t *testing.T) {
	program := compile(t, "amd64", "hello")
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		o          options
	}{
		{"nothing to do", "usage:", options{binaries: []string{program}}},
		{"no binary", "usage:", options{output: "x"}},
		{"no Go program", text, options{output: "x", binaries: []string{text}}},
		{"twice the same platform", "linux/amd64 already", options{output: "x", binaries: []string{program, program}}},
		{"with cgo", "CGO_ENABLED=0", options{output: "x", binaries: []string{compile(t, "amd64", "hello", "CGO_ENABLED=1")}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := run(t.Context(), t.Output(), c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}
