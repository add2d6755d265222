package chunker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestRecoverPartial damages what a dead process left of a blob with pieces 0
// to 2 of 4.
func TestRecoverPartial(t *testing.T) {
	data, d := testBlob(4 * MinPieceLength)
	write := func(t *testing.T, path string, off int64, p []byte) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	truncate := func(t *testing.T, path string, n int64) {
		if err := os.Truncate(path, n); err != nil {
			t.Fatal(err)
		}
	}
	remove := func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	type damage func(t *testing.T, dataPath, sumsPath string)
	tests := map[string]struct {
		do   damage
		want string // pieces that are kept
	}{
		"none": {func(*testing.T, string, string) {}, "0 1 2 "},
		"lost data behind a record": {func(t *testing.T, dp, _ string) {
			write(t, dp, MinPieceLength, make([]byte, MinPieceLength))
		}, "0 2 "},
		"lost record behind data": {func(t *testing.T, _, sp string) {
			write(t, sp, sumOffset(2), make([]byte, sumsRecord))
		}, "0 1 "},
		"half a record": {func(t *testing.T, _, sp string) {
			write(t, sp, sumOffset(0)+10, make([]byte, sumsRecord-10))
		}, "1 2 "},
		"record of a piece that never was": {func(t *testing.T, _, sp string) {
			write(t, sp, sumOffset(3), encodeSum(SumOf([]byte("x"))))
		}, "0 1 2 "},
		"unknown flag":       {func(t *testing.T, _, sp string) { write(t, sp, sumOffset(1), []byte{7}) }, "0 2 "},
		"data cut":           {func(t *testing.T, dp, _ string) { truncate(t, dp, MinPieceLength+1) }, ""},
		"data empty":         {func(t *testing.T, dp, _ string) { truncate(t, dp, 0) }, ""},
		"data too long":      {func(t *testing.T, dp, _ string) { truncate(t, dp, 4*MinPieceLength+1) }, ""},
		"data gone":          {func(t *testing.T, dp, _ string) { remove(t, dp) }, ""},
		"sums cut":           {func(t *testing.T, _, sp string) { truncate(t, sp, sumOffset(2)) }, ""},
		"sums cut in header": {func(t *testing.T, _, sp string) { truncate(t, sp, 9) }, ""},
		"sums empty":         {func(t *testing.T, _, sp string) { truncate(t, sp, 0) }, ""},
		"sums gone":          {func(t *testing.T, _, sp string) { remove(t, sp) }, ""},
		"sums of a later version": {func(t *testing.T, _, sp string) {
			write(t, sp, int64(len(sumsMagic)-1), []byte{2})
		}, ""},
		"sums of a huge blob": {func(t *testing.T, _, sp string) {
			write(t, sp, 0, encodeSumsHeader(-1))
		}, ""},
		"both swapped": {func(t *testing.T, dp, sp string) {
			for _, mv := range [][2]string{{dp, dp + "x"}, {sp, dp}, {dp + "x", sp}} {
				if err := os.Rename(mv[0], mv[1]); err != nil {
					t.Fatal(err)
				}
			}
		}, ""},
		"data is a pipe": {func(t *testing.T, dp, _ string) {
			remove(t, dp)
			if err := unix.Mkfifo(dp, 0o600); err != nil {
				t.Fatal(err)
			}
		}, ""},
		"sums are a pipe": {func(t *testing.T, _, sp string) {
			remove(t, sp)
			if err := unix.Mkfifo(sp, 0o600); err != nil {
				t.Fatal(err)
			}
		}, ""},
		"data is a directory": {func(t *testing.T, dp, _ string) {
			remove(t, dp)
			if err := os.Mkdir(dp, 0o700); err != nil {
				t.Fatal(err)
			}
		}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := openStore(t, dir)
			b := acquire(t, s, d, len(data))
			for i := range 3 {
				writePiece(t, b, data, i)
			}
			s.Close() // nothing is released
			tt.do(t, s.dataPath(d), s.sumsPath(d))

			s = openStore(t, dir)
			b = acquire(t, s, d, len(data))
			defer b.Release()
			got := ""
			for i := range b.Have().All() {
				got += strconv.Itoa(i) + " "
				off, n := b.Geometry().Piece(i)
				p := make([]byte, n)
				if _, err := b.ReadAt(p, off); err != nil || !bytes.Equal(p, data[off:off+n]) {
					t.Errorf("piece %d is kept and wrong: %v", i, err)
				}
			}
			if got != tt.want {
				t.Errorf("kept %q, want %q", got, tt.want)
			}
			for i := range 4 {
				writePiece(t, b, data, i)
			}
			if err := b.VerifyWhole(context.Background()); err != nil {
				t.Error(err)
			}
			if s.Usage() != int64(len(data)) {
				t.Errorf("usage %d", s.Usage())
			}
		})
	}
}

