package chunker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t testing.TB, dir string, change ...func(*Options)) *Store {
	t.Helper()
	o := Options{Dir: dir, Log: zerolog.Nop()}
	for _, f := range change {
		f(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func testBlob(n int) ([]byte, digest.Digest) {
	p := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p, digest.FromBytes(p)
}

func acquire(t testing.TB, s *Store, d digest.Digest, size int) *Blob {
	t.Helper()
	b, err := s.Acquire(d, int64(size))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writePiece(t testing.TB, b *Blob, data []byte, i int) {
	t.Helper()
	off, n := b.Geometry().Piece(i)
	if _, err := b.WritePiece(i, data[off:off+n]); err != nil {
		t.Fatal(err)
	}
}

// store puts a whole verified blob into the store.
func storeWhole(t testing.TB, s *Store, data []byte, d digest.Digest) {
	t.Helper()
	b := acquire(t, s, d, len(data))
	defer b.Release()
	for i := range b.Geometry().NumPieces() {
		writePiece(t, b, data, i)
	}
	if err := b.VerifyWhole(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestBlobFromPiecesToWhole(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	present := map[digest.Digest]bool{}
	s := openStore(t, dir, func(o *Options) {
		o.OnChange = func(d digest.Digest, _ int64, p bool) { mu.Lock(); present[d] = p; mu.Unlock() }
	})
	data, d := testBlob(3*MinPieceLength + 1000)
	b := acquire(t, s, d, len(data))
	verified := make(chan error, 1)
	go func() { verified <- b.VerifyWhole(context.Background()) }()
	got := make(chan []byte, 1)
	r := b.NewReader(context.Background(), 0, int64(len(data)), false)
	go func() {
		p, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		got <- p
	}()
	// Through the swarm.
	for _, i := range []int{2, 0} {
		off, n := b.Geometry().Piece(i)
		if fresh, err := b.TakePiece(i, data[off:off+n]); fresh || err != ErrNoSum {
			t.Fatalf("piece %d taken without a sum: %v %v", i, fresh, err)
		}
		if err := b.Expect(i, SumOf(data[off:off+n])); err != nil {
			t.Fatal(err)
		}
		for _, want := range []bool{true, false} {
			if fresh, err := b.TakePiece(i, data[off:off+n]); fresh != want || err != nil {
				t.Fatalf("piece %d: %v %v", i, fresh, err)
			}
		}
	}
	if b.Prefix() != MinPieceLength {
		t.Errorf("prefix %d, want one piece", b.Prefix())
	}
	// From a source.
	writePiece(t, b, data, 3)
	writePiece(t, b, data, 1)
	if err := <-verified; err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, data) {
		t.Error("reader got wrong bytes")
	}
	r.Close()
	b.Release()
	mu.Lock()
	if !present[d] {
		t.Error("OnChange did not hear of the whole blob")
	}
	mu.Unlock()
	if _, err := os.Stat(filepath.Join(dir, "complete", d.Encoded())); err != nil {
		t.Error(err)
	}
	s.Drop(d)
	if present[d] || s.Usage() != 0 {
		t.Errorf("after Drop: present %v, usage %d", present[d], s.Usage())
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) != 0 {
		t.Errorf("files left: %v", left)
	}
}

func TestWrongPieces(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(2 * MinPieceLength)
	b := acquire(t, s, d, len(data))
	defer b.Release()
	good := SumOf(data[:MinPieceLength])
	if err := b.Expect(0, good); err != nil {
		t.Fatal(err)
	}
	var conflict *ConflictError
	if err := b.Expect(0, SumOf(nil)); !errors.As(err, &conflict) {
		t.Errorf("second sum: %v, want a ConflictError", err)
	}
	if _, err := b.WritePiece(0, make([]byte, MinPieceLength)); !errors.As(err, &conflict) || b.Has(0) {
		t.Errorf("piece with another sum: %v, has %v", err, b.Has(0))
	}
	if fresh, err := b.TakePiece(0, make([]byte, MinPieceLength)); fresh || err != ErrWrongPiece || b.Has(0) {
		t.Errorf("wrong bytes: %v %v", fresh, err)
	}
	writePiece(t, b, data, 0)
	// A late one does not replace it.
	if fresh, err := b.TakePiece(0, make([]byte, MinPieceLength)); fresh || err != nil {
		t.Errorf("late: %v %v", fresh, err)
	}
	got := make([]byte, ChunkLength)
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, data[:ChunkLength]) {
		t.Errorf("a complete piece was overwritten: %v", err)
	}
	for _, i := range []int{-1, 2} {
		if err := b.Expect(i, good); err == nil {
			t.Errorf("sum of piece %d accepted", i)
		}
	}
	if _, err := b.WritePiece(1, data[:10]); err == nil {
		t.Error("short piece accepted")
	}
	if fresh, err := b.TakePiece(1, data[:10]); fresh || err == nil {
		t.Error("short piece taken")
	}
}

func TestWrongBlobIsNeverFinished(t *testing.T) {
	s := openStore(t, t.TempDir())
	data, d := testBlob(2*MinPieceLength + TailLength)
	b := acquire(t, s, d, len(data))
	defer b.Release()
	early := b.NewReader(context.Background(), 0, int64(len(data)), false)
	defer early.Close()
	held := b.NewReader(context.Background(), 0, int64(len(data)), true)
	defer held.Close()
	bad := bytes.Clone(data)
	bad[5] ^= 1
	for i := range b.Geometry().NumPieces() {
		writePiece(t, b, bad, i)
	}
	prefix := make([]byte, 2*MinPieceLength)
	if _, err := io.ReadFull(early, prefix); err != nil {
		t.Fatal(err)
	}
	var wrong *DigestError
	if err := b.VerifyWhole(context.Background()); !errors.As(err, &wrong) {
		t.Fatalf("VerifyWhole: %v, want a DigestError", err)
	}
	if n, err := early.Read(make([]byte, TailLength)); !errors.As(err, &wrong) {
		t.Errorf("the reader got %d bytes of the tail of a wrong blob: %v", n, err)
	}
	if n, err := held.Read(make([]byte, 1)); n != 0 || !errors.As(err, &wrong) {
		t.Errorf("the holding reader got %d bytes: %v", n, err)
	}
	// A reader that comes now waits, and gets the right bytes in the end.
	late := b.NewReader(context.Background(), 0, int64(len(data)), false)
	defer late.Close()
	got := make(chan []byte, 1)
	go func() { p, _ := io.ReadAll(late); got <- p }()
	b.Discard()
	for i := range b.Geometry().NumPieces() {
		writePiece(t, b, data, i)
	}
	if err := b.VerifyWhole(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(<-got, data) {
		t.Error("the late reader got wrong bytes")
	}
	// The early one has wrong bytes already and must not go on.
	if _, err := early.Read(make([]byte, 1)); err == nil {
		t.Error("a reader of wrong bytes went on with right ones")
	}
}

func TestRejectedPieceIsHashedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		data, d := testBlob(3 * MinPieceLength)
		b := acquire(t, s, d, len(data))
		defer b.Release()
		verified := make(chan error, 1)
		bad := bytes.Clone(data)
		bad[0] ^= 1
		writePiece(t, b, bad, 0)
		go func() { verified <- b.VerifyWhole(context.Background()) }()
		synctest.Wait() // it has hashed piece 0 by now
		b.Reject(0)
		if b.Has(0) || b.Prefix() != 0 {
			t.Error("the rejected piece is still there")
		}
		for i := range 3 {
			writePiece(t, b, data, i)
		}
		if err := <-verified; err != nil {
			t.Error(err)
		}
	})
}

func TestReaderWaitsForTheTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		data, d := testBlob(2 * MinPieceLength)
		b := acquire(t, s, d, len(data))
		defer b.Release()
		writePiece(t, b, data, 0)
		writePiece(t, b, data, 1)
		r := b.NewReader(context.Background(), 100, int64(len(data)), false)
		defer r.Close()
		p := make([]byte, len(data)-TailLength-100)
		if _, err := io.ReadFull(r, p); err != nil || !bytes.Equal(p, data[100:len(data)-TailLength]) {
			t.Fatalf("what is verified: %v", err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		defer cancel()
		tail := b.NewReader(ctx, int64(len(data))-10, 10, false)
		defer tail.Close()
		if n, err := tail.Read(make([]byte, 10)); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %d bytes of the tail, %v", n, err)
		}
		if err := b.VerifyWhole(context.Background()); err != nil {
			t.Fatal(err)
		}
		if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, data[len(data)-TailLength:]) {
			t.Errorf("tail: %d bytes, %v", len(rest), err)
		}
	})
}

func TestFailReachesReadersAndIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t, t.TempDir())
		data, d := testBlob(2 * MinPieceLength)
		b := acquire(t, s, d, len(data))
		writePiece(t, b, data, 0)
		boom := errors.New("boom")
		r := b.NewReader(context.Background(), MinPieceLength, 10, false)
		time.AfterFunc(5*time.Millisecond, func() { b.Fail(boom) })
		if _, err := r.Read(make([]byte, 1)); !errors.Is(err, boom) {
			t.Errorf("reader got %v", err)
		}
		r.Close()
		b.Release()
		b = acquire(t, s, d, len(data))
		defer b.Release()
		if !b.Has(0) {
			t.Error("the piece that was there is lost")
		}
		writePiece(t, b, data, 1)
		if err := b.VerifyWhole(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	data, d := testBlob(4 * MinPieceLength)
	whole, wd := testBlob(MinPieceLength)
	rotten, rd := testBlob(MinPieceLength + 1)
	b := acquire(t, s, d, len(data))
	for i := range 3 {
		writePiece(t, b, data, i)
	}
	storeWhole(t, s, whole, wd)
	storeWhole(t, s, rotten, rd)
	// The process dies: nothing is released. Meanwhile the disk lost a write
	// and bits rotted.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flip := func(path string, off int64) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var p [1]byte
		_, _ = f.ReadAt(p[:], off)
		p[0] ^= 1
		if _, err := f.WriteAt(p[:], off); err != nil {
			t.Fatal(err)
		}
	}
	flip(filepath.Join(dir, "partial", d.Encoded()+".data"), MinPieceLength+5)
	flip(filepath.Join(dir, "partial", d.Encoded()+".sums"), sumOffset(2)+7)
	flip(filepath.Join(dir, "complete", rd.Encoded()), 0)
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, junk := range []string{"partial/x", "partial/" + digest.FromString("a").Encoded() + ".data", "complete/..x", "complete/short"} {
		if err := os.WriteFile(filepath.Join(dir, junk), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := digest.FromString("link").Encoded()
	for _, p := range []string{"complete/" + link, "partial/" + link + ".data", "partial/" + link + ".sums"} {
		if err := os.Symlink(outside, filepath.Join(dir, p)); err != nil {
			t.Fatal(err)
		}
	}

	s = openStore(t, dir)
	b = acquire(t, s, d, len(data))
	defer b.Release()
	for i, want := range []bool{true, false, false, false} {
		if b.Has(i) != want {
			t.Errorf("piece %d kept: %v, want %v", i, b.Has(i), want)
		}
	}
	if g, ok := s.Get(wd); !ok {
		t.Error("the whole blob is lost")
	} else {
		g.Release()
	}
	if g, ok := s.Get(rd); ok {
		g.Release()
		t.Error("a whole blob with a flipped bit is served")
	}
	for i := range 4 {
		writePiece(t, b, data, i)
	}
	if err := b.VerifyWhole(context.Background()); err != nil {
		t.Error(err)
	}
	if p, err := os.ReadFile(outside); err != nil || string(p) != "precious" {
		t.Errorf("a file outside of the store was touched: %q %v", p, err)
	}
	if junk, _ := filepath.Glob(filepath.Join(dir, "partial", "*")); len(junk) != 0 {
		t.Errorf("junk left: %v", junk)
	}
}

func TestOneProcessPerStore(t *testing.T) {
	dir := t.TempDir()
	openStore(t, dir)
	if s, err := Open(Options{Dir: dir}); err == nil {
		s.Close()
		t.Error("a second store was opened on the same directory")
	}
}

func TestCapacityEvictsTheLongestUnused(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.Capacity = 4 * MinPieceLength })
	var ds []digest.Digest
	for i := range 4 {
		data, d := testBlob(MinPieceLength - i)
		storeWhole(t, s, data, d)
		ds = append(ds, d)
	}
	pinned, ok := s.Get(ds[0])
	if !ok {
		t.Fatal("blob 0 is gone")
	}
	defer pinned.Release()
	data, d := testBlob(2 * MinPieceLength)
	storeWhole(t, s, data, d)
	for i, want := range []bool{true, false, false, true} {
		b, ok := s.Get(ds[i])
		if ok != want {
			t.Errorf("blob %d kept: %v, want %v", i, ok, want)
		}
		if ok {
			b.Release()
		}
	}
	var full *NoSpaceError
	if _, err := s.Acquire(digest.FromString("huge"), 4*MinPieceLength); !errors.As(err, &full) {
		t.Errorf("got %v, want a NoSpaceError: a pinned blob is in the way", err)
	}
	if u := s.Usage(); u > 4*MinPieceLength {
		t.Errorf("usage %d is over the cap", u)
	}
}

