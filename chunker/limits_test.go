package chunker

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

func TestWhatNeverFitsEvictsNothing(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.Capacity = 4 * MinPieceLength })
	data, d := testBlob(MinPieceLength)
	storeWhole(t, s, data, d)
	pinned := acquire(t, s, digest.FromString("pinned"), 2*MinPieceLength)
	defer pinned.Release()
	for name, size := range map[string]int64{"over the cap": 5 * MinPieceLength, "over what is not pinned": 3 * MinPieceLength} {
		var full *NoSpaceError
		_, err := s.Acquire(digest.FromString("huge"), size)
		if !errors.As(err, &full) || full.Need != size || full.Free != 2*MinPieceLength {
			t.Errorf("%s: got %v, want a NoSpaceError that tells what eviction would bring", name, err)
		}
	}
	if len(s.Complete()) != 1 {
		t.Error("the cache was emptied for a blob that can never fit")
	}
}

// TestSizesThatDisagree: nobody knows a size for sure before the blob is
// whole.
func TestSizesThatDisagree(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(MinPieceLength)
	lie := acquire(t, s, d, 3*len(data))
	if _, err := s.Acquire(d, int64(len(data))); err == nil {
		t.Error("two sizes at once")
	}
	lie.Release()
	storeWhole(t, s, data, d) // the lie does not bar the blob
	if u := s.Usage(); u != int64(len(data)) {
		t.Errorf("usage %d, want %d", u, len(data))
	}
	if _, err := s.Acquire(d, 3*int64(len(data))); err == nil {
		t.Error("the size of a verified blob was disputed with success")
	}
}

// TestLackOfDescriptorsLosesNothing: it passes, and the blobs stay.
func TestLackOfDescriptorsLosesNothing(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(MinPieceLength)
	storeWhole(t, s, data, d)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	_, whole := s.Get(d)
	_, again := s.Acquire(d, int64(len(data)))
	_, fresh := s.Acquire(digest.FromString("fresh"), 10)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if whole || !errors.Is(again, unix.EMFILE) || !errors.Is(fresh, unix.EMFILE) {
		t.Fatalf("without descriptors: Get %v, Acquire %v, and of a new blob %v", whole, again, fresh)
	}
	b, ok := s.Get(d)
	if !ok {
		t.Fatal("a whole blob was lost for want of a descriptor")
	}
	b.Release()
	if u := s.Usage(); u != int64(len(data)) {
		t.Errorf("usage %d: the blob that could not be made still counts", u)
	}
}

// TestIndicesOutOfRange: they come from messages, and must not panic.
func TestIndicesOutOfRange(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(2*MinPieceLength + 5)
	b := acquire(t, s, d, len(data))
	defer b.Release()
	for _, i := range []int{-1 << 62, -stripes, -1, 3, stripes, 1<<63 - 1} {
		if fresh, err := b.TakePiece(i, make([]byte, MinPieceLength)); fresh || err == nil {
			t.Errorf("TakePiece(%d): %v, %v", i, fresh, err)
		}
		if _, err := b.WritePiece(i, make([]byte, MinPieceLength)); err == nil {
			t.Errorf("WritePiece(%d) succeeded", i)
		}
		if err := b.Expect(i, Sum{}); err == nil {
			t.Errorf("Expect(%d) succeeded", i)
		}
		if _, ok := b.Sum(i); ok || b.Has(i) {
			t.Errorf("piece %d is there", i)
		}
		b.Reject(i)
	}
	for _, rg := range [][2]int64{{-5, 10}, {0, -1}, {int64(len(data)), 5}, {1<<63 - 1, 1<<63 - 1}} {
		r := b.NewReader(context.Background(), rg[0], rg[1], false)
		if r.(*reader).end > b.Geometry().Size || r.(*reader).pos < 0 {
			t.Errorf("NewReader(%d, %d) reads beyond the blob", rg[0], rg[1])
		}
		r.Close()
		r.Close() // one pin is given back, not two
	}
}

func TestUseAfterClose(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	data, d := testBlob(2 * MinPieceLength)
	b := acquire(t, s, d, len(data))
	writePiece(t, b, data, 0)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	next := openStore(t, dir)
	if err := b.Expect(1, SumOf(data[MinPieceLength:])); err != nil {
		t.Fatal(err)
	}
	if _, err := b.TakePiece(1, data[MinPieceLength:]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("TakePiece: %v", err)
	}
	if _, err := b.WritePiece(1, data[MinPieceLength:]); !errors.Is(err, os.ErrClosed) {
		t.Errorf("WritePiece: %v", err)
	}
	if _, err := s.Acquire(d, int64(len(data))); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Acquire: %v", err)
	}
	if err := s.PutBytes(digest.FromString("x"), []byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("PutBytes: %v", err)
	}
	s.Drop(d)
	b.Release()
	heir := acquire(t, next, d, len(data))
	defer heir.Release()
	if !heir.Has(0) {
		t.Error("the closed store took the next one's blob away")
	}
}

// TestOpenAgain: an attempt that failed does not spoil the next one.
func TestOpenAgain(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	reg := prometheus.NewPedanticRegistry()
	if _, err := Open(Options{Dir: dir, Registerer: reg}); err == nil {
		t.Fatal("opened twice")
	}
	s.Close()
	again, err := Open(Options{Dir: dir, Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if m, err := reg.Gather(); err != nil || len(m) != 6 {
		t.Errorf("%d metrics, %v", len(m), err)
	}
}

func TestFileCutUnderReader(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	data, d := testBlob(2 * MinPieceLength)
	storeWhole(t, s, data, d)
	b, ok := s.Get(d)
	if !ok {
		t.Fatal("not there")
	}
	defer b.Release()
	if err := os.Truncate(filepath.Join(dir, "complete", d.Encoded()), 1000); err != nil {
		t.Fatal(err)
	}
	r := b.NewReader(context.Background(), 0, int64(len(data)), false)
	defer r.Close()
	if p, err := io.ReadAll(r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%d bytes, %v: want it told that bytes are missing", len(p), err)
	}
}

// TestConflictLeavesNothing: the sum that was published first wins, even when
// it comes while another source's piece is being written.
func TestConflictLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	data, d := testBlob(MinPieceLength)
	b := acquire(t, s, d, len(data))
	other := SumOf([]byte("other"))
	if err := b.Expect(0, other); err != nil {
		t.Fatal(err)
	}
	// As if the sum had come between WritePiece's look and its end.
	var conflict *ConflictError
	if err := b.complete(0, SumOf(data)); !errors.As(err, &conflict) || b.Has(0) {
		t.Errorf("got %v, has %v", err, b.Has(0))
	}
	raw, err := os.ReadFile(filepath.Join(dir, "partial", d.Encoded()+".sums"))
	if err != nil {
		t.Fatal(err)
	}
	if _, have, _, err := decodeSums(raw); err != nil || have.Count() != 0 {
		t.Errorf("recorded %d pieces, %v", have.Count(), err)
	}
	b.Release()
}

// TestDroppedBlobIsWantedAgain: one that is acquired before its file is gone
// stays.
func TestDroppedBlobIsWantedAgain(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(MinPieceLength)
	first := acquire(t, s, d, len(data))
	s.Drop(d)
	storeWhole(t, s, data, d)
	first.Release()
	b, ok := s.Get(d)
	if !ok {
		t.Fatal("what was fetched after Drop is gone")
	}
	s.Drop(d)
	b.Release()
	if s.Usage() != 0 {
		t.Error("Drop did nothing")
	}
}
