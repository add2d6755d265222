package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
)

// apiWindow is how much is read ahead through the API: containerd sends up to
// 1 MiB in one message, and a question costs about 0.4 ms, so that smaller reads
// would spend their time on asking.
const apiWindow = 1 << 20

// apiBlob reads a blob through containerd's API. The window makes the small
// reads in order that HTTP servers do as cheap as large ones.
type apiBlob struct {
	d         *daemon
	namespace string
	key       key
	size      int64
	// ctx lives until Close: readers outlive the request that opened them.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex
	window []byte // nil before the first small read
	at     int64  // offset of window in the blob
}

func newAPIBlob(d *daemon, namespace string, k key, size int64) *apiBlob {
	ctx, cancel := context.WithCancel(context.Background())
	return &apiBlob{d: d, namespace: namespace, key: k, size: size, ctx: ctx, cancel: cancel}
}

// Size implements swarm.Reader.
func (b *apiBlob) Size() int64 { return b.size }

// Close implements io.Closer; reads in progress fail.
func (b *apiBlob) Close() error {
	b.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.window = nil
	return nil
}

// ReadAt implements io.ReaderAt.
func (b *apiBlob) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case b.ctx.Err() != nil:
		return 0, fmt.Errorf("read %s: %w", b.key.digest(), fs.ErrClosed)
	case off < 0:
		return 0, fmt.Errorf("read %s: %w", b.key.digest(), errNegativeOffset)
	case off >= b.size:
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > b.size-off {
		p, end = p[:b.size-off], io.EOF
	}
	n, err := b.readFull(p, off)
	if err == nil {
		err = end
	}
	return n, err
}

var errNegativeOffset = errors.New("negative offset")

// readFull fills p, which lies within the blob.
func (b *apiBlob) readFull(p []byte, off int64) (int, error) {
	if len(p) >= apiWindow {
		if err := b.read(p, off); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < len(p) {
		pos := off + int64(n)
		if i := pos - b.at; i >= 0 && i < int64(len(b.window)) {
			n += copy(p[n:], b.window[i:])
			continue
		}
		if cap(b.window) == 0 {
			b.window = make([]byte, 0, min(apiWindow, b.size))
		}
		w := b.window[:min(int64(cap(b.window)), b.size-pos)]
		b.window = b.window[:0]
		if err := b.read(w, pos); err != nil {
			return n, err
		}
		b.window, b.at = w, pos
	}
	return n, nil
}

func (b *apiBlob) read(p []byte, off int64) error {
	err := b.d.read(b.ctx, b.namespace, b.key, p, off)
	if err != nil && b.ctx.Err() != nil {
		return fmt.Errorf("read %s: %w", b.key.digest(), fs.ErrClosed)
	}
	return err
}
