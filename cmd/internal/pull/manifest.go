package pull

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxManifest bounds a manifest in bytes, as registries do (OCI
	// distribution specification 1.1, "Pushing manifests").
	maxManifest = 4 << 20
	// maxManifests bounds the manifests of an index; the largest in the wild
	// have some dozens.
	maxManifests = 256

	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
)

// accepted are the types of manifests asked for.
var accepted = []string{v1.MediaTypeImageIndex, v1.MediaTypeImageManifest, dockerIndex, dockerManifest}

// manifests pulls what the reference stands for, down to the manifests of the
// platforms wanted, and returns it together with the blobs that they name,
// each once.
func (p *puller) manifests(ctx context.Context) (top v1.Descriptor, blobs []v1.Descriptor, err error) {
	var want v1.Descriptor
	ref := ""
	if d, ok := p.ref.(reference.Digested); ok {
		want.Digest, ref = d.Digest(), d.Digest().String()
	} else if t, ok := p.ref.(reference.Tagged); ok {
		ref = t.Tag()
	}
	top, body, err := p.manifest(ctx, ref, want)
	if err != nil {
		return top, nil, fmt.Errorf("pull manifest %s: %w", p.ref, err)
	}
	seen := map[digest.Digest]bool{}
	add := func(body []byte) error {
		ds, err := blobsOf(body)
		for _, d := range ds {
			if !seen[d.Digest] {
				seen[d.Digest] = true
				blobs = append(blobs, d)
			}
		}
		return err
	}
	if !isIndex(top.MediaType) {
		return top, blobs, add(body)
	}
	chosen, err := choose(body, p.o.Platform)
	if err != nil {
		return top, nil, err
	}
	for _, d := range chosen {
		_, body, err := p.manifest(ctx, d.Digest.String(), d)
		if err == nil {
			err = add(body)
		}
		if err != nil {
			return top, nil, fmt.Errorf("pull manifest %s: %w", what(d), err)
		}
	}
	return top, blobs, nil
}

// blobsOf returns the config and the layers that a manifest names. An empty
// blob is none: there is nothing to pull.
func blobsOf(body []byte) ([]v1.Descriptor, error) {
	var m v1.Manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	var blobs []v1.Descriptor
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := check(d); err != nil {
			return nil, fmt.Errorf("read manifest: %w", err)
		}
		if d.Size > 0 {
			blobs = append(blobs, d)
		}
	}
	return blobs, nil
}

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == dockerIndex
}

// choose returns the manifests of an index that are wanted: the best match for
// one platform, as containerd ranks them, or all.
func choose(body []byte, platform string) ([]v1.Descriptor, error) {
	var idx v1.Index
	if err := json.Unmarshal(body, &idx); err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	if len(idx.Manifests) > maxManifests {
		return nil, fmt.Errorf("read index: %d manifests, expected at most %d", len(idx.Manifests), maxManifests)
	}
	for _, d := range idx.Manifests {
		if err := check(d); err != nil {
			return nil, fmt.Errorf("read index: %w", err)
		}
	}
	if platform == "all" {
		return idx.Manifests, nil
	}
	want := platforms.DefaultSpec()
	if platform != "" {
		var err error
		if want, err = platforms.Parse(platform); err != nil {
			return nil, fmt.Errorf("%w: platform: %w", ErrReference, err)
		}
	}
	match := platforms.Only(want)
	var best *v1.Descriptor
	for _, d := range idx.Manifests {
		if d.Platform == nil || !match.Match(*d.Platform) {
			continue
		}
		if best == nil || match.Less(*d.Platform, *best.Platform) {
			best = &d
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: the image has no variant for platform %s", ErrReference, platforms.Format(want))
	}
	return []v1.Descriptor{*best}, nil
}

// check refuses descriptors that name nothing that can be verified.
func check(d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("descriptor %.100q: %w", d.Digest, err)
	}
	if d.Size < 0 {
		return fmt.Errorf("descriptor %s: negative size", d.Digest)
	}
	return nil
}

// manifest pulls one manifest and verifies it against want, as far as want
// says something.
func (p *puller) manifest(ctx context.Context, ref string, want v1.Descriptor) (v1.Descriptor, []byte, error) {
	began := time.Now()
	var d v1.Descriptor
	var body []byte
	err := p.retry(ctx, func(ctx context.Context, alive func()) (bool, error) {
		resp, err := p.get(ctx, p.url("manifests", ref), func(h http.Header) { h["Accept"] = accepted })
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false, statusError(resp)
		}
		alive()
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
		if err != nil {
			return false, fmt.Errorf("%w: %w", errCut, err)
		}
		d = v1.Descriptor{MediaType: resp.Header.Get("Content-Type"), Digest: digest.FromBytes(body), Size: int64(len(body))}
		if want.Digest == "" {
			// Resolved by tag: the mirror's word is what there is to check.
			want.Digest = digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		}
		return false, nil
	})
	if err != nil {
		return d, nil, err
	}
	if len(body) > maxManifest {
		return d, nil, fmt.Errorf("larger than %d bytes", maxManifest)
	}
	if want.Digest != "" && want.Digest != d.Digest {
		return d, nil, mismatch(want.Digest, d.Digest)
	}
	if want.Size > 0 && want.Size != d.Size {
		return d, nil, fmt.Errorf("%w: want %d bytes, got %d", ErrDigest, want.Size, d.Size)
	}
	if p.out != nil {
		if err := p.out.write(d.Digest, body); err != nil {
			return d, nil, err
		}
	}
	p.mu.Lock()
	p.result.Manifests = append(p.result.Manifests, Blob{
		Digest: d.Digest, MediaType: d.MediaType, Size: d.Size, Seconds: time.Since(began).Seconds(),
	})
	p.mu.Unlock()
	return d, body, nil
}

// statusError turns an answer that is no success into an error, with what the
// mirror says of the reason.
func statusError(resp *http.Response) error {
	var body struct {
		Errors []struct {
			Code    string          `json:"code"`
			Message string          `json:"message"`
			Detail  json.RawMessage `json:"detail"`
		} `json:"errors"`
	}
	err := errors.New(resp.Status)
	p, readErr := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if readErr == nil && json.Unmarshal(p, &body) == nil && len(body.Errors) > 0 {
		e := body.Errors[0]
		err = fmt.Errorf("%s: %.50s: %.200s", resp.Status, printable(e.Code), printable(e.Message))
		if len(e.Detail) > 0 && string(e.Detail) != "null" {
			err = fmt.Errorf("%w (%.300s)", err, e.Detail)
		}
	}
	if resp.StatusCode == http.StatusNotFound {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// printable drops what a terminal might obey.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
}
