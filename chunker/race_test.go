package chunker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/opencontainers/go-digest"
)

// TestReaderNeverSeesWhatReplacesARejectedPiece: a piece is rejected, and
// overwritten, while it is being read.
func TestReaderNeverSeesWhatReplacesARejectedPiece(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(2 * MinPieceLength)
	b := acquire(t, s, d, len(data))
	defer b.Release()
	junk := bytes.Repeat([]byte{0xee}, MinPieceLength)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := b.WritePiece(0, data[:MinPieceLength]); err != nil {
				t.Error(err)
			}
			if n%2 == 0 {
				b.Reject(0)
			} else {
				b.Discard()
			}
			f, err := b.dataFile()
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := f.WriteAt(junk, 0); err != nil {
				t.Error(err)
			}
		}
	})
	p := make([]byte, MinPieceLength)
	for good := 0; good < 15; {
		r := b.NewReader(context.Background(), 0, MinPieceLength, false)
		n, err := r.Read(p)
		r.Close()
		if err != nil {
			if !errors.Is(err, ErrAborted) {
				t.Fatal(err)
			}
			continue
		}
		good++
		if !bytes.Equal(p[:n], data[:n]) {
			t.Fatal("the reader got bytes that were never verified")
		}
	}
}

// TestDiscardEndsReaders: those that wait and those that have read.
func TestDiscardEndsReaders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		data, d := testBlob(3 * MinPieceLength)
		b := acquire(t, s, d, len(data))
		defer b.Release()
		writePiece(t, b, data, 0)
		done := make(chan error, 2)
		for range 2 {
			r := b.NewReader(context.Background(), 0, int64(len(data)), false)
			go func() {
				defer r.Close()
				_, err := io.Copy(io.Discard, r)
				done <- err
			}()
		}
		synctest.Wait() // both wait for piece 1
		b.Discard()
		for range 2 {
			if err := <-done; !errors.Is(err, ErrAborted) {
				t.Errorf("reader: %v, want ErrAborted", err)
			}
		}
	})
}

// TestCancelledReader: its context ends a wait, and no byte comes after it.
func TestCancelledReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		data, d := testBlob(2 * MinPieceLength)
		b := acquire(t, s, d, len(data))
		defer b.Release()
		ctx, cancel := context.WithCancel(context.Background())
		r := b.NewReader(ctx, 0, int64(len(data)), false)
		defer r.Close()
		done := make(chan error, 1)
		go func() {
			_, err := r.Read(make([]byte, 1))
			done <- err
		}()
		whole := make(chan error, 1)
		go func() { whole <- b.VerifyWhole(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Read: %v", err)
		}
		if err := <-whole; !errors.Is(err, context.Canceled) {
			t.Errorf("VerifyWhole: %v", err)
		}
		writePiece(t, b, data, 0)
		if n, err := r.Read(make([]byte, 1)); n != 0 || !errors.Is(err, context.Canceled) {
			t.Errorf("Read after the end of its context: %d bytes, %v", n, err)
		}
	})
}

// TestManyUsers lets many goroutines pin, fill, read, drop and evict the
// same few blobs.
func TestManyUsers(t *testing.T) {
	var present sync.Map
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Capacity = 8 * MinPieceLength
		o.OnChange = func(d digest.Digest, _ int64, here bool) { present.Store(d, here) }
	})
	type content struct {
		data []byte
		d    digest.Digest
	}
	var all []content
	for i := range 6 {
		data, d := testBlob((1+i%3)*MinPieceLength - i)
		all = append(all, content{data, d})
	}
	var reads atomic.Int64
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for k := range 25 {
				c := all[(w*7+k*5)%len(all)]
				if k%9 == w%9 {
					s.Drop(c.d)
				}
				b, ok := s.Get(c.d)
				if !ok {
					var err error
					b, err = s.Acquire(c.d, int64(len(c.data)))
					var full *NoSpaceError
					if errors.As(err, &full) {
						continue
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
				for i := range b.Geometry().NumPieces() {
					off, n := b.Geometry().Piece(i)
					if _, err := b.WritePiece(i, c.data[off:off+n]); err != nil {
						t.Error(err)
					}
				}
				if err := b.VerifyWhole(context.Background()); err != nil {
					t.Error(err)
				}
				r := b.NewReader(context.Background(), 0, int64(len(c.data)), false)
				if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, c.data) {
					t.Errorf("reader: %d of %d bytes, %v", len(p), len(c.data), err)
				}
				reads.Add(1)
				r.Close()
				b.Release()
			}
		})
	}
	wg.Wait()
	if reads.Load() == 0 {
		t.Error("nothing was read")
	}
	if u := s.Usage(); u > 8*MinPieceLength {
		t.Errorf("usage %d is over the cap", u)
	}
	s.mu.Lock()
	for _, b := range s.blobs {
		if b.pins != 0 {
			t.Errorf("%d pins are left", b.pins)
		}
	}
	s.mu.Unlock()
}

// TestConcurrentWriters lets right and wrong pieces, verification and readers
// race for the same pieces.
func TestConcurrentWriters(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(16*MinPieceLength + 77)
	b := acquire(t, s, d, len(data))
	defer b.Release()
	g := b.Geometry()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := b.VerifyWhole(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for range 3 {
		wg.Go(func() {
			r := b.NewReader(context.Background(), 0, int64(len(data)), false)
			defer r.Close()
			if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, data) {
				t.Errorf("reader: %d bytes, %v", len(p), err)
			}
		})
	}
	for w := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for _, i := range r.Perm(g.NumPieces()) {
				off, n := g.Piece(i)
				if w%2 == 0 {
					if _, err := b.WritePiece(i, data[off:off+n]); err != nil {
						t.Error(err)
					}
					continue
				}
				if err := b.Expect(i, SumOf(data[off:off+n])); err != nil {
					t.Error(err)
				}
				if _, err := b.TakePiece(i, make([]byte, n)); err != nil && !errors.Is(err, ErrWrongPiece) {
					t.Error(err)
				}
				if _, err := b.TakePiece(i, data[off:off+n]); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