func TestReserveIsRespected(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.Reserve = 1 << 60 })
	var full *NoSpaceError
	if _, err := s.Acquire(digest.FromString("x"), MinPieceLength); !errors.As(err, &full) || full.Limit != "disk" {
		t.Errorf("got %v, want a NoSpaceError of the disk", err)
	}
	if err := s.PutBytes(digest.FromString("x"), []byte("x")); !errors.As(err, &full) {
		t.Errorf("PutBytes: %v, want a NoSpaceError", err)
	}
}

func TestPutBytes(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, p := range [][]byte{[]byte("manifest"), {}} {
		d := digest.FromBytes(p)
		if err := s.PutBytes(d, p); err != nil {
			t.Fatal(err)
		}
		b, ok := s.Get(d)
		if !ok {
			t.Fatal("not there")
		}
		got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Geometry().Size))
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("got %q %v", got, err)
		}
		b.Release()
	}
	var wrong *DigestError
	if err := s.PutBytes(digest.FromString("a"), []byte("b")); !errors.As(err, &wrong) {
		t.Errorf("wrong content: %v", err)
	}
}

func TestHostileDigests(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, d := range []digest.Digest{
		"", "sha256:", "sha256:../../../../etc/passwd", "sha256:" + digest.Digest(bytes.Repeat([]byte("A"), 64)),
		digest.SHA512.FromString("x"), "md5:abc",
	} {
		if _, err := s.Acquire(d, 10); err == nil {
			t.Errorf("Acquire(%q) succeeded", d)
		}
		if err := s.PutBytes(d, nil); err == nil {
			t.Errorf("PutBytes(%q) succeeded", d)
		}
		if _, ok := s.Get(d); ok {
			t.Errorf("Get(%q) found something", d)
		}
	}
}
