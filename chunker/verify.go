package chunker

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Expect sets the published sum of piece i. The first one stands; another one
// is a *ConflictError.
func (b *Blob) Expect(i int, s Sum) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.expect(i, s)
}

func (b *Blob) expect(i int, s Sum) error {
	switch {
	case i < 0 || i >= b.geo.NumPieces():
		return fmt.Errorf("sum of piece %d: blob has %d", i, b.geo.NumPieces())
	case b.known.Has(i) && b.sums[i] != s:
		return &ConflictError{Piece: i, Have: b.sums[i], Got: s}
	case b.known.Len() == 0:
		return nil // whole since an earlier run: sums are not kept
	}
	b.known.Set(i)
	b.sums[i] = s
	return nil
}

// Verify hashes piece i as it is on disk. True means that it matches its
// expected sum and is complete now. Without an expected sum it is false.
func (b *Blob) Verify(i int) (bool, error) {
	m := &b.pieceMu[i%stripes]
	m.Lock()
	defer m.Unlock()
	if b.Has(i) {
		return true, nil
	}
	want, ok := b.Sum(i)
	if !ok {
		return false, nil
	}
	off, n := b.geo.Piece(i)
	buf := getBuffer()
	defer putBuffer(buf)
	h := sha256.New()
	f, err := b.dataFile()
	if err != nil {
		return false, err
	}
	if _, err := io.CopyBuffer(onlyWriter{h}, io.NewSectionReader(f, off, n), *buf); err != nil {
		return false, fmt.Errorf("read piece %d: %w", i, err)
	}
	if Sum(h.Sum(nil)) != want {
		b.s.met.failed.Inc()
		return false, nil
	}
	return true, b.complete(i, want)
}

// complete records a verified piece: first on disk, then for readers.
func (b *Blob) complete(i int, s Sum) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole {
		return nil
	}
	if b.sumsF == nil {
		return fmt.Errorf("blob %s: %w", b.digest, os.ErrClosed)
	}
	if _, err := b.sumsF.WriteAt(encodeSum(s), sumOffset(i)); err != nil {
		return fmt.Errorf("record piece %d: %w", i, err)
	}
	b.s.met.verified.Inc()
	b.have.Set(i)
	b.advance()
	b.broadcast()
	return nil
}

func (b *Blob) advance() {
	for b.have.Has(b.next) {
		b.next++
	}
}

func (b *Blob) broadcast() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// Reject forgets piece i, its bytes and its sum, and fails the readers of
// today, who may have passed it on. Nothing happens if the blob is whole.
func (b *Blob) Reject(i int) {
	m := &b.pieceMu[i%stripes]
	m.Lock()
	defer m.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole || i < 0 || i >= b.have.Len() {
		return
	}
	if b.have.Has(i) {
		b.outdate(fmt.Errorf("piece %d was withdrawn: %w", i, ErrAborted))
	}
	b.forget(i)
	b.resets++
	b.broadcast()
}

// outdate fails the readers of today.
func (b *Blob) outdate(err error) {
	b.age++
	b.ageErr = err
}

func (b *Blob) forget(i int) {
	b.have.Clear(i)
	b.known.Clear(i)
	b.next = min(b.next, i)
	if b.sumsF != nil {
		if _, err := b.sumsF.WriteAt([]byte{0}, sumOffset(i)); err != nil {
			b.s.opt.Log.Warn().Err(err).Int("piece", i).Msg("cannot record a rejected piece")
		}
	}
}

// Discard forgets all pieces and sums and a failure: the blob starts afresh,
// for new readers. Nothing happens if it is whole.
func (b *Blob) Discard() {
	for i := range b.pieceMu {
		b.pieceMu[i].Lock()
		defer b.pieceMu[i].Unlock()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole {
		return
	}
	if b.have.Count() > 0 && !b.wrong {
		b.outdate(ErrAborted)
	}
	for i := range b.geo.NumPieces() {
		b.forget(i)
	}
	b.err, b.wrong = nil, false
	b.resets++
	b.broadcast()
}

// Fail gives the blob up: readers get err (ErrAborted if nil). A whole blob
// cannot fail. The next Acquire after the last Release starts clean.
func (b *Blob) Fail(err error) {
	if err == nil {
		err = ErrAborted
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole || b.err != nil {
		return
	}
	b.err = err
	b.broadcast()
}

// VerifyWhole hashes the prefix as it grows and decides when it is whole: it
// returns nil and the blob is complete, or a *DigestError: the readers of today
// fail with it, and new ones wait for what comes after Discard. One goroutine
// at a time may call it.
func (b *Blob) VerifyWhole(ctx context.Context) error {
	h := sha256.New()
	var done int64
	resets := -1
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		b.mu.Lock()
		changed, prefix, whole, err, r := b.changed, b.prefix(), b.whole, b.err, b.resets
		b.mu.Unlock()
		switch {
		case whole:
			return nil
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case r != resets:
			// Bytes that were hashed may have been replaced.
			h.Reset()
			done, resets = 0, r
			continue
		case done < prefix:
			n := min(int64(len(*buf)), prefix-done)
			if _, err := b.ReadAt((*buf)[:n], done); err != nil {
				return fmt.Errorf("hash blob: %w", err)
			}
			h.Write((*buf)[:n])
			done += n
			continue
		case done == b.geo.Size:
			got := digest.NewDigest(digest.SHA256, h)
			if again, err := b.settle(got, resets); err != nil || !again {
				return err
			}
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// settle ends the blob's time as a partial one. again is true when a piece was
// rejected at the last moment.
func (b *Blob) settle(got digest.Digest, resets int) (again bool, err error) {
	b.mu.Lock()
	if b.resets != resets {
		b.mu.Unlock()
		return true, nil
	}
	if got != b.digest {
		err := &DigestError{Want: b.digest, Got: got}
		b.outdate(err)
		b.wrong = true
		b.broadcast()
		b.mu.Unlock()
		return false, err
	}
	if err := os.Rename(b.s.dataPath(b.digest), b.s.wholePath(b.digest)); err != nil {
		b.mu.Unlock()
		return false, fmt.Errorf("keep whole blob: %w", err)
	}
	if err := os.Remove(b.s.sumsPath(b.digest)); err != nil {
		b.s.opt.Log.Warn().Err(err).Msg("cannot remove the sums of a whole blob")
	}
	b.whole, b.checked, b.err = true, true, nil
	b.broadcast()
	b.mu.Unlock()
	b.s.changed(b.digest, b.geo.Size, true)
	return false, nil
}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func getBuffer() *[]byte { return bufferPool.Get().(*[]byte) }

func putBuffer(b *[]byte) { bufferPool.Put(b) }

// onlyWriter hides ReadFrom, so that CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }
