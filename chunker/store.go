package chunker

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Options of a Store.
type Options struct {
	// Dir is the store's own directory, made if missing.
	Dir string
	// Capacity in bytes; 0 means no cap. What is pinned may exceed it only if
	// it did so when the cap was changed.
	Capacity int64
	// Reserve is how many bytes stay free on the file system.
	Reserve int64
	// OnChange, if set, hears of whole blobs appearing and vanishing. It is
	// called without locks held, one call at a time is not promised.
	OnChange func(d digest.Digest, size int64, present bool)

	Log        zerolog.Logger
	Registerer prometheus.Registerer
}

// Entry is one whole blob in the store.
type Entry struct {
	Digest digest.Digest
	Size   int64
}

// Store is a piece store. All methods are safe for concurrent use.
type Store struct {
	opt  Options
	met  *metrics
	lock *os.File

	mu     sync.Mutex
	closed bool
	blobs  map[digest.Digest]*Blob
	used   int64
	clock  uint64 // counts uses, for LRU
}

// Open opens or makes a store. Only one process can have it open.
func Open(o Options) (*Store, error) {
	s := &Store{opt: o, met: newMetrics(), blobs: map[digest.Digest]*Blob{}}
	s.met.limit.Set(float64(o.Capacity))
	for _, dir := range []string{o.Dir, s.path("partial"), s.path("complete")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open piece store: %w", err)
		}
	}
	lock, err := lockStore("open", o.Dir, os.O_CREATE)
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := errors.Join(s.recover(), s.met.register(o.Registerer)); err != nil {
		lock.Close()
		return nil, fmt.Errorf("open piece store: %w", err)
	}
	return s, nil
}

// lockStore takes the store of a directory for this process, in order to do
// something with it. The kernel lets it go with the file.
func lockStore(do, dir string, flag int) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), flag|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s piece store: %w", do, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s piece store %s: another process uses it: %w", do, dir, err)
	}
	return f, nil
}

// Close gives the store to the next process. Blobs still pinned fail their
// further reads and writes with os.ErrClosed, and nothing is removed any more.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, b := range s.blobs {
		b.shut()
	}
	return s.lock.Close()
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.opt.Dir}, parts...)...)
}

func (s *Store) dataPath(d digest.Digest) string { return s.path("partial", d.Encoded()+".data") }
func (s *Store) sumsPath(d digest.Digest) string { return s.path("partial", d.Encoded()+".sums") }
func (s *Store) wholePath(d digest.Digest) string {
	return s.path("complete", d.Encoded())
}

func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("digest %.80q: %w", d, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %.80q: only sha256 is supported", d)
	}
	return nil
}

func (s *Store) insert(b *Blob) {
	s.blobs[b.digest] = b
	s.used += b.geo.Size
}

func (s *Store) gauges() {
	s.met.bytes.Set(float64(s.used))
	s.met.blobs.Set(float64(len(s.blobs)))
}

// Acquire pins a blob, making it if it is not there: preallocated, so that a
// lack of space is a *NoSpaceError here and now. A partial blob of an earlier
// run keeps the pieces that still verify; what cannot be used at all is made
// anew. The caller owes a Release.
func (s *Store) Acquire(d digest.Digest, size int64) (*Blob, error) {
	if err := checkDigest(d); err != nil {
		return nil, err
	}
	g, err := GeometryOf(size)
	if err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		b, fresh, err := s.take(d, g)
		if err != nil {
			return nil, err
		}
		if err = b.open(); err == nil {
			return b, nil
		}
		useless := unusable(err)
		if fresh || useless {
			s.Drop(d)
		}
		b.Release()
		if fresh || !useless || !first {
			return nil, err
		}
		s.opt.Log.Warn().Str("digest", d.String()).Err(err).Msg("blob of an earlier run is not usable, starting it anew")
	}
}

// unusable says that err is about the blob's files themselves. Anything else,
// such as too many open files, passes, and is no reason to lose a blob.
func unusable(err error) bool {
	var wrong *DigestError
	var full *NoSpaceError
	return errors.As(err, &wrong) || errors.As(err, &full) ||
		errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP)
}

