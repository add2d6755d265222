package tracker

import (
	"context"
	"sync"
)

// mergeable is a message that can absorb another one.
type mergeable[T any] interface {
	*T
	Merge(T)
	Empty() bool
}

// Outbox collects messages until their receiver is ready for them, merging
// what waits. So a slow receiver costs no more memory than one message over
// the blob's pieces, and a fast one gets each message at once. Safe for
// concurrent use.
type Outbox[T any, P mergeable[T]] struct {
	mu      sync.Mutex
	pending T
	closed  bool
	signal  chan struct{}
}

// NewOutbox returns an empty outbox.
func NewOutbox[T any, P mergeable[T]]() *Outbox[T, P] {
	return &Outbox[T, P]{signal: make(chan struct{}, 1)}
}

// Put adds a message; it never blocks. After Close it is dropped.
func (b *Outbox[T, P]) Put(m T) {
	b.mu.Lock()
	if !b.closed {
		P(&b.pending).Merge(m)
	}
	b.mu.Unlock()
	b.wake()
}

// Close lets Next return what is left, and then false.
func (b *Outbox[T, P]) Close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wake()
}

func (b *Outbox[T, P]) wake() {
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// Next waits for something to send, and takes all of it. ok is false at the
// end of ctx and when the outbox is closed and empty. One goroutine calls it.
func (b *Outbox[T, P]) Next(ctx context.Context) (m T, ok bool) {
	for {
		b.mu.Lock()
		if !P(&b.pending).Empty() {
			var zero T
			m, b.pending = b.pending, zero
			b.mu.Unlock()
			return m, true
		}
		closed := b.closed
		b.mu.Unlock()
		if closed {
			return m, false
		}
		select {
		case <-b.signal:
		case <-ctx.Done():
			return m, false
		}
	}
}
