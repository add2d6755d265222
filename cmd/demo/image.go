package main

import (
	"archive/tar"
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"runtime"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const repository = "demo/app"

// image is what was pushed.
type image struct {
	ref string
	// digests of the config and the layers.
	digests map[digest.Digest]bool
	// bytes of config, layers and manifest.
	bytes int64
}

// layer is an uncompressed tar with one file of random bytes. It is made anew
// from its seed each time it is read, and so needs no memory or file.
type layer struct {
	seed [32]byte
	head []byte
	size int64 // of the file
}

func newLayer(name string, size int64) (*layer, error) {
	l := &layer{size: size}
	_, _ = crand.Read(l.seed[:]) // never fails
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Typeflag: tar.TypeReg})
	if err != nil {
		return nil, fmt.Errorf("make layer: %w", err)
	}
	l.head = b.Bytes()
	return l, nil
}

// tail pads the file to a whole block and ends the archive with two more.
func (l *layer) tail() int64 { return (512-l.size%512)%512 + 1024 }

func (l *layer) length() int64 { return int64(len(l.head)) + l.size + l.tail() }

func (l *layer) reader() io.Reader {
	return io.MultiReader(
		bytes.NewReader(l.head),
		io.LimitReader(rand.NewChaCha8(l.seed), l.size),
		bytes.NewReader(make([]byte, l.tail())),
	)
}

// push makes an image of about size bytes and pushes it.
func push(ctx context.Context, host string, size int64, layers int) (image, error) {
	img := image{ref: host + "/" + repository + ":latest", digests: map[digest.Digest]bool{}}
	base := "http://" + host + "/v2/" + repository
	m := v1.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest}
	cfg := v1.Image{Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: v1.RootFS{Type: "layers"}}
	for i := range layers {
		l, err := newLayer(fmt.Sprintf("layer-%d.bin", i+1), size/int64(layers))
		if err != nil {
			return img, err
		}
		d, err := digest.FromReader(l.reader())
		if err != nil {
			return img, fmt.Errorf("make layer: %w", err)
		}
		if err := pushBlob(ctx, base, d, l.length(), l.reader()); err != nil {
			return img, err
		}
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayer, Digest: d, Size: l.length()})
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, d)
	}
	p, err := json.Marshal(cfg)
	if err != nil {
		return img, fmt.Errorf("make config: %w", err)
	}
	m.Config = v1.Descriptor{MediaType: v1.MediaTypeImageConfig, Digest: digest.FromBytes(p), Size: int64(len(p))}
	if err := pushBlob(ctx, base, m.Config.Digest, m.Config.Size, bytes.NewReader(p)); err != nil {
		return img, err
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		img.digests[d.Digest] = true
		img.bytes += d.Size
	}
	if p, err = json.Marshal(m); err != nil {
		return img, fmt.Errorf("make manifest: %w", err)
	}
	img.bytes += int64(len(p))
	_, err = send(ctx, http.MethodPut, base+"/manifests/latest", m.MediaType, int64(len(p)), bytes.NewReader(p))
	return img, err
}

// pushBlob uploads in one piece: POST for a place, PUT with the bytes.
func pushBlob(ctx context.Context, base string, d digest.Digest, size int64, r io.Reader) error {
	at, err := send(ctx, http.MethodPost, base+"/blobs/uploads/", "", 0, nil)
	if err != nil {
		return err
	}
	q := at.Query()
	q.Set("digest", d.String())
	at.RawQuery = q.Encode()
	_, err = send(ctx, http.MethodPut, at.String(), "application/octet-stream", size, r)
	return err
}

// send returns the Location of the answer, if it has one.
func send(ctx context.Context, method, to, contentType string, size int64, body io.Reader) (*url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	req.ContentLength = size
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("push: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		return nil, fmt.Errorf("push: %s %s: %s: %s", method, req.URL.Path, resp.Status, text)
	}
	if resp.Header.Get("Location") == "" {
		return req.URL, nil
	}
	return resp.Location()
}
