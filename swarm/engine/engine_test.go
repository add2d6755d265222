package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/chunker"
)

// node is an engine with a store of its own on loopback.
type node struct {
	*Engine
	id, addr string
	store    *chunker.Store
}

func newNode(t testing.TB, id string) *node {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := chunker.Open(chunker.Options{Dir: t.TempDir(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(Config{NodeID: id, Listener: l, Log: zerolog.Nop().Level(zerolog.InfoLevel), Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Engine: e, id: id, addr: l.Addr().String(), store: s}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		_ = s.Close()
	})
	return n
}

// blob is content with its identity.
type blob struct {
	data []byte
	id   chunker.Identity
}

func newBlob(t testing.TB, n int) blob {
	t.Helper()
	p := make([]byte, n)
	if _, err := rand.Read(p); err != nil {
		t.Fatal(err)
	}
	g, err := chunker.GeometryOf(int64(n))
	if err != nil {
		t.Fatal(err)
	}
	return blob{p, chunker.Identity{Cluster: "test", Digest: digest.FromBytes(p), Geometry: g}}
}

func (b blob) piece(i int) []byte {
	off, n := b.id.Geometry.Piece(i)
	return b.data[off : off+n]
}

// join puts a node into the blob's swarm.
func (n *node) join(t testing.TB, b blob, ev Events) (*Torrent, *chunker.Blob) {
	t.Helper()
	cb, err := n.store.Acquire(b.id.Digest, b.id.Geometry.Size)
	if err != nil {
		t.Fatal(err)
	}
	tor, err := n.Add(b.id, cb, ev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tor.Drop(); cb.Release() })
	return tor, cb
}

func waitFull(t testing.TB, b *chunker.Blob) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		c := b.Changed()
		have := b.Have()
		if have.Full() {
			return
		}
		select {
		case <-c:
		case <-deadline:
			t.Fatalf("%d of %d pieces came", have.Count(), have.Len())
		}
	}
}

// TestPiecesAreTradedAsTheyCome lets every node bring in different pieces.
func TestPiecesAreTradedAsTheyCome(t *testing.T) {
	b := newBlob(t, 12<<20+5)
	const n = 4
	var nodes []*node
	var tors []*Torrent
	var blobs []*chunker.Blob
	var done sync.Map
	for i := range n {
		x := newNode(t, fmt.Sprint("n", i))
		tor, cb := x.join(t, b, Events{PieceDone: func(p int) {
			if _, twice := done.LoadOrStore([2]int{i, p}, true); twice {
				t.Errorf("node %d: PieceDone(%d) twice", i, p)
			}
		}})
		for _, y := range nodes {
			tor.AddPeers([]Peer{{y.id, y.addr}})
			tor.AddPeers([]Peer{{y.id, y.addr}})
		}
		nodes, tors, blobs = append(nodes, x), append(tors, tor), append(blobs, cb)
	}
	for p := range b.id.Geometry.NumPieces() {
		owner := p % n
		sum, err := blobs[owner].WritePiece(p, b.piece(p))
		if err != nil {
			t.Fatal(err)
		}
		tors[owner].Have(p)
		for i := range n {
			if i != owner {
				if err := blobs[i].Expect(p, sum); err != nil {
					t.Fatal(err)
				}
				tors[i].Want(p)
			}
		}
	}
	for i, cb := range blobs {
		waitFull(t, cb)
		got := make([]byte, len(b.data))
		if _, err := cb.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, b.data) {
			t.Errorf("node %d has wrong bytes: %v", i, err)
		}
		s := tors[i].Stats()
		t.Logf("node %d: %+v", i, s)
		if s.BytesFromPeers == 0 || s.BytesToPeers == 0 {
			t.Errorf("node %d did not trade both ways: %+v", i, s)
		}
	}
}

