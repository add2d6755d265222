package chunker

import (
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// recover lists what an earlier process left and removes what is no part of a
// store. Bytes are checked when a blob is first used.
func (s *Store) recover() error {
	var found []leftover
	whole, err := os.ReadDir(s.path("complete"))
	if err != nil {
		return err
	}
	for _, e := range whole {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		info, err := e.Info()
		if err != nil || d.Validate() != nil || !info.Mode().IsRegular() || info.Size() > MaxBlobSize {
			s.junk(s.path("complete", e.Name()))
			continue
		}
		b := newBlob(s, d, Geometry{Size: info.Size(), PieceLength: MinPieceLength})
		if g, err := GeometryOf(info.Size()); err == nil {
			b.geo = g
		}
		b.whole = true
		s.insert(b)
		found = append(found, leftover{b, info.ModTime()})
	}
	partial, err := os.ReadDir(s.path("partial"))
	if err != nil {
		return err
	}
	for _, e := range partial {
		enc, isSums := strings.CutSuffix(e.Name(), ".sums")
		if data, ok := strings.CutSuffix(e.Name(), ".data"); ok {
			if _, err := os.Lstat(s.path("partial", data+".sums")); err == nil {
				continue // judged with its sums
			}
		}
		d := digest.NewDigestFromEncoded(digest.SHA256, enc)
		var b *Blob
		var used time.Time
		if isSums && d.Validate() == nil && s.blobs[d] == nil {
			b, used = s.adopt(d)
		}
		if b == nil {
			s.junk(s.path("partial", e.Name()))
			if isSums {
				s.junk(s.path("partial", enc+".data"))
			}
			continue
		}
		s.insert(b)
		found = append(found, leftover{b, used})
	}
	// When a blob was last read is not known any more; when it was last
	// written is the best guess at what to evict first.
	slices.SortFunc(found, func(a, b leftover) int { return a.written.Compare(b.written) })
	for _, l := range found {
		s.use(l.b)
	}
	s.gauges()
	return nil
}

// leftover is a blob of an earlier run.
type leftover struct {
	b       *Blob
	written time.Time
}

// adopt returns a partial blob if its files fit each other, else nil, and when
// it was written last.
func (s *Store) adopt(d digest.Digest) (b *Blob, written time.Time) {
	f, err := os.OpenFile(s.sumsPath(d), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, written
	}
	defer f.Close()
	head := make([]byte, sumsHeader)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, written
	}
	g, err := decodeSumsHeader(head)
	if err != nil {
		return nil, written
	}
	if sums, err := f.Stat(); err != nil || !sums.Mode().IsRegular() || sums.Size() != sumsFileSize(g) {
		return nil, written
	}
	data, err := os.Lstat(s.dataPath(d))
	if err != nil || !data.Mode().IsRegular() || data.Size() != g.Size {
		return nil, written
	}
	return newBlob(s, d, g), data.ModTime()
}

// junk removes what is not ours. A directory with something in it stays: the
// store makes none, so somebody's files are in it.
func (s *Store) junk(path string) {
	s.opt.Log.Info().Str("path", path).Msg("removing what does not belong into the piece store")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.opt.Log.Warn().Err(err).Msg("cannot remove it")
	}
}
