package engine

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// The wire is BitTorrent's (BEP 3) with the fast extension (BEP 6), so that a
// request is always answered, by its chunk or by a rejection.

const (
	handshakeLength = len(pp.Protocol) + 8 + 20 + 20
	// lengthSize and typeSize begin each message, pieceHeader each chunk.
	lengthSize  = 4
	typeSize    = 1
	pieceHeader = lengthSize + typeSize + 8
)

// infoHash names a blob, peerID a node.
type (
	infoHash [20]byte
	peerID   [20]byte
)

// handshake is what both sides say first.
type handshake struct {
	hash infoHash
	id   peerID
}

func (h handshake) bytes() []byte {
	b := make([]byte, 0, handshakeLength)
	b = append(b, pp.Protocol...)
	bits := pp.NewPeerExtensionBytes(pp.ExtensionBitFast)
	b = append(b, bits[:]...)
	b = append(b, h.hash[:]...)
	return append(b, h.id[:]...)
}

func readHandshake(r io.Reader) (h handshake, err error) {
	var b [handshakeLength]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, fmt.Errorf("read handshake: %w", err)
	}
	rest := b[len(pp.Protocol):]
	if string(b[:len(pp.Protocol)]) != pp.Protocol {
		return h, errors.New("read handshake: not BitTorrent")
	}
	copy(h.hash[:], rest[8:])
	copy(h.id[:], rest[28:])
	return h, nil
}

// message is anything a peer says after its handshake. The payload of a chunk
// is not part of it: it follows, of the length that is given.
type message struct {
	keepalive bool
	kind      pp.MessageType
	// index, begin and length are those of a Request, Piece, Cancel or Reject;
	// of a Have only the index.
	index, begin, length uint32
	// bits are the pieces of a Bitfield.
	bits []byte
}

// chunk is a part of a piece, as it is requested.
type chunk struct {
	piece int
	begin int64 // within the piece
	n     int64
}

func (m message) chunk() chunk { return chunk{int(m.index), int64(m.begin), int64(m.length)} }

// readMessage reads one message of a peer. What is longer than any message of
// a blob of that many pieces may be is an error, before anything is allocated
// for it.
func readMessage(r *bufio.Reader, pieces int) (m message, err error) {
	n, err := readUint32(r)
	if err != nil {
		return m, err
	}
	if n == 0 {
		m.keepalive = true
		return m, nil
	}
	t, err := r.ReadByte()
	if err != nil {
		return m, err
	}
	m.kind = pp.MessageType(t)
	n -= typeSize
	fields := func(fs ...*uint32) error {
		if int(n) != 4*len(fs) {
			return fmt.Errorf("%v of %d bytes", m.kind, n)
		}
		for _, f := range fs {
			if *f, err = readUint32(r); err != nil {
				return err
			}
		}
		return nil
	}
	switch m.kind {
	case pp.Choke, pp.Unchoke, pp.Interested, pp.NotInterested, pp.HaveAll, pp.HaveNone:
		return m, fields()
	case pp.Have:
		return m, fields(&m.index)
	case pp.Request, pp.Cancel, pp.Reject:
		return m, fields(&m.index, &m.begin, &m.length)
	case pp.Bitfield:
		if int(n) != (pieces+7)/8 {
			return m, fmt.Errorf("%v of %d bytes for %d pieces", m.kind, n, pieces)
		}
		m.bits = make([]byte, n)
		_, err = io.ReadFull(r, m.bits)
		return m, err
	case pp.Piece:
		if n < 8 || n-8 > chunker.ChunkLength {
			return m, fmt.Errorf("%v of %d bytes", m.kind, n)
		}
		m.length = n - 8
		n = 8
		return m, fields(&m.index, &m.begin)
	}
	return m, fmt.Errorf("unexpected %v", m.kind)
}

func readUint32(r *bufio.Reader) (uint32, error) {
	b, err := r.Peek(4)
	if err != nil {
		return 0, err
	}
	v := binary.BigEndian.Uint32(b)
	_, err = r.Discard(4)
	return v, err
}

// appendMessage appends a message with numbers in it.
func appendMessage(b []byte, kind pp.MessageType, fields ...uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(typeSize+4*len(fields)))
	b = append(b, byte(kind))
	for _, f := range fields {
		b = binary.BigEndian.AppendUint32(b, f)
	}
	return b
}

// appendRequest appends a Request, Cancel or Reject.
func appendRequest(b []byte, kind pp.MessageType, c chunk) []byte {
	return appendMessage(b, kind, uint32(c.piece), uint32(c.begin), uint32(c.n))
}

// appendHave appends which pieces this node has, as the first message.
func appendHave(b []byte, have chunker.Bitfield) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(typeSize+len(have.Bytes())))
	b = append(b, byte(pp.Bitfield))
	return append(b, have.Bytes()...)
}

// appendPiece appends the beginning of a chunk; its bytes follow.
func appendPiece(b []byte, c chunk) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(typeSize+8+c.n))
	b = append(b, byte(pp.Piece))
	b = binary.BigEndian.AppendUint32(b, uint32(c.piece))
	return binary.BigEndian.AppendUint32(b, uint32(c.begin))
}
