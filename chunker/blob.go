package chunker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// stripes is the number of locks that serialise the writes of a blob's pieces;
// more than any number of writers there is, fewer than pieces.
const stripes = 32

// Blob is one pinned blob of a Store. All methods are safe for concurrent use.
type Blob struct {
	s      *Store
	digest digest.Digest
	geo    Geometry

	// Guarded by Store.mu.
	pins    int
	used    uint64
	dropped bool

	// pieceMu[i%stripes] is held while piece i is written and declared
	// complete, and by whoever changes its record on disk; all of them are
	// held to discard the blob or to settle what it is. Taken before mu, and
	// mu is never held while the disk is busy.
	pieceMu [stripes]sync.Mutex
	// openMu serialises opening and closing of the files.
	openMu sync.Mutex

	mu      sync.Mutex
	file    *os.File // nil while nobody has pinned the blob
	sumsF   *os.File // nil when whole
	whole   bool
	checked bool // the bytes on disk were verified by this process
	have    Bitfield
	known   Bitfield // pieces with an expected sum
	sums    []Sum
	next    int // first piece that is not complete
	resets  int // counts Reject and Discard, for VerifyWhole
	err     error
	// Bytes that were readable can turn out wrong. Readers from before then
	// must not go on (age counts these moments, ageErr is why), and new ones
	// find nothing until Discard (wrong).
	age     int
	ageErr  error
	wrong   bool
	changed chan struct{}
}

func newBlob(s *Store, d digest.Digest, g Geometry) *Blob {
	return &Blob{s: s, digest: d, geo: g, changed: make(chan struct{})}
}

// open makes the files ready for use, once per time that the blob is pinned.
func (b *Blob) open() error {
	b.openMu.Lock()
	defer b.openMu.Unlock()
	b.mu.Lock()
	isOpen, whole, checked := b.file != nil, b.whole, b.checked
	b.mu.Unlock()
	switch {
	case isOpen:
		return nil
	case whole:
		return b.openWhole(checked)
	}
	return b.openPartial()
}

func (b *Blob) openWhole(checked bool) error {
	f, err := os.OpenFile(b.s.wholePath(b.digest), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open whole blob: %w", err)
	}
	if !checked {
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			f.Close()
			return fmt.Errorf("check whole blob: %w", err)
		}
		if got := digest.NewDigest(digest.SHA256, h); got != b.digest {
			f.Close()
			return &DigestError{Want: b.digest, Got: got}
		}
	}
	return b.install(f, nil, func() { b.checked = true })
}

func (b *Blob) openPartial() error {
	sums, err := os.OpenFile(b.s.sumsPath(b.digest), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open sums: %w", err)
	}
	f, err := os.OpenFile(b.s.dataPath(b.digest), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		sums.Close()
		return fmt.Errorf("open blob: %w", err)
	}
	have, known, pieceSums, err := b.load(f, sums)
	if err != nil {
		f.Close()
		sums.Close()
		return err
	}
	return b.install(f, sums, func() {
		b.have, b.known, b.sums = have, known, pieceSums
		b.err, b.wrong, b.next = nil, false, 0
		b.advance()
	})
}

// install gives the blob its open files, unless the store was closed
// meanwhile. set runs with b.mu held.
func (b *Blob) install(file, sums *os.File, set func()) error {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	if b.s.closed {
		file.Close()
		if sums != nil {
			sums.Close()
		}
		return errClosed
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.file, b.sumsF = file, sums
	set()
	return nil
}

// shut closes the files, read-only or recoverable by design.
func (b *Blob) shut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range []*os.File{b.file, b.sumsF} {
		if f != nil {
			f.Close()
		}
	}
	b.file, b.sumsF = nil, nil
}

// load allocates the files of a new blob, or checks those of an earlier run:
// a piece is kept if its bytes hash to its recorded sum.
func (b *Blob) load(f, sums *os.File) (have, known Bitfield, list []Sum, err error) {
	n := b.geo.NumPieces()
	have, known, list = NewBitfield(n), NewBitfield(n), make([]Sum, n)
	raw, err := io.ReadAll(io.LimitReader(sums, sumsFileSize(b.geo)+1))
	if err != nil {
		return have, known, list, fmt.Errorf("read sums: %w", err)
	}
	g, recorded, recSums, err := decodeSums(raw)
	if info, serr := f.Stat(); err != nil || g != b.geo || serr != nil || info.Size() != b.geo.Size {
		return have, known, list, b.allocate(f, sums)
	}
	buf := make([]byte, b.geo.PieceLength)
	for i := range recorded.All() {
		off, n := b.geo.Piece(i)
		if _, err := f.ReadAt(buf[:n], off); err != nil || SumOf(buf[:n]) != recSums[i] {
			b.s.opt.Log.Info().Str("digest", b.digest.String()).Int("piece", i).Msg("piece of an earlier run does not verify, fetching it again")
			if _, err := sums.WriteAt([]byte{0}, sumOffset(i)); err != nil {
				return have, known, list, fmt.Errorf("write sums: %w", err)
			}
			continue
		}
		have.Set(i)
		known.Set(i)
		list[i] = recSums[i]
	}
	return have, known, list, nil
}

// allocate reserves the blob's space on disk and writes an empty sums file.
func (b *Blob) allocate(f, sums *os.File) error {
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("allocate blob: %w", err)
	}
	err := fallocate(f, b.geo.Size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Not every file system can; the free space was checked.
		err = f.Truncate(b.geo.Size)
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		_, free, _ := b.s.room()
		return &NoSpaceError{Need: b.geo.Size, Free: min(free, b.geo.Size-1), Limit: "disk"}
	case err != nil:
		return fmt.Errorf("allocate blob: %w", err)
	}
	return clearSums(sums, b.geo)
}

