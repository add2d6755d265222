package pull

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout writes an OCI image layout. Digests are checked before they become
// names, so nothing is written outside its directory.
type layout struct{ dir string }

func newLayout(dir string) (*layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o755); err != nil {
		return nil, fmt.Errorf("make OCI layout: %w", err)
	}
	return &layout{dir}, nil
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// ingest is a blob on its way into the layout.
type ingest struct {
	*os.File
	to string
}

func (l *layout) begin(d digest.Digest) (*ingest, error) {
	to := l.path(d)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(to), ".ingest-*")
	if err != nil {
		return nil, fmt.Errorf("write blob: %w", err)
	}
	return &ingest{f, to}, nil
}

// commit gives the verified blob its name.
func (i *ingest) commit() error {
	err := errors.Join(i.Chmod(0o644), i.Close())
	if err == nil {
		err = os.Rename(i.Name(), i.to)
	}
	if err != nil {
		return fmt.Errorf("write blob: %w", err)
	}
	return nil
}

// abort removes what was not committed. A file that stays behind harms nobody.
func (i *ingest) abort() {
	_ = i.Close()
	_ = os.Remove(i.Name())
}

func (l *layout) write(d digest.Digest, p []byte) error {
	i, err := l.begin(d)
	if err != nil {
		return err
	}
	defer i.abort()
	if _, err := i.Write(p); err != nil {
		return fmt.Errorf("write blob: %w", err)
	}
	return i.commit()
}

// finish writes the two files that make a directory a layout.
func (l *layout) finish(top v1.Descriptor, ref reference.Named) error {
	top.Annotations = map[string]string{v1.AnnotationRefName: ref.String()}
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{top}}
	for name, v := range map[string]any{
		v1.ImageIndexFile:  index,
		v1.ImageLayoutFile: v1.ImageLayout{Version: v1.ImageLayoutVersion},
	} {
		p, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(l.dir, name), p, 0o644)
		}
		if err != nil {
			return fmt.Errorf("write OCI layout: %w", err)
		}
	}
	return nil
}
