package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	// program is where the binary is, in a directory that exec finds it in.
	program = "usr/local/bin/shoal"
	// user is nobody. A node of containerd's needs root, which the chart asks for.
	user   = "65532:65532"
	source = "https://github.com/shoal-dev/shoal"
)

// binary is what a Go binary says of itself.
type binary struct {
	path              string
	platform          v1.Platform
	version, revision string
	created           time.Time
}

func readBinary(path string) (binary, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return binary{}, fmt.Errorf("read %s: %w", path, err)
	}
	setting := map[string]string{}
	for _, s := range info.Settings {
		setting[s.Key] = s.Value
	}
	if setting["CGO_ENABLED"] != "0" {
		return binary{}, fmt.Errorf("%s: was built with cgo, and may need files that the image does not have: build it with CGO_ENABLED=0", path)
	}
	b := binary{
		path:     path,
		platform: v1.Platform{OS: setting["GOOS"], Architecture: setting["GOARCH"]},
		version:  info.Main.Version, revision: setting["vcs.revision"],
		created: time.Unix(0, 0),
	}
	if s := setting["vcs.time"]; s != "" {
		if b.created, err = time.Parse(time.RFC3339, s); err != nil {
			return binary{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	// https://reproducible-builds.org/docs/source-date-epoch/
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return binary{}, fmt.Errorf("parse SOURCE_DATE_EPOCH: %w", err)
		}
		b.created = time.Unix(n, 0)
	}
	return b, nil
}

// newIndex makes an index of one image for each binary's platform.
func newIndex(paths []string) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	seen := map[string]bool{}
	for _, path := range paths {
		b, err := readBinary(path)
		if err != nil {
			return nil, err
		}
		if p := b.platform.String(); seen[p] {
			return nil, fmt.Errorf("%s: there is a binary for %s already", path, p)
		} else {
			seen[p] = true
		}
		image, err := b.image()
		if err != nil {
			return nil, fmt.Errorf("make image of %s: %w", path, err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image, Descriptor: v1.Descriptor{Platform: &b.platform},
		})
		index, _ = mutate.Annotations(index, b.annotations()).(v1.ImageIndex)
	}
	return index, nil
}

func (b binary) annotations() map[string]string {
	return map[string]string{
		"org.opencontainers.image.title":       "Shoal",
		"org.opencontainers.image.description": "Distributes container images from node to node",
		"org.opencontainers.image.licenses":    "Apache-2.0",
		"org.opencontainers.image.source":      source,
		"org.opencontainers.image.version":     b.version,
		"org.opencontainers.image.revision":    b.revision,
		"org.opencontainers.image.created":     b.created.UTC().Format(time.RFC3339),
	}
}

func (b binary) image() (v1.Image, error) {
	text, err := os.ReadFile(b.path)
	if err != nil {
		return nil, err
	}
	archive, err := b.layer(text)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(
		func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil },
		tarball.WithCompressionLevel(gzip.BestCompression), tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err = mutate.ConfigFile(image, &v1.ConfigFile{
		OS: b.platform.OS, Architecture: b.platform.Architecture,
		Created: v1.Time{Time: b.created.UTC()},
		Config: v1.Config{
			Entrypoint: []string{"/" + program}, User: user,
			Env:    []string{"PATH=/usr/local/bin"},
			Labels: b.annotations(),
		},
		RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		return nil, err
	}
	image, err = mutate.Append(image, mutate.Addendum{
		Layer:   layer,
		History: v1.History{Created: v1.Time{Time: b.created.UTC()}, CreatedBy: "make image", Comment: b.revision},
	})
	if err != nil {
		return nil, err
	}
	annotated, ok := mutate.Annotations(image, b.annotations()).(v1.Image)
	if !ok {
		return nil, errors.New("annotate image: not an image any more")
	}
	return annotated, nil
}

// layer is an archive of the binary in its directories.
func (b binary) layer(text []byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "usr/local/", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "usr/local/bin/", Mode: 0o755},
		{Typeflag: tar.TypeReg, Name: program, Mode: 0o755, Size: int64(len(text))},
	} {
		h.ModTime, h.Format = b.created, tar.FormatUSTAR
		if err := w.WriteHeader(&h); err != nil {
			return nil, err
		}
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	return buf.Bytes(), w.Close()
}

// writeArchive writes an OCI image layout with the index in it as an archive,
// which is there as a whole or not at all.
func writeArchive(path, tag string, index v1.ImageIndex) error {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root := filepath.Join(dir, "layout")
	l, err := layout.Write(root, empty.Index)
	if err != nil {
		return err
	}
	var opts []layout.Option
	if tag != "" {
		// The first is the specification's, the second containerd's, which alone
		// may be a full name.
		opts = append(opts, layout.WithAnnotations(map[string]string{
			"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": tag,
		}))
	}
	if err := l.AppendIndex(index, opts...); err != nil {
		return err
	}
	half := filepath.Join(dir, "archive")
	if err := archiveDir(half, root); err != nil {
		return err
	}
	return os.Rename(half, path)
}

// archiveDir writes the files below root, in the order of their names and with
// nothing of this computer in their headers.
func archiveDir(path, root string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		h := tar.Header{
			Typeflag: tar.TypeReg, Name: filepath.ToSlash(rel), Mode: 0o644, Size: int64(len(text)),
			ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err = w.Write(text)
		return err
	})
	return errors.Join(err, w.Close())
}
