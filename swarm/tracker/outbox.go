package tracker

import (
	"context"
	"sync"
	"time"
)

// mergeable is a message that can absorb another one.
type mergeable[T any] interface {
	*T
	Merge(T)
	Empty() bool
	Urgent() bool
}

// Outbox collects messages until their receiver is ready for them, merging
// what waits. So a slow receiver costs no more memory than one message over
// the blob's pieces, and a fast one gets each message at once, or at the pace
// that was set. Safe for concurrent use.
type Outbox[T any, P mergeable[T]] struct {
	mu      sync.Mutex
	pending T
	closed  bool
	pace    time.Duration
	last    time.Time // when Next last returned a message
	signal  chan struct{}
}

// NewOutbox returns an empty outbox.
func NewOutbox[T any, P mergeable[T]]() *Outbox[T, P] {
	return &Outbox[T, P]{signal: make(chan struct{}, 1)}
}

// Put adds a message; it never blocks. After Close it is dropped.
func (b *Outbox[T, P]) Put(m T) {
	b.mu.Lock()
	p := P(&b.pending)
	// Who waits for the pace to pass is not to be woken for more of the same.
	wake := p.Empty() || P(&m).Urgent()
	if !b.closed {
		p.Merge(m)
	}
	b.mu.Unlock()
	if wake {
		b.wake()
	}
}

// SetPace sets the least time between two messages; those that are urgent do
// not heed it. See [PaceDown] and [PaceUp].
func (b *Outbox[T, P]) SetPace(d time.Duration) {
	b.mu.Lock()
	b.pace = d
	b.mu.Unlock()
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
		var due <-chan time.Time
		if p := P(&b.pending); !p.Empty() {
			now := time.Now()
			wait := b.last.Add(b.pace).Sub(now)
			if wait <= 0 || b.closed || p.Urgent() {
				var zero T
				m, b.pending, b.last = b.pending, zero, now
				b.mu.Unlock()
				return m, true
			}
			due = time.After(wait)
		}
		closed := b.closed
		b.mu.Unlock()
		if closed {
			return m, false
		}
		select {
		case <-b.signal:
		case <-due:
		case <-ctx.Done():
			return m, false
		}
	}
}