// TestRecoverWhole: a whole blob whose file is bad is made anew, at once.
func TestRecoverWhole(t *testing.T) {
	data, d := testBlob(MinPieceLength + 9)
	for name, do := range map[string]func(path string) error{
		"rotten": func(p string) error { return os.WriteFile(p, make([]byte, len(data)), 0o600) },
		"gone":   os.Remove,
		"a link": func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			vanished := 0
			s := openStore(t, dir)
			storeWhole(t, s, data, d)
			s.Close()
			s = openStore(t, dir, func(o *Options) {
				o.OnChange = func(_ digest.Digest, _ int64, present bool) {
					if !present {
						vanished++
					}
				}
			})
			if err := do(s.wholePath(d)); err != nil { // after it was listed
				t.Fatal(err)
			}
			b := acquire(t, s, d, len(data))
			if b.Complete() || b.Have().Count() != 0 {
				t.Error("it still counts as here")
			}
			b.Release()
			if vanished != 1 {
				t.Errorf("OnChange heard %d times that it vanished, want once", vanished)
			}
			storeWhole(t, s, data, d)
		})
	}
}

// TestWrongBlobIsNotBelievedLater: the process dies, or the owner gives up,
// after the whole turned out wrong and before anybody discarded it.
func TestWrongBlobIsNotBelievedLater(t *testing.T) {
	data, d := testBlob(2*MinPieceLength + TailLength)
	bad := bytes.Clone(data)
	bad[5] ^= 1
	for _, crash := range []bool{false, true} {
		dir := t.TempDir()
		s := openStore(t, dir)
		b := acquire(t, s, d, len(data))
		for i := range b.Geometry().NumPieces() {
			writePiece(t, b, bad, i)
		}
		var wrong *DigestError
		if err := b.VerifyWhole(context.Background()); !errors.As(err, &wrong) || wrong.Got != digest.FromBytes(bad) {
			t.Fatal(err)
		}
		if sum, ok := b.Sum(0); !ok || sum != SumOf(bad[:MinPieceLength]) {
			t.Error("the sums are gone before the owner could ask who vouched for them")
		}
		if crash {
			s.Close()
			s = openStore(t, dir)
		} else {
			b.Release()
		}
		b = acquire(t, s, d, len(data))
		if n := b.Have().Count(); n != 0 || b.Prefix() != 0 {
			t.Errorf("crash %v: %d pieces of a wrong blob are kept", crash, n)
		}
		r := b.NewReader(context.Background(), 0, int64(len(data)), false)
		for i := range b.Geometry().NumPieces() {
			writePiece(t, b, data, i)
		}
		// What is verified is readable again before the whole is.
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		early := b.NewReader(ctx, 0, 1, false)
		if _, err := early.Read(make([]byte, 1)); err != nil {
			t.Errorf("crash %v: the blob's failure was not forgotten: %v", crash, err)
		}
		early.Close()
		cancel()
		if err := b.VerifyWhole(context.Background()); err != nil {
			t.Error(err)
		}
		if p, err := io.ReadAll(r); err != nil || !bytes.Equal(p, data) {
			t.Errorf("crash %v: reader got %d bytes, %v", crash, len(p), err)
		}
		r.Close()
		b.Release()
	}
}

// TestRejectAndDiscardOutliveACrash: what was thrown away does not come back.
func TestRejectAndDiscardOutliveACrash(t *testing.T) {
	data, d := testBlob(4 * MinPieceLength)
	for name, tt := range map[string]struct {
		do   func(b *Blob)
		want int
	}{
		"reject":  {func(b *Blob) { b.Reject(1) }, 3},
		"discard": {func(b *Blob) { b.Discard() }, 0},
		"discard, then a piece": {func(b *Blob) {
			b.Discard()
			writePiece(t, b, data, 2)
		}, 1},
	} {
		dir := t.TempDir()
		s := openStore(t, dir)
		b := acquire(t, s, d, len(data))
		for i := range 4 {
			writePiece(t, b, data, i)
		}
		tt.do(b)
		s.Close()
		s = openStore(t, dir)
		b = acquire(t, s, d, len(data))
		if n := b.Have().Count(); n != tt.want {
			t.Errorf("%s: %d pieces are back, want %d", name, n, tt.want)
		}
		b.Release()
	}
}

