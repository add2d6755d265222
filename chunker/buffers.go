package chunker

import "sync"

// Buffers recycles the memory that pieces pass through between socket and disk:
// at most [MaxPieceLength] each. The zero value is ready; it is safe for
// concurrent use.
type Buffers struct{ pool sync.Pool }

// Get returns n bytes with anything in them.
func (b *Buffers) Get(n int64) []byte {
	if p, ok := b.pool.Get().(*[]byte); ok && int64(cap(*p)) >= n {
		return (*p)[:n]
	}
	return make([]byte, n)
}

// Put gives back what Get returned. The caller must not use it any more.
func (b *Buffers) Put(p []byte) { b.pool.Put(&p) }
