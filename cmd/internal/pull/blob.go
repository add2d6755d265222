package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// errCut: a response ended before its end. It is tried again.
var errCut = errors.New("response cut")

// pause is the wait before another attempt.
const pause = 250 * time.Millisecond

// blob pulls one blob and verifies it as it streams.
func (p *puller) blob(ctx context.Context, d v1.Descriptor) (Blob, error) {
	b := Blob{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size}
	began := time.Now()
	verifier := d.Digest.Algorithm().Digester()
	dst := io.Writer(verifier.Hash())
	var file *ingest
	if p.out != nil {
		var err error
		if file, err = p.out.begin(d.Digest); err != nil {
			return b, err
		}
		defer file.abort()
		dst = io.MultiWriter(file, dst)
	}
	var done int64 // bytes in dst
	requests := 0
	err := p.retry(ctx, func(ctx context.Context, alive func()) (bool, error) {
		requests++
		n, err := p.rest(ctx, d, done, &meter{w: dst, p: p.o.Progress, alive: alive})
		done += n
		return n > 0, err
	})
	if err != nil {
		return b, err
	}
	b.Resumed = requests - 1
	if got := verifier.Digest(); got != d.Digest {
		return b, mismatch(d.Digest, got)
	}
	if file != nil {
		if err := file.commit(); err != nil {
			return b, err
		}
	}
	b.Seconds = time.Since(began).Seconds()
	return b, nil
}

// rest asks for a blob from off to its end, and returns how many bytes of that
// it wrote.
func (p *puller) rest(ctx context.Context, d v1.Descriptor, off int64, w io.Writer) (int64, error) {
	resp, err := p.get(ctx, p.url("blobs", d.Digest.String()), func(h http.Header) {
		if off > 0 {
			h.Set("Range", fmt.Sprintf("bytes=%d-", off))
		}
	})
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPartialContent && off > 0:
		want := fmt.Sprintf("bytes %d-%d/%d", off, d.Size-1, d.Size)
		if got := resp.Header.Get("Content-Range"); got != want {
			return 0, fmt.Errorf("asked for %q, got range %.100q", want, got)
		}
	case resp.StatusCode == http.StatusOK:
		// The whole, whatever was asked for: what is here already is skipped.
		if _, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
			return 0, fmt.Errorf("%w: %w", errCut, err)
		}
	default:
		return 0, statusError(resp)
	}
	left := d.Size - off
	n, err := io.Copy(w, io.LimitReader(resp.Body, left))
	switch {
	case errors.Is(err, errWrite):
		return n, err
	case err != nil:
		return n, fmt.Errorf("%w after %d of %d bytes: %w", errCut, off+n, d.Size, err)
	case n < left:
		return n, fmt.Errorf("%w after %d of %d bytes", errCut, off+n, d.Size)
	}
	// A longer body than the manifest says is wrong as well.
	if extra, _ := resp.Body.Read(make([]byte, 1)); extra > 0 {
		return n, fmt.Errorf("%w: more than %d bytes", ErrDigest, d.Size)
	}
	return n, nil
}

// retry calls f until it succeeds, fails for good, or has failed
// Options.Attempts times in a row without progress. f calls alive whenever
// something arrives; without that its context ends after Options.Stall.
func (p *puller) retry(ctx context.Context, f func(ctx context.Context, alive func()) (progress bool, err error)) error {
	failures := 0
	for {
		attempt, cancel := context.WithCancelCause(ctx)
		timer := time.AfterFunc(p.o.Stall, func() {
			cancel(fmt.Errorf("nothing for %s", p.o.Stall))
		})
		progress, err := f(attempt, func() { timer.Reset(p.o.Stall) })
		if cause := context.Cause(attempt); err != nil && cause != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", errCut, cause)
		}
		timer.Stop()
		cancel(nil)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if progress {
			failures = 0
		}
		failures++
		if !errors.Is(err, errCut) && !errors.Is(err, ErrUnreachable) || failures >= p.o.Attempts {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *puller) get(ctx context.Context, url string, header func(http.Header)) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReference, err)
	}
	req.Header.Set("User-Agent", "shoal-pull")
	header(req.Header)
	resp, err := p.o.Client.Do(req)
	if err == nil {
		return resp, nil
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: %s: %w", ErrUnreachable, strings.TrimSuffix(p.o.Mirror, "/"), err)
	}
	return nil, fmt.Errorf("%w: %w", errCut, err)
}

// errWrite marks failures of the destination.
var errWrite = errors.New("write blob")

// meter tells of the bytes that go by.
type meter struct {
	w     io.Writer
	p     Progress
	alive func()
}

func (m *meter) Write(b []byte) (int, error) {
	m.alive()
	n, err := m.w.Write(b)
	m.p.Received(int64(n))
	if err != nil {
		err = fmt.Errorf("%w: %w", errWrite, err)
	}
	return n, err
}
