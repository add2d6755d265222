package chunker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// TailLength is how many bytes at the end of a blob are withheld from readers
// until the digest of the whole is verified. Any number above zero keeps a
// client from finishing a wrong blob; this one makes the client's last read
// after verification a short one.
const TailLength = 64 << 10

// NewReader streams n bytes from off in order, waiting for pieces to complete
// (see Complete's and TailLength's docs for what is held back). With hold it
// yields nothing before the whole blob is verified. It fails with ctx's error,
// the *DigestError of a wrong blob, or what Fail was given. The reader has its
// own pin until it is closed; it is not safe for concurrent use.
func (b *Blob) NewReader(ctx context.Context, off, n int64, hold bool) io.ReadCloser {
	b.s.mu.Lock()
	b.s.pin(b)
	b.s.mu.Unlock()
	b.mu.Lock()
	age := b.age
	b.mu.Unlock()
	off = min(max(off, 0), b.geo.Size)
	return &reader{b: b, ctx: ctx, pos: off, end: off + min(max(n, 0), b.geo.Size-off), hold: hold, age: age}
}

type reader struct {
	b        *Blob
	ctx      context.Context // bounds all Reads, as a request's body does
	pos, end int64
	hold     bool
	age      int
	once     sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	if r.pos >= r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for {
		to, changed, err := r.readable(int64(len(p)))
		if err != nil {
			return 0, fmt.Errorf("read blob at byte %d: %w", r.pos, err)
		}
		if to > r.pos {
			return r.read(p[:to-r.pos])
		}
		select {
		case <-changed:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
}

// read reads bytes that were readable a moment ago, and takes care that they
// were still so after it: a piece may have been rejected and overwritten
// meanwhile.
func (r *reader) read(p []byte) (int, error) {
	n, err := r.b.ReadAt(p, r.pos)
	if n < len(p) {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // somebody cut the file
		}
		return 0, fmt.Errorf("read blob at byte %d: %w", r.pos, err)
	}
	r.b.mu.Lock()
	age, err := r.b.age, r.b.ageErr
	r.b.mu.Unlock()
	if r.age != age {
		return 0, fmt.Errorf("read blob at byte %d: %w", r.pos, err)
	}
	r.pos += int64(n)
	return n, nil
}

// readable tells up to which byte the reader may go on now, at most n bytes.
func (r *reader) readable(n int64) (to int64, changed <-chan struct{}, err error) {
	b := r.b
	end := min(r.end, r.pos+n)
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.ctx.Err() != nil:
		return 0, nil, r.ctx.Err()
	case r.age != b.age:
		return 0, nil, b.ageErr
	case b.whole:
		return end, b.changed, nil
	case b.err != nil:
		return 0, nil, b.err
	case r.hold, b.wrong:
		return r.pos, b.changed, nil
	}
	to = r.pos
	for i := b.geo.PieceAt(r.pos); to < end && b.have.Has(i); i++ {
		off, n := b.geo.Piece(i)
		to = off + n
	}
	return min(to, end, max(r.pos, b.geo.Size-TailLength)), b.changed, nil
}

func (r *reader) Close() error {
	r.once.Do(r.b.Release)
	return nil
}