// take pins the blob in the store, or a fresh one for which it makes room.
func (s *Store) take(d digest.Digest, g Geometry) (b *Blob, fresh bool, err error) {
	s.mu.Lock()
	var gone []*Blob
	defer func() {
		s.gauges()
		s.mu.Unlock()
		s.removed(gone)
	}()
	if s.closed {
		return nil, false, errClosed
	}
	b = s.blobs[d]
	if b != nil && b.geo != g {
		if b.pins > 0 || b.Complete() {
			return nil, false, fmt.Errorf("blob %s has %d bytes here, asked for with %d", d, b.geo.Size, g.Size)
		}
		// Nobody knows yet which size is true, and nobody holds on to the
		// other one: a manifest that lies must not bar the blob for good.
		b.dropped = true
		s.collect(b)
		b = nil
	}
	if b == nil {
		if gone, err = s.makeRoom(g.Size); err != nil {
			return nil, false, err
		}
		b, fresh = newBlob(s, d, g), true
		s.insert(b)
	}
	b.dropped = false // it is wanted again
	s.pin(b)
	return b, fresh, nil
}

// Get pins a whole blob. The caller owes a Release if ok.
func (s *Store) Get(d digest.Digest) (b *Blob, ok bool) {
	s.mu.Lock()
	b = s.blobs[d]
	if b == nil || s.closed || !b.Complete() {
		s.mu.Unlock()
		return nil, false
	}
	s.pin(b)
	s.mu.Unlock()
	if err := b.open(); err != nil {
		s.opt.Log.Warn().Str("digest", d.String()).Err(err).Msg("whole blob of an earlier run is not usable")
		if unusable(err) {
			s.Drop(d)
		}
		b.Release()
		return nil, false
	}
	return b, true
}

func (s *Store) pin(b *Blob) {
	b.pins++
	s.use(b)
}

// use makes b the last one to be evicted. s.mu is held.
func (s *Store) use(b *Blob) {
	s.clock++
	b.used = s.clock
}

// Drop forgets a blob, whole or partial. Its file goes when the last pin does.
func (s *Store) Drop(d digest.Digest) {
	s.mu.Lock()
	b := s.blobs[d]
	var gone []*Blob
	if b != nil {
		b.dropped = true
		gone = s.collect(b)
	}
	s.mu.Unlock()
	s.removed(gone)
}

// collect removes b from the store if it is dropped and unpinned. s.mu is
// held.
func (s *Store) collect(b *Blob) []*Blob {
	if !b.dropped || b.pins > 0 || s.closed || s.blobs[b.digest] != b {
		return nil
	}
	delete(s.blobs, b.digest)
	s.used -= b.geo.Size
	s.gauges()
	for _, p := range []string{s.wholePath(b.digest), s.sumsPath(b.digest), s.dataPath(b.digest)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.opt.Log.Warn().Err(err).Msg("cannot remove a dropped blob's file")
		}
	}
	return []*Blob{b}
}

// removed tells about whole blobs that are gone.
func (s *Store) removed(gone []*Blob) {
	for _, b := range gone {
		if b.Complete() {
			s.changed(b.digest, b.geo.Size, false)
		}
	}
}

func (s *Store) changed(d digest.Digest, size int64, present bool) {
	if s.opt.OnChange != nil {
		s.opt.OnChange(d, size, present)
	}
}

// Complete lists the whole blobs, in no order.
func (s *Store) Complete() []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var es []Entry
	for d, b := range s.blobs {
		if b.Complete() {
			es = append(es, Entry{d, b.geo.Size})
		}
	}
	return es
}