// fallocate reserves the first size bytes of f. It goes in steps, since any
// signal interrupts a call, and tmpfs then undoes all of it.
func fallocate(f *os.File, size int64) error {
	const step = 64 << 20
	for off := int64(0); off < size; {
		n := min(step, size-off)
		switch err := unix.Fallocate(int(f.Fd()), 0, off, n); {
		case err == nil:
			off += n
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
	return nil
}

// Release gives one pin back. The last one closes the files; a failure is
// forgotten, and the next Acquire starts from the pieces at hand.
func (b *Blob) Release() {
	b.openMu.Lock()
	b.s.mu.Lock()
	b.pins--
	var gone []*Blob
	if b.pins == 0 {
		b.shut()
		b.mu.Lock()
		// The next one to open it loads them anew, if they are needed at all.
		b.have, b.known, b.sums, b.next = Bitfield{}, Bitfield{}, nil, 0
		b.mu.Unlock()
		gone = b.s.collect(b)
	}
	b.s.mu.Unlock()
	b.openMu.Unlock()
	b.s.removed(gone)
}

// Digest is the blob's name.
func (b *Blob) Digest() digest.Digest { return b.digest }

// Geometry is how it is cut.
func (b *Blob) Geometry() Geometry { return b.geo }

// Complete says that the blob is whole and verified.
func (b *Blob) Complete() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole
}

func (b *Blob) checkPiece(i int) error {
	if i < 0 || i >= b.geo.NumPieces() {
		return fmt.Errorf("piece %d: blob has %d", i, b.geo.NumPieces())
	}
	return nil
}

func (b *Blob) dataFile() (*os.File, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return nil, fmt.Errorf("blob %s: %w", b.digest, os.ErrClosed)
	}
	return b.file, nil
}

// ReadAt reads raw bytes, complete or not; see NewReader for verified ones.
func (b *Blob) ReadAt(p []byte, off int64) (int, error) {
	f, err := b.dataFile()
	if err != nil {
		return 0, err
	}
	return f.ReadAt(p, off)
}

// Has says that piece i is complete: its bytes match its sum.
func (b *Blob) Has(i int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.whole && i >= 0 && i < b.geo.NumPieces() || b.have.Has(i)
}

// Have returns a copy of the set of complete pieces.
func (b *Blob) Have() Bitfield {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole {
		f := NewBitfield(b.geo.NumPieces())
		for i := range f.Len() {
			f.Set(i)
		}
		return f
	}
	return b.have.Clone()
}

// Sum returns the expected sum of piece i, if known.
func (b *Blob) Sum(i int) (Sum, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.known.Has(i) {
		return Sum{}, false
	}
	return b.sums[i], true
}

// WritePiece stores the whole piece i from a source and returns its sum, which
// becomes the expected one. If another one is expected already, the piece is
// not stored and the error is a *ConflictError.
func (b *Blob) WritePiece(i int, p []byte) (Sum, error) {
	s := SumOf(p)
	if err := b.checkLength(i, p); err != nil {
		return s, err
	}
	m := &b.pieceMu[i%stripes]
	m.Lock()
	defer m.Unlock()
	if have, ok := b.Sum(i); ok && have != s {
		b.s.met.failed.Inc()
		return s, &ConflictError{Piece: i, Have: have, Got: s}
	}
	if b.Has(i) {
		return s, nil
	}
	return s, b.store(i, p, s)
}

// TakePiece stores the whole piece i from whoever it may be, if it matches its
// expected sum, and says whether it was missing. Otherwise the error is
// ErrWrongPiece, or ErrNoSum if nobody knows what the piece should be.
func (b *Blob) TakePiece(i int, p []byte) (fresh bool, err error) {
	if err := b.checkLength(i, p); err != nil {
		return false, err
	}
	if b.Has(i) {
		return false, nil
	}
	want, known := b.Sum(i)
	if !known {
		return false, ErrNoSum
	}
	if SumOf(p) != want {
		b.s.met.failed.Inc()
		return false, ErrWrongPiece
	}
	m := &b.pieceMu[i%stripes]
	m.Lock()
	defer m.Unlock()
	if b.Has(i) {
		return false, nil
	}
	if now, known := b.Sum(i); !known || now != want {
		return false, ErrNoSum // withdrawn meanwhile
	}
	return true, b.store(i, p, want)
}

func (b *Blob) checkLength(i int, p []byte) error {
	if err := b.checkPiece(i); err != nil {
		return err
	}
	if _, n := b.geo.Piece(i); int64(len(p)) != n {
		return fmt.Errorf("piece %d of %d bytes, want %d", i, len(p), n)
	}
	return nil
}

// store writes and records a verified piece. Its lock is held.
func (b *Blob) store(i int, p []byte, s Sum) error {
	f, err := b.dataFile()
	if err != nil {
		return err
	}
	off, _ := b.geo.Piece(i)
	if _, err := f.WriteAt(p, off); err != nil {
		return fmt.Errorf("write piece %d: %w", i, err)
	}
	return b.complete(i, s)
}

// Prefix is how many bytes from the beginning are complete.
func (b *Blob) Prefix() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.whole {
		return b.geo.Size
	}
	return b.prefix()
}

func (b *Blob) prefix() int64 { return min(int64(b.next)*b.geo.PieceLength, b.geo.Size) }

// Changed is closed at the next change: a piece completed or rejected, the
// blob whole, failed or discarded. Ask before looking at the state.
func (b *Blob) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}
