package chunker

import (
	"context"
	"crypto/sha256"
	"fmt"
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
	if err := b.checkPiece(i); err != nil {
		return fmt.Errorf("expect sum: %w", err)
	}
	switch {
	case b.known.Has(i) && b.sums[i] != s:
		return &ConflictError{Piece: i, Have: b.sums[i], Got: s}
	case b.known.Len() == 0:
		return nil // whole since an earlier run: sums are not kept
	}
	b.known.Set(i)
	b.sums[i] = s
	return nil
}

// complete records a verified piece: first on disk, then for readers. The
// piece's lock is held, so that the record and the state in memory cannot fall
// apart; b.mu is not while the disk is busy, or Has would wait for it.
func (b *Blob) complete(i int, s Sum) error {
	b.mu.Lock()
	whole, sums := b.whole, b.sumsF
	b.mu.Unlock()
	if whole {
		return nil
	}
	if sums == nil {
		return fmt.Errorf("blob %s: %w", b.digest, os.ErrClosed)
	}
	if _, err := sums.WriteAt(encodeSum(s), sumOffset(i)); err != nil {
		return fmt.Errorf("record piece %d: %w", i, err)
	}
	b.mu.Lock()
	err := b.expect(i, s)
	if err == nil {
		b.s.met.verified.Inc()
		b.have.Set(i)
		b.advance()
		b.broadcast()
	}
	b.mu.Unlock()
	if err != nil { // another sum was published while the piece was written
		b.s.met.failed.Inc()
		b.unrecord(i)
	}
	return err
}

// unrecord makes an earlier record void for the next run.
func (b *Blob) unrecord(i int) {
	b.mu.Lock()
	sums := b.sumsF
	b.mu.Unlock()
	if sums == nil {
		return
	}
	if _, err := sums.WriteAt([]byte{0}, sumOffset(i)); err != nil {
		b.s.opt.Log.Warn().Err(err).Int("piece", i).Msg("cannot record a rejected piece")
	}
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
	if b.checkPiece(i) != nil {
		return
	}
	m := &b.pieceMu[i%stripes]
	m.Lock()
	defer m.Unlock()
	if b.Complete() {
		return
	}
	b.unrecord(i)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.have.Has(i) {
		b.outdate(fmt.Errorf("piece %d was withdrawn: %w", i, ErrAborted))
	}
	if i < b.have.Len() {
		b.have.Clear(i)
		b.known.Clear(i)
	}
	b.next = min(b.next, i)
	b.resets++
	b.broadcast()
}

// outdate fails the readers of today.
func (b *Blob) outdate(err error) {
	b.age++
	b.ageErr = err
}

// lockPieces keeps all pieces as they are until unlock is called.
func (b *Blob) lockPieces() (unlock func()) {
	for i := range b.pieceMu {
		b.pieceMu[i].Lock()
	}
	return func() {
		for i := range b.pieceMu {
			b.pieceMu[i].Unlock()
		}
	}
}

// Discard forgets all pieces and sums and a failure: the blob starts afresh,
// for new readers. Nothing happens if it is whole.
func (b *Blob) Discard() {
	defer b.lockPieces()()
	b.mu.Lock()
	whole, sums := b.whole, b.sumsF
	b.mu.Unlock()
	if whole {
		return
	}
	if sums != nil {
		if err := clearSums(sums, b.geo); err != nil {
			b.s.opt.Log.Warn().Err(err).Str("digest", b.digest.String()).Msg("cannot record that a blob was discarded")
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.have.Count() > 0 && !b.wrong {
		b.outdate(ErrAborted)
	}
	n := b.have.Len()
	b.have, b.known, b.next = NewBitfield(n), NewBitfield(n), 0
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
			again, err := b.settle(digest.NewDigest(digest.SHA256, h), resets)
			if again {
				continue
			}
			if err == nil {
				b.s.changed(b.digest, b.geo.Size, true)
			}
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// settle ends the blob's time as a partial one. again is true when something
// happened at the last moment: a piece was rejected, or the blob is settled.
func (b *Blob) settle(got digest.Digest, resets int) (again bool, err error) {
	// Nothing can be rejected or discarded now.
	defer b.lockPieces()()
	b.mu.Lock()
	again, sums := b.whole || b.resets != resets, b.sumsF
	b.mu.Unlock()
	switch {
	case again:
		return true, nil
	case sums == nil:
		return false, fmt.Errorf("blob %s: %w", b.digest, os.ErrClosed)
	case got != b.digest:
		// The sums vouch for wrong bytes: without a header, no later run takes
		// them for good, should this one die before Discard.
		if err := sums.Truncate(0); err != nil {
			b.s.opt.Log.Warn().Err(err).Str("digest", b.digest.String()).Msg("cannot record that a blob is wrong")
		}
		err := &DigestError{Want: b.digest, Got: got}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.outdate(err)
		b.wrong = true
		b.broadcast()
		return false, err
	}
	if err := os.Rename(b.s.dataPath(b.digest), b.s.wholePath(b.digest)); err != nil {
		return false, fmt.Errorf("keep whole blob: %w", err)
	}
	if err := os.Remove(b.s.sumsPath(b.digest)); err != nil {
		b.s.opt.Log.Warn().Err(err).Msg("cannot remove the sums of a whole blob")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.whole, b.checked, b.err = true, true, nil
	b.broadcast()
	return false, nil
}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

func getBuffer() *[]byte { return bufferPool.Get().(*[]byte) }

func putBuffer(b *[]byte) { bufferPool.Put(b) }