// TestForeignFilesStay: a directory that the store did not make may be
// somebody's.
func TestForeignFilesStay(t *testing.T) {
	dir := t.TempDir()
	photo := filepath.Join(dir, "complete", "holiday", "photo")
	if err := os.MkdirAll(filepath.Dir(photo), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(photo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openStore(t, dir)
	if _, err := os.Stat(photo); err != nil {
		t.Errorf("a tree that is not the store's was removed: %v", err)
	}
}

// TestEvictionOrderOutlivesARestart: the longest unwritten goes first.
func TestEvictionOrderOutlivesARestart(t *testing.T) {
	dir := t.TempDir()
	capped := func(o *Options) { o.Capacity = 8 * MinPieceLength }
	s := openStore(t, dir, capped)
	var ds []digest.Digest
	for i := range 8 {
		data, d := testBlob(MinPieceLength - i)
		storeWhole(t, s, data, d)
		ds = append(ds, d)
		// Not in the order of their names or sizes.
		age := unix.NsecToTimespec(int64(1e9) * int64(1000+(i*5)%8))
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, s.wholePath(d), []unix.Timespec{age, age}, 0); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	s = openStore(t, dir, capped)
	for k := range 7 {
		data, d := testBlob(MinPieceLength/2 + (k+1)*MinPieceLength)
		storeWhole(t, s, data, d)
		evicted, kept := -1, 8
		for i := range ds {
			s.mu.Lock()
			_, here := s.blobs[ds[i]]
			s.mu.Unlock()
			if age := (i * 5) % 8; here {
				kept = min(kept, age)
			} else {
				evicted = max(evicted, age)
			}
		}
		if evicted > kept || evicted < k {
			t.Fatalf("round %d: the youngest evicted has rank %d, the oldest kept %d", k, evicted, kept)
		}
	}
}

const (
	killedDir   = "SHOAL_TEST_KILLED_DIR"
	killedChurn = "SHOAL_TEST_KILLED_CHURN"
)

// TestKilledChild is the process that TestKilled kills: it writes the pieces
// and says so, one by one; to churn is to throw away and write again, for ever.
func TestKilledChild(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		return // nothing to test: it is TestKilled's other half
	}
	s := openStore(t, dir)
	data, d := testBlob(24*MinPieceLength + 1)
	b := acquire(t, s, d, len(data))
	for {
		for i := range b.Geometry().NumPieces() {
			writePiece(t, b, data, i)
			_, _ = os.Stdout.WriteString(strconv.Itoa(i) + "\n")
		}
		if os.Getenv(killedChurn) == "" {
			_, _ = io.Copy(io.Discard, os.Stdin) // until TestKilled kills us, or is gone
			return
		}
		for i := range b.Geometry().NumPieces() {
			b.Reject(i)
			writePiece(t, b, data, i)
		}
		b.Discard()
	}
}

// TestKilled kills a process in the midst of its writes. Whatever is left, the
// next one opens it and keeps right pieces only: all that were reported, when
// none was thrown away.
func TestKilled(t *testing.T) {
	data, d := testBlob(24*MinPieceLength + 1)
	for _, tt := range []struct {
		lines int
		churn string
	}{{1, ""}, {7, ""}, {20, ""}, {30, "yes"}, {60, "yes"}, {81, "yes"}} {
		dir, lines := t.TempDir(), tt.lines
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), killedDir+"="+dir, killedChurn+"="+tt.churn)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewScanner(out)
		for range lines {
			if !r.Scan() {
				t.Errorf("the child stopped: %v", r.Err())
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()

		s := openStore(t, dir)
		b := acquire(t, s, d, len(data))
		if n := b.Have().Count(); tt.churn == "" && n < lines {
			t.Errorf("killed after %d pieces: only %d are kept", lines, n)
		}
		for i := range b.Have().All() {
			off, n := b.Geometry().Piece(i)
			p := make([]byte, n)
			if _, err := b.ReadAt(p, off); err != nil || !bytes.Equal(p, data[off:off+n]) {
				t.Errorf("killed after %d: piece %d is kept and wrong: %v", lines, i, err)
			}
		}
		for i := range b.Have().Missing() {
			writePiece(t, b, data, i)
		}
		if err := b.VerifyWhole(context.Background()); err != nil {
			t.Error(err)
		}
		b.Release()
	}
}
