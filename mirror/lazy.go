package mirror

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/shoal-dev/shoal/swarm"
)

// passThrough is a range on its way from upstream to the client, and nowhere
// else: what a lazy snapshotter wants is a few chunks now, not the blob later.
// It checks every chunk itself.
type passThrough struct {
	body   io.ReadCloser
	cancel context.CancelFunc
	got    atomic.Int64
}

// passThrough opens a range upstream.
func (m *Mirror) passThrough(ctx context.Context, origin swarm.Origin, rg byteRange) (*passThrough, error) {
	// The body lives as long as ctx, but must begin in time.
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(m.cfg.CheckTimeout, cancel)
	body, err := origin.Open(ctx, rg.off, rg.n)
	if err == nil && !late.Stop() {
		_ = body.Close() // it was cancelled
		err = errSlow
	}
	if err != nil {
		late.Stop()
		cancel()
		return nil, fmt.Errorf("pass a range through: %w", err)
	}
	return &passThrough{body: body, cancel: cancel}, nil
}

// NewReader returns the one range that was opened.
func (t *passThrough) NewReader(ctx context.Context, _, _ int64) io.ReadCloser {
	return &passReader{t: t, unlink: context.AfterFunc(ctx, t.cancel)}
}

func (t *passThrough) Wait(context.Context) error { return nil }
func (t *passThrough) Stats() swarm.Stats         { return swarm.Stats{Origin: t.got.Load()} }

func (t *passThrough) Close() {
	t.cancel()
	_ = t.body.Close() // nothing was written through it
}

type passReader struct {
	t      *passThrough
	unlink func() bool
}

func (r *passReader) Read(p []byte) (int, error) {
	n, err := r.t.body.Read(p)
	r.t.got.Add(int64(n))
	return n, err
}

func (r *passReader) Close() error { r.unlink(); return nil }
