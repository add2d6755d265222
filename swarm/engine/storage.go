package engine

import (
	"context"
	"errors"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
)

var (
	errDropped  = errors.New("torrent dropped")
	errMismatch = errors.New("piece does not match its published sum")
	errNoSum    = errors.New("sum of the piece is not known")
)

// noStorage refuses torrents that bring no storage of their own; there are
// none.
type noStorage struct{}

func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("torrent without storage")
}

// blobStorage lets the library read and write a chunker.Blob.
type blobStorage struct{ t *Torrent }

func (s blobStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{
		Piece: func(p metainfo.Piece) storage.PieceImpl {
			off, _ := s.t.id.Geometry.Piece(p.Index())
			return piece{t: s.t, i: p.Index(), off: off}
		},
		Close: func() error { return nil }, // the blob is the caller's
	}, nil
}

// piece is one piece of a blob as the library sees it. Its data is not touched
// any more once the torrent is dropped, though the library may still try.
type piece struct {
	t   *Torrent
	i   int
	off int64
}

// ReadAt reads for a peer. Once the torrent is dropped it reads nothing and
// succeeds: nobody gets these bytes, since the connections are closed, but at
// an error servePeerRequest of v1.61.0 forgets to forget the request of a
// closed torrent, and then panics about that.
func (p piece) ReadAt(b []byte, off int64) (int, error) {
	if !p.t.enter() {
		return len(b), nil
	}
	defer p.t.leave()
	return p.t.blob.ReadAt(b, p.off+off)
}

func (p piece) WriteAt(b []byte, off int64) (int, error) {
	if !p.t.enter() {
		return 0, errDropped
	}
	defer p.t.leave()
	return p.t.blob.WriteAt(b, p.off+off)
}

// Completion answers from memory: the library asks with its lock held.
func (p piece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.t.blob.Has(p.i)}
}

// MarkComplete has nothing to do: verification did it.
func (p piece) MarkComplete() error { return nil }

// MarkNotComplete has nothing to do: only a verified piece is complete.
func (p piece) MarkNotComplete() error { return nil }

// SelfHash verifies the piece against its published sum and, if it matches,
// answers with the hash that the info dictionary promises.
//
// It blocks one of the few hashing goroutines that all torrents share, and
// holds the torrent's storage lock, for which another may be waiting with the
// client lock held: so it reads and hashes, and leaves the rest to the
// torrent's own goroutine. A mismatch is an error and not another hash, since
// for that the library would ban the sender's IP address, and panic if there
// is none.
func (p piece) SelfHash() (metainfo.Hash, error) {
	if !p.t.enter() {
		return metainfo.Hash{}, errDropped
	}
	defer p.t.leave()
	had := p.t.blob.Has(p.i)
	ok, err := p.t.blob.Verify(p.i)
	switch _, known := p.t.blob.Sum(p.i); {
	case err != nil:
		p.t.judge(p.i, broken)
	case ok:
		if !had {
			p.t.judge(p.i, good)
		}
		return p.t.id.Placeholder(p.i), nil
	case !known:
		// The piece was withdrawn while it was under way.
		p.t.judge(p.i, moot)
		err = errNoSum
	default:
		p.t.judge(p.i, wrong)
		err = errMismatch
	}
	return metainfo.Hash{}, err
}