// TestNothingIsWantedWithoutSum: a piece whose sum is unknown is not
// downloaded, however available.
func TestNothingIsWantedWithoutSum(t *testing.T) {
	b := newBlob(t, 1<<20)
	seed, leech := newNode(t, "seed"), newNode(t, "leech")
	st, sb := seed.join(t, b, Events{})
	lt, lb := leech.join(t, b, Events{})
	lt.AddPeers([]Peer{{seed.id, seed.addr}})
	for p := range b.id.Geometry.NumPieces() {
		if _, err := sb.WritePiece(p, b.piece(p)); err != nil {
			t.Fatal(err)
		}
		st.Have(p)
	}
	if err := lb.Expect(2, chunker.SumOf(b.piece(2))); err != nil {
		t.Fatal(err)
	}
	lt.Want(2)
	for c := lb.Changed(); !lb.Has(2); c = lb.Changed() {
		select {
		case <-c:
		case <-time.After(10 * time.Second):
			t.Fatal("the wanted piece did not come")
		}
	}
	if got := lt.Stats().BytesFromPeers; got > chunker.MinPieceLength {
		t.Errorf("%d bytes came, one piece was wanted", got)
	}
}

// TestBadPieceIsReported has a peer whose bytes contradict the published sum:
// it is named, given up on, and the piece comes from an honest peer after all;
// nobody is banned.
func TestBadPieceIsReported(t *testing.T) {
	b := newBlob(t, 2*chunker.MinPieceLength)
	liar, honest, leech := newNode(t, "liar"), newNode(t, "honest"), newNode(t, "leech")
	lit, lib := liar.join(t, b, Events{})
	if _, err := lib.WritePiece(0, make([]byte, chunker.MinPieceLength)); err != nil {
		t.Fatal(err)
	}
	lit.Have(0)
	bad := make(chan []string, 10)
	lt, lb := leech.join(t, b, Events{PieceBad: func(_ int, peers []string) { bad <- peers }})
	lt.AddPeers([]Peer{{liar.id, liar.addr}})
	if err := lb.Expect(0, chunker.SumOf(b.piece(0))); err != nil {
		t.Fatal(err)
	}
	lt.Want(0)
	select {
	case peers := <-bad:
		if len(peers) != 1 || peers[0] != "liar" {
			t.Errorf("blamed %v, want the liar", peers)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the bad piece was not reported")
	}
	if lb.Has(0) {
		t.Fatal("a wrong piece was accepted")
	}
	ht, hb := honest.join(t, b, Events{})
	if _, err := hb.WritePiece(0, b.piece(0)); err != nil {
		t.Fatal(err)
	}
	ht.Have(0)
	lit.Drop()
	lt.AddPeers([]Peer{{honest.id, honest.addr}})
	lt.Want(0)
	for c := lb.Changed(); !lb.Has(0); c = lb.Changed() {
		select {
		case <-c:
		case <-time.After(20 * time.Second):
			t.Fatal("the piece did not come from the honest peer: is its address banned?")
		}
	}
}

func TestGarbageOnTheWirePort(t *testing.T) {
	b := newBlob(t, 1<<20)
	n := newNode(t, "n")
	n.join(t, b, Events{})
	for _, junk := range [][]byte{
		nil, []byte("GET / HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte{0xff}, 4096),
		append([]byte("\x13BitTorrent protocol\x00\x00\x00\x00\x00\x10\x00\x00"), bytes.Repeat([]byte{0}, 40)...),
	} {
		c, err := net.Dial("tcp", n.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(junk)
		_ = c.Close()
	}
	// It still works.
	m := newNode(t, "m")
	mt, mb := m.join(t, b, Events{})
	if _, err := mb.WritePiece(0, b.piece(0)); err != nil {
		t.Fatal(err)
	}
	mt.Have(0)
	mt.AddPeers([]Peer{{n.id, n.addr}})
	for deadline := time.Now().Add(10 * time.Second); mt.Stats().Peers == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no peer can connect after garbage")
		}
	}
}

func TestTorrentComesAndGoes(t *testing.T) {
	b := newBlob(t, 1<<20)
	n := newNode(t, "n")
	for range 3 {
		tor, _ := n.join(t, b, Events{})
		if _, err := n.Add(b.id, tor.blob, Events{}); err == nil {
			t.Error("the same blob was added twice")
		}
		tor.Drop()
		tor.Drop()
	}
}
