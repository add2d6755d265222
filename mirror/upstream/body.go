package upstream

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// progressStep is how many bytes count as progress: after them, a broken body
// has all its attempts again. A server that sends a little each time must not
// keep a stream going for ever.
const progressStep = 256 << 10

// body is an open range of a blob: one stream after another, until all bytes
// have come.
type body struct {
	b       *Blob
	ctx     context.Context // ends with Close
	cancel  context.CancelCauseFunc
	release func() // gives the slot back; once

	mu       sync.Mutex
	cur      *stream // nil between streams
	broke    error   // why the last stream ended, not yet dealt with
	off, end int64   // still to come
	whole    bool    // of the blob
	tries    attempts
	progress int64 // bytes since the last failure
	err      error // of all further reads
}

func (s *body) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if s.err != nil {
			return 0, s.err
		}
		if len(p) == 0 {
			return 0, nil
		}
		if s.cur == nil && !s.resume() {
			continue
		}
		n, err := s.cur.Read(p)
		s.advance(int64(n))
		switch {
		case s.off == s.end:
			s.finish(io.EOF)
		case err != nil:
			s.cur.close()
			s.cur, s.broke = nil, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (s *body) advance(n int64) {
	s.off += n
	if s.progress += n; s.progress >= progressStep {
		s.progress, s.tries.failed = 0, 0
	}
}

// resume opens the next stream. On failure it has dealt with it: either there
// is another attempt, or s.err is set.
func (s *body) resume() bool {
	if s.broke != nil {
		s.progress = 0
		if err := s.tries.again(s.ctx, s.broke); err != nil {
			s.finish(err)
			return false
		}
		s.broke = nil
	}
	s.cur, s.broke = s.b.connect(s.ctx, s.off, s.end, s.whole)
	return s.broke == nil
}

// finish settles what further reads return, and frees everything.
func (s *body) finish(err error) {
	if s.err == nil {
		s.err = err
	}
	if s.cur != nil {
		s.cur.close()
		s.cur = nil
	}
	s.cancel(nil)
	s.release()
}

// Close ends the transfer. A Read in progress fails.
func (s *body) Close() error {
	s.cancel(errClosed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(errClosed)
	return nil
}

// stream is one response's body.
type stream struct {
	k      task
	ctx    context.Context
	cancel context.CancelCauseFunc
	body   io.ReadCloser
	// skip bytes come first that nobody wants, then left bytes.
	skip, left int64
	// timer cancels ctx; it runs during reads only, since a slow consumer is
	// no fault of the server's.
	timer  *time.Timer
	silent time.Duration
	count  prometheus.Counter // of bytes
}

// Read returns bytes of the range. It fails with an *Error, never with io.EOF:
// the owner knows when it has everything.
func (s *stream) Read(p []byte) (int, error) {
	for s.skip > 0 {
		n, err := s.read(p[:min(int64(len(p)), s.skip)])
		s.skip -= int64(n)
		if err != nil && (!errors.Is(err, io.EOF) || s.skip > 0) {
			return 0, s.fail(err)
		}
	}
	if s.left == 0 {
		return 0, s.fail(io.EOF)
	}
	n, err := s.read(p[:min(int64(len(p)), s.left)])
	s.left -= int64(n)
	if err != nil {
		err = s.fail(err)
	}
	return n, err
}

// read reads the body under the timer.
func (s *stream) read(p []byte) (int, error) {
	s.timer.Reset(s.silent)
	n, err := s.body.Read(p)
	s.timer.Stop()
	s.count.Add(float64(n))
	return n, err
}

func (s *stream) fail(err error) error {
	if errors.Is(err, io.EOF) {
		err = errShort
	}
	return s.k.broken(s.ctx, err)
}

func (s *stream) close() {
	if s.timer != nil {
		s.timer.Stop()
	}
	_ = s.body.Close()
	s.cancel(nil)
}
