package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/shoal-dev/shoal/swarm"
)

// errStalled ends a body whose download brings in nothing any more.
var errStalled = errors.New("download stalled")

// deliver sends a part of a blob as it arrives. It returns an error only when
// nothing was sent, not even the header. When the download fails later, it
// returns early: the server then closes the connection before the promised
// end, with FIN, and containerd asks for the rest.
func (m *Mirror) deliver(w http.ResponseWriter, r *http.Request, p *pull, dl swarm.Download, rg byteRange) error {
	ctx, cancel := context.WithCancelCause(r.Context())
	d := &delivery{m: m, w: w, dl: dl, ctx: ctx, left: rg.n, ended: p.ended}
	d.body = dl.NewReader(ctx, rg.off, rg.n)
	buf := m.buffer(rg.n)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		d.watch(cancel)
	}()
	defer func() {
		cancel(nil)
		<-watched
		_ = d.body.Close() // nothing was written through it
		if len(*buf) == copyBuffer {
			m.buffers.Put(buf)
		}
		p.sent, p.stats = d.sent, dl.Stats()
		p.source = dearest(p.stats)
	}()

	start := func() {
		if p.span != nil {
			p.span.AddEvent("first byte")
		}
		m.delivered.add(p.digest) // the client may be done with it before we are
		m.patient(w)
		p.status = describeBlob(w.Header(), p.digest, rg, p.size)
		w.WriteHeader(p.status)
	}
	if rg.n == 0 {
		start()
		return nil
	}
	first := make(chan chunk, 1)
	go func() { first <- d.read(*buf, m.cfg.Hold) }()
	var c chunk
	headerBy := time.NewTimer(time.Until(m.firstByteBy(p)))
	defer headerBy.Stop()
	select {
	case c = <-first:
		if c.n == 0 {
			return fmt.Errorf("wait for the first byte of %s: %w", p.digest, d.cause(c.err))
		}
		start()
	case <-headerBy.C:
		// The client stops waiting for a header at some time, but not for
		// the body.
		start()
		_ = http.NewResponseController(w).Flush() // a dead client shows in a moment
		c = <-first
	}
	if err := d.copy(c, *buf); err != nil {
		m.cut(r, p, d.cause(err))
	}
	return nil
}

// firstByteBy is when the header goes out at the latest.
func (m *Mirror) firstByteBy(p *pull) time.Time { return p.began.Add(m.cfg.FirstByteTimeout) }

// buffer returns one to copy n bytes with. Those for small blobs are not worth
// keeping.
func (m *Mirror) buffer(n int64) *[]byte {
	if n < copyBuffer {
		b := make([]byte, n)
		return &b
	}
	b, _ := m.buffers.Get().(*[]byte)
	return b
}

// cut notes why a body ends early.
func (m *Mirror) cut(r *http.Request, p *pull, err error) {
	p.err = err
	var gone *clientError
	var ended *endedError
	switch {
	case r.Context().Err() != nil, errors.As(err, &gone):
		p.reason = reasonClient
		return
	case errors.As(err, &ended):
		// The caller's credential has ended in mid-blob, as tokens do. With a
		// new one the client goes on here; with the same one it hears why not.
		p.reason = reasonCutDenied
		m.heard(p.question(p.ref), swarm.Descriptor{}, err)
		return
	case errors.Is(err, errStalled):
		p.reason = reasonCutStalled
	default:
		p.reason = reasonCutFailed
	}
	if !p.lazy {
		m.cooldown.start(p.digest, time.Now())
	}
}

// delivery copies one body. One goroutine copies, another one watches it.
type delivery struct {
	m    *Mirror
	w    http.ResponseWriter
	dl   swarm.Download
	ctx  context.Context // the request's; ends with errStalled as its cause
	body io.ReadCloser
	sent int64
	left int64
	// ended tells that the caller's credential has.
	ended <-chan error

	reading atomic.Bool  // waiting for the download, not for the client
	reads   atomic.Int64 // reads that returned
}

// chunk is what one Read returned.
type chunk struct {
	n   int
	err error
}

// clientError is a failure to write to the client.
type clientError struct{ err error }

func (e *clientError) Error() string { return "write to client: " + e.err.Error() }
func (e *clientError) Unwrap() error { return e.err }

// read reads some bytes, at least one unless it fails.
func (d *delivery) read(buf []byte, hold bool) chunk {
	d.reading.Store(true)
	defer d.reading.Store(false)
	if hold {
		if err := d.dl.Wait(d.ctx); err != nil {
			return chunk{err: err}
		}
	}
	for {
		n, err := d.body.Read(buf[:min(int64(len(buf)), d.left)])
		d.reads.Add(1)
		if n > 0 {
			return chunk{n, nil}
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // there is something left
		}
		if err != nil {
			return chunk{0, err}
		}
	}
}

// copy sends what was read first, and then the rest.
func (d *delivery) copy(c chunk, buf []byte) error {
	flush := http.NewResponseController(d.w)
	for {
		if c.err != nil {
			return c.err
		}
		d.m.patient(d.w)
		n, err := d.w.Write(buf[:c.n])
		d.sent += int64(n)
		d.left -= int64(n)
		if err == nil && d.left > 0 {
			// The next read may wait; what is here should not.
			if err = flush.Flush(); errors.Is(err, http.ErrNotSupported) {
				err = nil
			}
		}
		switch {
		case err != nil:
			return &clientError{err}
		case d.left <= 0:
			return nil
		}
		c = d.read(buf, false)
	}
}

// watch ends the delivery when the caller's credential has ended, or when it has
// waited for StallTimeout and the download has brought in nothing meanwhile. A reader that waits for the next
// piece of a download that is busy with others is not stalled.
func (d *delivery) watch(cancel context.CancelCauseFunc) {
	tick := time.NewTicker(max(d.m.cfg.StallTimeout/8, time.Millisecond))
	defer tick.Stop()
	last, since := int64(-1), time.Now()
	for {
		select {
		case <-d.ctx.Done():
			return
		case err := <-d.ended:
			cancel(err)
			return
		case now := <-tick.C:
			st := d.dl.Stats()
			progress := d.reads.Load() + st.Origin + st.Peers + st.Local
			switch {
			case progress != last || !d.reading.Load():
				last, since = progress, now
			case now.Sub(since) >= d.m.cfg.StallTimeout:
				cancel(errStalled)
				return
			}
		}
	}
}

// cause replaces the error of a cancelled read by the reason for it.
func (d *delivery) cause(err error) error {
	if cause := context.Cause(d.ctx); cause != nil && errors.Is(err, d.ctx.Err()) {
		return cause
	}
	return err
}

// patient gives the client ClientTimeout for the next write; the server lifts
// the deadline after the request. Response writers without deadlines go
// without.
func (m *Mirror) patient(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(m.cfg.ClientTimeout))
}
