package chunker

import (
	"context"
	"io"
	"testing"
)

func BenchmarkWritePiece(b *testing.B) {
	data, d := testBlob(1 << 30 >> 3)
	s := openStore(b, b.TempDir())
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		blob := acquire(b, s, d, len(data))
		for i := range blob.Geometry().NumPieces() {
			writePiece(b, blob, data, i)
		}
		s.Drop(d)
		blob.Release()
	}
}

func BenchmarkVerifyWholeAndRead(b *testing.B) {
	data, d := testBlob(1 << 30 >> 3)
	s := openStore(b, b.TempDir())
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		b.StopTimer()
		blob := acquire(b, s, d, len(data))
		for i := range blob.Geometry().NumPieces() {
			writePiece(b, blob, data, i)
		}
		b.StartTimer()
		if err := blob.VerifyWhole(context.Background()); err != nil {
			b.Fatal(err)
		}
		r := blob.NewReader(context.Background(), 0, int64(len(data)), false)
		if _, err := io.Copy(io.Discard, r); err != nil {
			b.Fatal(err)
		}
		r.Close()
		s.Drop(d)
		blob.Release()
	}
}

// BenchmarkReadPrefix streams the verified prefix of a blob that is not whole.
func BenchmarkReadPrefix(b *testing.B) {
	data, d := testBlob(512 << 20)
	s := openStore(b, b.TempDir())
	blob := acquire(b, s, d, len(data))
	defer blob.Release()
	for i := range blob.Geometry().NumPieces() {
		writePiece(b, blob, data, i)
	}
	n := int64(len(data)) - TailLength
	b.SetBytes(n)
	buf := make([]byte, 32<<10) // what net/http copies with
	for b.Loop() {
		r := blob.NewReader(context.Background(), 0, n, false)
		if _, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{r}, buf); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

// BenchmarkTakePiece is a piece's way through the swarm.
func BenchmarkTakePiece(b *testing.B) {
	data, d := testBlob(128 << 20)
	s := openStore(b, b.TempDir())
	blob := acquire(b, s, d, len(data))
	defer blob.Release()
	g := blob.Geometry()
	b.SetBytes(g.Size)
	for b.Loop() {
		blob.Discard()
		for i := range g.NumPieces() {
			off, n := g.Piece(i)
			if err := blob.Expect(i, SumOf(data[off:off+n])); err != nil {
				b.Fatal(err)
			}
			if fresh, err := blob.TakePiece(i, data[off:off+n]); !fresh || err != nil {
				b.Fatal(fresh, err)
			}
		}
	}
}

// onlyWriter hides ReadFrom, so that CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// onlyReader hides WriteTo.
type onlyReader struct{ io.Reader }
