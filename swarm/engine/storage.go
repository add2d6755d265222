package engine

import (
	"context"

	"github.com/anacrolix/torrent/metainfo"
	"github.com/anacrolix/torrent/storage"
)

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

// piece is one piece of a blob as the library sees it.
type piece struct {
	t   *Torrent
	i   int
	off int64
}

func (p piece) ReadAt(b []byte, off int64) (int, error)  { return p.t.blob.ReadAt(b, p.off+off) }
func (p piece) WriteAt(b []byte, off int64) (int, error) { return p.t.blob.WriteAt(b, p.off+off) }

// Completion answers from memory.
func (p piece) Completion() storage.Completion {
	return storage.Completion{Ok: true, Complete: p.t.blob.Has(p.i)}
}

// MarkComplete has nothing to do: verification did it.
func (p piece) MarkComplete() error { return nil }

// MarkNotComplete has nothing to do: only a verified piece is complete.
func (p piece) MarkNotComplete() error { return nil }

// SelfHash verifies the piece against its published sum and, if it matches,
// answers with the hash that the info dictionary promises. It blocks one of
// the process's few hashing goroutines, so it only reads and hashes.
func (p piece) SelfHash() (metainfo.Hash, error) {
	had := p.t.blob.Has(p.i)
	ok, err := p.t.blob.Verify(p.i)
	if err != nil {
		return metainfo.Hash{}, err
	}
	peers, bad := p.t.judged(p.i, ok)
	switch {
	case ok && !had && p.t.ev.PieceDone != nil:
		p.t.ev.PieceDone(p.i)
	case bad:
		// A new goroutine, since the library may hold its lock by the time
		// that the priority can be set.
		go func() {
			p.t.Unwant(p.i)
			if p.t.ev.PieceBad != nil {
				p.t.ev.PieceBad(p.i, peers)
			}
		}()
	}
	if !ok {
		return metainfo.Hash{}, nil // anything but the placeholder
	}
	return p.t.id.Placeholder(p.i), nil
}
