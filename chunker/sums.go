package chunker

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
)

// The sums file: an 8 byte magic, the blob's size as 8 bytes big endian, then
// one record of 33 bytes per piece, a flag (1: complete) and the sum. Records
// are written in place, after the piece's data.
const (
	sumsMagic  = "shoal\x00p\x01"
	sumsHeader = len(sumsMagic) + 8
	sumsRecord = 1 + len(Sum{})
)

func sumsFileSize(g Geometry) int64 {
	return int64(sumsHeader) + int64(g.NumPieces())*int64(sumsRecord)
}

func encodeSumsHeader(size int64) []byte {
	return binary.BigEndian.AppendUint64([]byte(sumsMagic), uint64(size))
}

// decodeSumsHeader returns the geometry that a sums file is for.
func decodeSumsHeader(p []byte) (Geometry, error) {
	if len(p) < sumsHeader || !bytes.Equal(p[:len(sumsMagic)], []byte(sumsMagic)) {
		return Geometry{}, fmt.Errorf("sums file: not of this version")
	}
	size := binary.BigEndian.Uint64(p[len(sumsMagic):])
	if size > MaxBlobSize {
		return Geometry{}, fmt.Errorf("sums file: blob size %d", size)
	}
	return GeometryOf(int64(size))
}

// decodeSums reads the records of a whole sums file: which pieces were
// complete, and their sums.
func decodeSums(p []byte) (Geometry, Bitfield, []Sum, error) {
	g, err := decodeSumsHeader(p)
	if err != nil {
		return g, Bitfield{}, nil, err
	}
	if int64(len(p)) != sumsFileSize(g) {
		return g, Bitfield{}, nil, fmt.Errorf("sums file: %d bytes, want %d", len(p), sumsFileSize(g))
	}
	have, sums := NewBitfield(g.NumPieces()), make([]Sum, g.NumPieces())
	for i := range sums {
		r := p[sumsHeader+i*sumsRecord:]
		if r[0] == 1 {
			have.Set(i)
			copy(sums[i][:], r[1:])
		}
	}
	return g, have, sums, nil
}

// clearSums makes f the sums file of a blob without a piece. Until it is done,
// f does not decode, and a crash leaves nothing to believe.
func clearSums(f *os.File, g Geometry) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("write sums: %w", err)
	}
	if _, err := f.WriteAt(encodeSumsHeader(g.Size), 0); err != nil {
		return fmt.Errorf("write sums: %w", err)
	}
	if err := f.Truncate(sumsFileSize(g)); err != nil {
		return fmt.Errorf("write sums: %w", err)
	}
	return nil
}

func encodeSum(s Sum) []byte { return append([]byte{1}, s[:]...) }

func sumOffset(i int) int64 { return int64(sumsHeader + i*sumsRecord) }
