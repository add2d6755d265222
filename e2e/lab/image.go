package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fillLength is the size of the file that a layer's archive repeats, and so
// about what a layer occupies once unpacked. It must not be so small that file
// operations take the place of writing.
const fillLength = 4 << 20

// ImageSpec says what image to make. Equal specifications make equal images.
type ImageSpec struct {
	// Repository and Tag: it will be called registry.lab:5000/Repository:Tag.
	Repository, Tag string
	// Size of all layers together, in bytes, to within a MiB.
	Size int64
	// Layers into which Size is divided evenly. Layer i depends on Seed and
	// i alone, the same in every repository.
	Layers int
	// Seed of the content, which is random.
	Seed uint64
	// LastSeed, if not 0, is that of the last layer: an image that differs in
	// it alone.
	LastSeed uint64
	// Stay makes containers of it stay until they are told to stop, as pods do.
	Stay bool
	// Compressible content is half of that size once compressed.
	Compressible bool
}

// Image is what was pushed.
type Image struct {
	// Ref is the full name with the tag.
	Ref string
	// Repository is the name without the registry.
	Repository string
	// Manifest is its descriptor, Layers those of the blobs.
	Manifest ocispec.Descriptor
	Config   ocispec.Descriptor
	Layers   []ocispec.Descriptor
}

// Size is the bytes that a node that has nothing needs to fetch.
func (i Image) Size() int64 {
	n := i.Manifest.Size + i.Config.Size
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// ByDigest is the full name with the digest.
func (i Image) ByDigest() string {
	return RegistryHost + "/" + i.Repository + "@" + i.Manifest.Digest.String()
}

// Push makes an image and pushes it into the registry, without using any link.
func (l *Lab) Push(ctx context.Context, s ImageSpec) (Image, error) {
	img, err := l.push(ctx, s)
	if err != nil {
		return Image{}, fmt.Errorf("push %s:%s: %w", s.Repository, s.Tag, err)
	}
	l.cfg.Log.Info().Str("image", img.Ref).Int64("bytes", img.Size()).Int("layers", s.Layers).Msg("pushed")
	return img, nil
}

func (l *Lab) push(ctx context.Context, s ImageSpec) (Image, error) {
	program, err := os.ReadFile(l.hello)
	if err != nil {
		return Image{}, err
	}
	if s.Layers < 1 || s.Size/int64(s.Layers) < int64(len(program))+1<<20 {
		return Image{}, fmt.Errorf("%d bytes in %d layers: each needs a MiB more than the program's %d bytes",
			s.Size, s.Layers, len(program))
	}
	img := Image{Ref: RegistryHost + "/" + s.Repository + ":" + s.Tag, Repository: s.Repository}
	config := ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Entrypoint: []string{"/hello"}, Cmd: []string{s.Repository + ":" + s.Tag}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	if s.Stay {
		config.Config.Cmd = append([]string{"stay"}, config.Config.Cmd...)
	}
	for i := range s.Layers {
		var first []byte
		if i == 0 {
			first = program
		}
		var diff digest.Digest
		layer, err := l.Registry.upload(ctx, s.Repository, func(w io.Writer) error {
			var err error
			seed := s.Seed
			if s.LastSeed != 0 && i == s.Layers-1 {
				seed = s.LastSeed
			}
			diff, err = writeLayer(w, first, s.Size/int64(s.Layers), seed, i, s.Compressible)
			return err
		})
		if err != nil {
			return Image{}, fmt.Errorf("layer %d: %w", i, err)
		}
		layer.MediaType = ocispec.MediaTypeImageLayerGzip
		img.Layers = append(img.Layers, layer)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diff)
	}
	img.Config, err = l.Registry.upload(ctx, s.Repository, func(w io.Writer) error {
		return json.NewEncoder(w).Encode(config)
	})
	if err != nil {
		return Image{}, fmt.Errorf("config: %w", err)
	}
	img.Config.MediaType = ocispec.MediaTypeImageConfig
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    img.Config,
		Layers:    img.Layers,
	})
	if err != nil {
		return Image{}, err
	}
	img.Manifest = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest,
		Digest:    digest.FromBytes(manifest),
		Size:      int64(len(manifest)),
	}
	return img, l.Registry.putManifest(ctx, s.Repository, s.Tag, img.Manifest.MediaType, manifest)
}

