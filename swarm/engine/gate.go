package engine

import (
	"fmt"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// maxHandshake is how long an extended handshake may be, in bytes; ours has
// less than 200.
const maxHandshake = 4 << 10

// gate lets only those messages of one peer through that a node of ours sends,
// in the order in which it sends them. The library trusts its peers where it
// should not: a chunk that reaches over the end of its piece, pieces claimed
// first all and then one by one, a hash or metadata message that names what is
// not there, all end in a panic, or in accounts that panic later.
type gate struct {
	geo      chunker.Geometry
	pieces   int
	chunk    int64
	declared bool // the peer has said which pieces it has
	greeted  bool // the peer has sent its extended handshake
}

func newGate(g chunker.Geometry, chunk int) gate {
	return gate{geo: g, pieces: g.NumPieces(), chunk: int64(chunk)}
}

// admit says what is wrong with a message.
func (g *gate) admit(m *pp.Message) error {
	if m.Keepalive {
		return nil
	}
	switch m.Type {
	case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested:
		return nil
	case pp.Bitfield:
		if want := (g.pieces + 7) / 8 * 8; len(m.Bitfield) != want {
			return fmt.Errorf("bitfield of %d bits for %d pieces", len(m.Bitfield), g.pieces)
		}
		for i, set := range m.Bitfield[g.pieces:] {
			if set {
				return fmt.Errorf("bitfield with piece %d of %d", g.pieces+i, g.pieces)
			}
		}
		return g.declare(m.Type)
	case pp.HaveAll, pp.HaveNone:
		return g.declare(m.Type)
	case pp.Have:
		if !g.declared {
			// Ours always begins with one of the above.
			return fmt.Errorf("%v before any bitfield", m.Type)
		}
		return g.inside(m.Index)
	case pp.Request, pp.Cancel, pp.Reject:
		return g.whole(m.Type, m.Index, m.Begin, int64(m.Length))
	case pp.Piece:
		return g.whole(m.Type, m.Index, m.Begin, int64(len(m.Piece)))
	case pp.Extended:
		if m.ExtendedID == nudgeID && len(m.ExtendedPayload) == 0 {
			return nil
		}
		switch {
		case m.ExtendedID != pp.HandshakeExtendedID:
			return fmt.Errorf("message of an extension %d that was not offered", m.ExtendedID)
		case len(m.ExtendedPayload) > maxHandshake:
			return fmt.Errorf("extended handshake of %d bytes", len(m.ExtendedPayload))
		case g.greeted:
			return fmt.Errorf("second extended handshake")
		}
		g.greeted = true
		return nil
	}
	return fmt.Errorf("unexpected %v", m.Type)
}

func (g *gate) declare(t pp.MessageType) error {
	if g.declared {
		return fmt.Errorf("%v after the beginning", t)
	}
	g.declared = true
	return nil
}

func (g *gate) inside(i pp.Integer) error {
	if int64(i) >= int64(g.pieces) {
		return fmt.Errorf("piece %d of %d", i, g.pieces)
	}
	return nil
}

// whole says that something is not exactly one chunk.
func (g *gate) whole(t pp.MessageType, i, begin pp.Integer, length int64) error {
	if err := g.inside(i); err != nil {
		return fmt.Errorf("%v: %w", t, err)
	}
	_, n := g.geo.Piece(int(i))
	at := int64(begin)
	if at%g.chunk != 0 || at >= n || length != min(g.chunk, n-at) {
		return fmt.Errorf("%v of %d bytes at %d of a piece of %d", t, length, at, n)
	}
	return nil
}
