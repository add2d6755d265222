package chunker

import (
	"fmt"
	"iter"
	"math/bits"
	"slices"
)

// Bitfield is a set of piece indices of fixed length, in BitTorrent's order:
// piece 0 is the highest bit of the first byte. The zero value has length 0.
// Not safe for concurrent use.
type Bitfield struct {
	n int
	b []byte
}

// NewBitfield returns the empty set over n pieces.
func NewBitfield(n int) Bitfield { return Bitfield{n: n, b: make([]byte, (n+7)/8)} }

// BitfieldFromBytes reads what Bytes wrote. Empty bytes are the empty set. A
// wrong length, or a bit beyond the last piece, is an error.
func BitfieldFromBytes(n int, p []byte) (Bitfield, error) {
	f := NewBitfield(n)
	if len(p) == 0 {
		return f, nil
	}
	if len(p) != len(f.b) {
		return Bitfield{}, fmt.Errorf("bitfield of %d bytes for %d pieces, want %d", len(p), n, len(f.b))
	}
	if spare := len(p)*8 - n; spare > 0 && p[len(p)-1]&(1<<spare-1) != 0 {
		return Bitfield{}, fmt.Errorf("bitfield for %d pieces has bits set beyond the last", n)
	}
	copy(f.b, p)
	return f, nil
}

// Bytes returns the set's bytes; the caller must not change them.
func (f Bitfield) Bytes() []byte { return f.b }

// Len is the number of pieces that the set ranges over.
func (f Bitfield) Len() int { return f.n }

// Has says whether i is in the set; false outside of [0, Len).
func (f Bitfield) Has(i int) bool {
	return i >= 0 && i < f.n && f.b[i/8]&(0x80>>(i%8)) != 0
}

// Set adds i, which must be in [0, Len).
func (f Bitfield) Set(i int) { f.b[i/8] |= 0x80 >> (i % 8) }

// Clear removes i, which must be in [0, Len).
func (f Bitfield) Clear(i int) { f.b[i/8] &^= 0x80 >> (i % 8) }

// Count is the number of pieces in the set.
func (f Bitfield) Count() int {
	n := 0
	for _, b := range f.b {
		n += bits.OnesCount8(b)
	}
	return n
}

// Full says that every piece is in the set.
func (f Bitfield) Full() bool { return f.Count() == f.n }

// Clone returns a copy.
func (f Bitfield) Clone() Bitfield { return Bitfield{n: f.n, b: slices.Clone(f.b)} }

// All yields the pieces in the set, in order.
func (f Bitfield) All() iter.Seq[int] { return f.seq(true) }

// Missing yields the pieces not in the set, in order.
func (f Bitfield) Missing() iter.Seq[int] { return f.seq(false) }

func (f Bitfield) seq(want bool) iter.Seq[int] {
	return func(yield func(int) bool) {
		for i := range f.n {
			if f.Has(i) == want && !yield(i) {
				return
			}
		}
	}
}