// Usage is how many bytes the store occupies.
func (s *Store) Usage() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// makeRoom evicts until size more bytes fit; nothing, if they never will. s.mu
// is held.
func (s *Store) makeRoom(size int64) (gone []*Blob, err error) {
	limit, free, err := s.room()
	if err != nil {
		return nil, err
	}
	for _, b := range s.blobs {
		if b.pins == 0 {
			free += b.geo.Size
		}
	}
	if free < size {
		return nil, &NoSpaceError{Need: size, Free: free, Limit: limit}
	}
	for {
		limit, free, err := s.room()
		if err != nil {
			return gone, err
		}
		if free >= size {
			ok, err := s.inodes()
			if err != nil || ok {
				return gone, err
			}
			limit, free = "inodes", 0
		}
		b := s.victim()
		if b == nil {
			return gone, &NoSpaceError{Need: size, Free: free, Limit: limit}
		}
		s.opt.Log.Debug().Str("digest", b.digest.String()).Int64("bytes", b.geo.Size).Msg("evicting the longest unused blob")
		s.met.evictions.Inc()
		b.dropped = true
		gone = append(gone, s.collect(b)...)
	}
}

// room is how many bytes may be added, and which limit says so.
func (s *Store) room() (limit string, free int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.opt.Dir, &fs); err != nil {
		return "", 0, fmt.Errorf("free space of %s: %w", s.opt.Dir, err)
	}
	limit, free = "disk", int64(fs.Bavail)*fs.Bsize-s.opt.Reserve
	if s.opt.Capacity > 0 && s.opt.Capacity-s.used < free {
		limit, free = "cache size", s.opt.Capacity-s.used
	}
	return limit, free, nil
}

// filesPerBlob is how many files a blob takes while it comes: data and sums.
const filesPerBlob = 2

// inodes tells whether the file system has some left for a blob. Those that make
// them as needed say that there are none at all.
func (s *Store) inodes() (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.opt.Dir, &fs); err != nil {
		return false, fmt.Errorf("free inodes of %s: %w", s.opt.Dir, err)
	}
	return fs.Files == 0 || fs.Ffree >= filesPerBlob, nil
}

// victim is the longest unused blob that nobody has pinned.
func (s *Store) victim() *Blob {
	var all []*Blob
	for _, b := range s.blobs {
		if b.pins == 0 {
			all = append(all, b)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return slices.MinFunc(all, func(a, b *Blob) int { return cmp.Compare(a.used, b.used) })
}

// PutBytes stores small whole content, verifying its digest. Storing what is
// already whole here, or being fetched by somebody, does nothing.
func (s *Store) PutBytes(d digest.Digest, p []byte) error {
	if err := checkDigest(d); err != nil {
		return err
	}
	if got := digest.FromBytes(p); got != d {
		return &DigestError{Want: d, Got: got}
	}
	g := Geometry{Size: int64(len(p)), PieceLength: MinPieceLength}
	if len(p) > 0 {
		var err error
		if g, err = GeometryOf(g.Size); err != nil {
			return err
		}
	}
	s.mu.Lock()
	stored, gone, err := s.put(d, g, p)
	s.gauges()
	s.mu.Unlock()
	s.removed(gone)
	if stored {
		s.changed(d, g.Size, true)
	}
	return err
}

// put stores verified content unless it is there, or being fetched. s.mu is
// held.
func (s *Store) put(d digest.Digest, g Geometry, p []byte) (stored bool, gone []*Blob, err error) {
	if s.closed {
		return false, nil, errClosed
	}
	if b := s.blobs[d]; b != nil {
		if b.Complete() || b.pins > 0 {
			return false, nil, nil
		}
		b.dropped = true
		s.collect(b)
	}
	if gone, err = s.makeRoom(g.Size); err != nil {
		return false, gone, err
	}
	if err := s.keep(d, p); err != nil {
		return false, gone, fmt.Errorf("store content: %w", err)
	}
	b := newBlob(s, d, g)
	b.whole, b.checked = true, true
	s.use(b)
	s.insert(b)
	return true, gone, nil
}

// keep writes whole content to where it belongs, all of it or nothing.
func (s *Store) keep(d digest.Digest, p []byte) error {
	tmp := s.dataPath(d)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, s.wholePath(d))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
