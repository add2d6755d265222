package chunker

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// Identity names a blob's swarm. Every node computes the same torrent from it
// alone, so a blob can be swarmed while its first byte is still arriving.
type Identity struct {
	// Cluster salts the torrent: clusters that share a network do not meet.
	Cluster string
	// Digest of the whole blob, sha256.
	Digest   digest.Digest
	Geometry Geometry
}

// InfoHash is the torrent's name: the sha1 of InfoBytes, as BEP 3 has it.
func (id Identity) InfoHash() [20]byte { return sha1.Sum(id.InfoBytes()) }

// InfoBytes is the torrent's info dictionary, bencoded with its keys in order.
// The piece hashes in it are placeholders; what a piece must really hash to is
// told by the swarm's tracker.
func (id Identity) InfoBytes() []byte {
	n := id.Geometry.NumPieces()
	b := make([]byte, 0, 20*n+256)
	str := func(s string) {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
	}
	num := func(i int64) {
		b = append(b, 'i')
		b = strconv.AppendInt(b, i, 10)
		b = append(b, 'e')
	}
	b = append(b, 'd')
	str("length")
	num(id.Geometry.Size)
	str("name")
	str(id.Digest.Encoded())
	str("piece length")
	num(id.Geometry.PieceLength)
	str("pieces")
	b = strconv.AppendInt(b, int64(20*n), 10)
	b = append(b, ':')
	for i := range n {
		h := id.Placeholder(i)
		b = append(b, h[:]...)
	}
	str("private")
	num(1)
	return append(b, 'e')
}

// Placeholder stands for piece i's hash in the info dictionary: it differs by
// cluster, blob and index, and is reported as the piece's hash once the piece
// is verified.
func (id Identity) Placeholder(i int) [20]byte {
	h := sha256.New()
	h.Write([]byte("shoal piece\x00" + id.Cluster + "\x00" + id.Digest.String() + "\x00"))
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(i))
	h.Write(n[:])
	return [20]byte(h.Sum(nil)[:20])
}
