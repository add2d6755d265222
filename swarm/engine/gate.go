package engine

import (
	"errors"
	"fmt"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// gate lets only those messages of one peer through that make sense for the
// blob, in an order in which a peer may send them.
type gate struct {
	geo      chunker.Geometry
	declared bool // the peer has said which pieces it has
}

// admit says what is wrong with a message.
func (g *gate) admit(m message) error {
	if m.keepalive {
		return nil
	}
	switch m.kind {
	case pp.Bitfield:
		if _, err := chunker.BitfieldFromBytes(g.geo.NumPieces(), m.bits); err != nil {
			return err
		}
		return g.declare(m.kind)
	case pp.HaveAll, pp.HaveNone:
		return g.declare(m.kind)
	case pp.Have:
		if !g.declared {
			return errors.New("Have before any bitfield")
		}
		return g.inside(m.index)
	case pp.Request, pp.Cancel, pp.Reject, pp.Piece:
		return g.whole(m)
	}
	return nil
}

func (g *gate) declare(t pp.MessageType) error {
	if g.declared {
		return fmt.Errorf("%v after the beginning", t)
	}
	g.declared = true
	return nil
}

func (g *gate) inside(i uint32) error {
	if int64(i) >= int64(g.geo.NumPieces()) {
		return fmt.Errorf("piece %d of %d", i, g.geo.NumPieces())
	}
	return nil
}

// whole says that something is not exactly one chunk.
func (g *gate) whole(m message) error {
	if err := g.inside(m.index); err != nil {
		return fmt.Errorf("%v: %w", m.kind, err)
	}
	_, n := g.geo.Piece(int(m.index))
	at, length := int64(m.begin), int64(m.length)
	if at%chunker.ChunkLength != 0 || at >= n || length != min(chunker.ChunkLength, n-at) {
		return fmt.Errorf("%v of %d bytes at %d of a piece of %d", m.kind, length, at, n)
	}
	return nil
}