// writeLayer writes a compressed layer of about size bytes and returns the
// digest of the archive within.
func writeLayer(w io.Writer, program []byte, size int64, seed uint64, index int, compressible bool) (digest.Digest, error) {
	// What cannot be compressed a compressor would store as it is, after much
	// thought.
	level := gzip.NoCompression
	if compressible {
		level = gzip.BestSpeed
	}
	zw, err := gzip.NewWriterLevel(w, level)
	if err != nil {
		return "", err
	}
	diff := digest.SHA256.Digester()
	tw := tar.NewWriter(io.MultiWriter(zw, diff.Hash()))
	add := func(name string, mode int64, content []byte) error {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)),
			ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := tw.Write(content)
		return err
	}
	if len(program) > 0 {
		if err := add("hello", 0o755, program); err != nil {
			return "", err
		}
	}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	binary.LittleEndian.PutUint64(key[8:], uint64(index))
	random := rand.NewChaCha8(key)
	fill := make([]byte, fillLength)
	for left := size - int64(len(program)); left > 0; left -= int64(len(fill)) {
		fill = fill[:min(left, fillLength)]
		random.Read(fill)
		if compressible {
			for k := range fill { // of 16 letters, so each carries 4 bits
				fill[k] = 'a' + fill[k]&15
			}
		}
		if err := add(fmt.Sprintf("fill-%d", index), 0o644, fill); err != nil {
			return "", err
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return "", err
	}
	return diff.Digest(), nil
}

// upload pushes what write writes as a blob, in one pass.
func (r *Registry) upload(ctx context.Context, repository string, write func(io.Writer) error) (ocispec.Descriptor, error) {
	location, err := r.send(ctx, http.MethodPost, r.url("/v2/"+repository+"/blobs/uploads/"), "", nil, http.StatusAccepted)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	pr, pw := io.Pipe()
	sum := digest.SHA256.Digester()
	size := new(counter)
	written := make(chan struct{})
	go func() {
		defer close(written)
		pw.CloseWithError(write(io.MultiWriter(pw, sum.Hash(), size)))
	}()
	location, err = r.send(ctx, http.MethodPatch, location, "application/octet-stream", pr, http.StatusAccepted)
	pr.CloseWithError(errors.New("upload ended")) // so that the writer ends too
	<-written
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	u, err := url.Parse(location)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("parse upload location: %w", err)
	}
	q := u.Query()
	q.Set("digest", sum.Digest().String())
	u.RawQuery = q.Encode()
	if _, err := r.send(ctx, http.MethodPut, u.String(), "", nil, http.StatusCreated); err != nil {
		return ocispec.Descriptor{}, err
	}
	return ocispec.Descriptor{Digest: sum.Digest(), Size: int64(*size)}, nil
}

func (r *Registry) putManifest(ctx context.Context, repository, tag, mediaType string, manifest []byte) error {
	_, err := r.send(ctx, http.MethodPut, r.url("/v2/"+repository+"/manifests/"+tag), mediaType,
		bytes.NewReader(manifest), http.StatusCreated)
	return err
}

// send makes one request and returns the Location of the answer.
func (r *Registry) send(ctx context.Context, method, to, contentType string, body io.Reader, want int) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, to, body)
	if err != nil {
		return "", err
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if r.Authorization != "" {
		req.Header.Set("Authorization", r.Authorization)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != want {
		return "", fmt.Errorf("%s %s: %s: %s", method, req.URL.Path, resp.Status, answer)
	}
	return resp.Header.Get("Location"), nil
}

// counter counts what is written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
