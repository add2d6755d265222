package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-dev/shoal/swarm"
)

// Both ways to read keep the same promises.
func TestReaders(t *testing.T) {
	t.Parallel()
	inModes(t, func(t *testing.T, c *ctrd) {
		way := "file"
		if c.exported == "" {
			way = "api"
		}
		contents := map[digest.Digest][]byte{}
		var all []digest.Digest
		for _, size := range []int{1, 2, 1000, apiWindow - 1, apiWindow, apiWindow + 1, 3*apiWindow + 7} {
			p := data(size)
			d := c.put("k8s.io", p, nil)
			contents[d], all = p, append(all, d)
		}
		s, cl := start(t, Config{Socket: c.start().socket})
		cl.wait(all...)
		ready(t, s)
		for i, d := range all {
			p := contents[d]
			t.Run(fmt.Sprint(len(p)), func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				r, err := s.Open(ctx, d)
				must(t, err)
				defer r.Close()
				cancel() // bounds the opening only
				checkReader(t, r, p)
				if n := testutil.ToFloat64(s.met.opens.WithLabelValues(way)); n != float64(i+1) {
					t.Errorf("opened %v blobs by way of %s, want %d", n, way, i+1)
				}
			})
		}
	})
}

// checkReader is the contract of a swarm.Reader of content p.
func checkReader(t *testing.T, r swarm.Reader, p []byte) {
	t.Helper()
	size := int64(len(p))
	if r.Size() != size {
		t.Fatalf("size %d, want %d", r.Size(), size)
	}
	whole, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil || !bytes.Equal(whole, p) {
		t.Fatalf("read in order: %d bytes, %v", len(whole), err)
	}
	readSome := func(random *rand.Rand) error {
		for range 12 {
			off := random.Int64N(size + 2)
			buf := make([]byte, random.IntN(1+min(len(p)+2, 1<<(1+random.IntN(22)))))
			n, err := r.ReadAt(buf, off)
			want := p[min(off, size):min(off+int64(len(buf)), size)]
			switch {
			case !bytes.Equal(buf[:n], want):
				return fmt.Errorf("%d bytes at %d: wrong, got %d, want %d", len(buf), off, n, len(want))
			case n < len(buf) && !errors.Is(err, io.EOF):
				return fmt.Errorf("%d bytes at %d: %d and %w", len(buf), off, n, err)
			case n == len(buf) && err != nil && !errors.Is(err, io.EOF):
				return fmt.Errorf("%d bytes at %d: %w", len(buf), off, err)
			}
		}
		return nil
	}
	var readers sync.WaitGroup
	for seed := range uint64(4) {
		readers.Go(func() {
			if err := readSome(rand.New(rand.NewPCG(seed, 0))); err != nil {
				t.Error(err)
			}
		})
	}
	readers.Wait()
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read before the start: %v", err)
	}
	must(t, r.Close())
	if _, err := r.ReadAt(make([]byte, 1), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

// Content that goes away while it is read: a file stays readable, what comes
// through the daemon ends with an error, and never with wrong bytes.
func TestReadWhileCollected(t *testing.T) {
	t.Parallel()
	inModes(t, func(t *testing.T, c *ctrd) {
		p := data(3 * apiWindow)
		d := c.put("k8s.io", p, nil)
		s, cl := start(t, Config{Socket: c.start().socket})
		cl.wait(d)
		ready(t, s)
		r, err := s.Open(t.Context(), d)
		must(t, err)
		defer r.Close()
		half := make([]byte, 100)
		if _, err := r.ReadAt(half, 0); err != nil || !bytes.Equal(half, p[:100]) {
			t.Fatalf("read: %v", err)
		}
		c.collect()
		n, err := r.ReadAt(half, 2*apiWindow)
		if c.exported != "" {
			if err != nil || !bytes.Equal(half, p[2*apiWindow:][:100]) {
				t.Errorf("read a file that was collected: %v", err)
			}
		} else if n != 0 || !errors.Is(err, swarm.ErrNotFound) {
			t.Errorf("read what was collected: %d bytes, %v", n, err)
		}
	})
}

// BenchmarkRead reads 64 MiB as an HTTP server does, 32 KiB at a time.
func BenchmarkRead(b *testing.B) {
	for name, set := range modes {
		b.Run(name, func(b *testing.B) {
			c := newCtrd(b)
			set(c)
			const size = 64 << 20
			d := c.put("k8s.io", data(size), nil)
			s, cl := start(b, Config{Socket: c.start().socket})
			cl.wait(d)
			b.SetBytes(size)
			buf := make([]byte, 32<<10)
			for b.Loop() {
				r, err := s.Open(b.Context(), d)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.NewSectionReader(r, 0, size), buf); err != nil {
					b.Fatal(err)
				}
				_ = r.Close()
			}
		})
	}
}
