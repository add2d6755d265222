package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/chunker"
)

// logged is a log to look into.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// junk is a wrong piece.
func (c content) junk(i int) []byte {
	p := bytes.Clone(c.piece(i))
	p[0] ^= 0xff
	return p
}

// TestLiarAmongHonest: all pieces arrive although one of the peers sends wrong
// bytes only; it is named and left out, and nobody else, though all have the
// same IP address.
func TestLiarAmongHonest(t *testing.T) {
	c := newContent(t, 8<<20)
	var log logged
	p := plain()
	p.log = zerolog.New(&log).Level(zerolog.WarnLevel)
	liar := newNode(t, "liar", plain()).join(t, c, Events{})
	honest := []*member{newNode(t, "honest1", plain()).join(t, c, Events{}), newNode(t, "honest2", plain()).join(t, c, Events{})}
	leech := newNode(t, "leech", p).join(t, c, Events{PieceBad: func(i int, peers []string) {
		t.Errorf("piece %d given up, blaming %v", i, peers)
	}})
	for i := range c.pieces() {
		liar.bring(t, i, c.junk(i))
		for _, h := range honest {
			h.bring(t, i, c.piece(i))
		}
	}
	leech.meet(append(honest, liar)...)
	leech.meet(liar)
	leech.bring(t, 0, c.piece(0)) // so that it connects before it asks
	leech.await(t, "mesh", func() bool { return leech.Stats().Peers == 3 })
	for i := range c.pieces() {
		leech.want(t, i, chunker.SumOf(c.piece(i)))
	}
	leech.awaitAll(t)
	leech.await(t, "the liar's leave", func() bool { return strings.Contains(log.String(), `"peer":"liar","reason":"lied"`) })
	if !strings.Contains(log.String(), "contradicts its published digest") {
		t.Errorf("bad pieces were not logged: %s", log.String())
	}
	leech.mu.Lock()
	defer leech.mu.Unlock()
	if now := time.Now(); !leech.roster.peers[nodeID("liar")].until.After(now) {
		t.Error("the liar is not left out")
	}
}

// TestLiarAlone: a piece that only a liar has is given up and reported with
// the liar's name; the piece comes from an honest peer once there is one.
func TestLiarAlone(t *testing.T) {
	for _, incoming := range []bool{false, true} {
		t.Run(fmt.Sprintf("incoming=%v", incoming), func(t *testing.T) {
			c := newContent(t, 2*chunker.MinPieceLength)
			liar := newNode(t, "liar", plain()).join(t, c, Events{})
			liar.bring(t, 0, c.junk(0))
			type report struct {
				Piece int
				Peers []string
			}
			bad := make(chan report, 10)
			leech := newNode(t, "leech", plain()).join(t, c, Events{PieceBad: func(i int, peers []string) { bad <- report{i, peers} }})
			leech.want(t, 0, chunker.SumOf(c.piece(0)))
			// A liar is left out after each lie, so it takes more of them,
			// or its return, to use up the tries.
			for range maxFailures {
				if incoming {
					liar.meet(leech)
				} else {
					leech.meet(liar)
				}
				leech.await(t, "a lie", func() bool {
					leech.mu.Lock()
					defer leech.mu.Unlock()
					a := leech.roster.peers[nodeID("liar")]
					return a != nil && a.cuts > 0 && a.conns == 0
				})
				forgive(leech, "liar")
				forgive(liar, "leech")
			}
			select {
			case got := <-bad:
				if diff := cmp.Diff(report{0, []string{"liar"}}, got); diff != "" {
					t.Error(diff)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the bad piece was not reported")
			}
			if leech.blob.Has(0) {
				t.Fatal("a wrong piece was accepted")
			}
			liar.Drop()
			honest := newNode(t, "honest", plain()).join(t, c, Events{})
			honest.bring(t, 0, c.piece(0))
			leech.meet(honest)
			leech.Want(0)
			leech.awaitPiece(t, 0)
		})
	}
}

// forgive lets a member talk to a peer again.
func forgive(m *member, peer string) {
	m.mu.Lock()
	if a := m.roster.peers[nodeID(peer)]; a != nil {
		a.cuts, a.until, a.next = 0, time.Time{}, time.Time{}
	}
	m.mu.Unlock()
}

// TestWrongSum: a piece whose published sum is wrong fails with every honest
// peer, is given up after maxFailures, and costs nothing more.
func TestWrongSum(t *testing.T) {
	c := newContent(t, 1<<20)
	var log logged
	p := plain()
	p.log = zerolog.New(&log)
	bad := make(chan []string, 10)
	leech := newNode(t, "leech", p).join(t, c, Events{PieceBad: func(_ int, peers []string) { bad <- peers }})
	for i := range maxFailures + 1 {
		h := newNode(t, fmt.Sprint("honest", i), plain()).join(t, c, Events{})
		h.bring(t, 0, c.piece(0))
		leech.meet(h)
	}
	leech.want(t, 0, chunker.SumOf(c.junk(0)))
	select {
	case peers := <-bad:
		if len(peers) == 0 || len(peers) > maxFailures+1 {
			t.Errorf("blamed %v", peers)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the bad piece was not reported")
	}
	select {
	case <-bad:
		t.Error("the bad piece was reported twice")
	default:
	}
	if n := strings.Count(log.String(), "contradicts its published digest"); n < maxFailures {
		t.Errorf("%d failures were logged", n)
	}
}

// rawPeer speaks the protocol by hand.
type rawPeer struct {
	net.Conn
	t testing.TB
}

// dialRaw connects to a member as a peer that has all pieces.
func dialRaw(t testing.TB, addr string, c content) *rawPeer {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	hash := metainfo.Hash(c.id.InfoHash())
	bits := pp.NewPeerExtensionBytes(pp.ExtensionBitFast)
	if _, err := pp.Handshake(context.Background(), conn, &hash, nodeID("raw"), bits); err != nil {
		t.Fatal(err)
	}
	return &rawPeer{conn, t}
}

func (r *rawPeer) send(ms ...pp.Message) {
	for _, m := range ms {
		if _, err := r.Write(m.MustMarshalBinary()); err != nil {
			return // the other side may be quicker to close
		}
	}
}

// closed waits for the other side to hang up.
func (r *rawPeer) closed() bool {
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := io.Copy(io.Discard, r)
	var timeout net.Error
	return err == nil || !asTimeout(err, &timeout)
}

func asTimeout(err error, as *net.Error) bool {
	ne, ok := err.(net.Error)
	*as = ne
	return ok && ne.Timeout()
}

// TestSilentPeer: a peer that takes requests and does not answer is left out,
// and another one answers instead.
func TestSilentPeer(t *testing.T) {
	c := newContent(t, 1<<20)
	reg := prometheus.NewRegistry()
	p := plain()
	p.reg, p.tune.answer = reg, 100*time.Millisecond
	leech := newNode(t, "leech", p).join(t, c, Events{})
	raw := dialRaw(t, leech.node.addr, c)
	raw.send(pp.Message{Type: pp.HaveAll}, pp.Message{Type: pp.Unchoke})
	for i := range c.pieces() {
		leech.want(t, i, chunker.SumOf(c.piece(i)))
	}
	if !raw.closed() {
		t.Fatal("the silent peer is still connected")
	}
	leech.await(t, "the count", func() bool { return gather(t, reg)["shoal_wire_cut_peers_total"] == 1 })
	again := dialRaw(t, leech.node.addr, c)
	again.send(pp.Message{Type: pp.HaveAll})
	if !again.closed() {
		t.Error("the silent peer was let in again at once")
	}
	seed := newNode(t, "seed", plain()).join(t, c, Events{})
	for i := range c.pieces() {
		seed.bring(t, i, c.piece(i))
	}
	leech.meet(seed)
	leech.awaitAll(t)
}

// TestKilledPeer: a peer whose connections are cut in the middle is replaced
// by others, and what it owed is asked of them.
func TestKilledPeer(t *testing.T) {
	c := newContent(t, 16<<20)
	slow := plain()
	slow.upload = 4 << 20
	doomed := newNode(t, "doomed", slow)
	first, second := doomed.join(t, c, Events{}), newNode(t, "second", plain()).join(t, c, Events{})
	leech := newNode(t, "leech", plain()).join(t, c, Events{})
	leech.meet(first)
	for i := range c.pieces() {
		leech.want(t, i, first.bring(t, i, c.piece(i)))
		second.bring(t, i, c.piece(i))
	}
	leech.await(t, "some pieces", func() bool { have := leech.blob.Have(); return have.Count() > 0 })
	if err := doomed.Close(); err != nil {
		t.Error(err)
	}
	leech.meet(second)
	leech.awaitAll(t)
}

// hostile messages: what no node of ours sends.
func hostile() map[string][]pp.Message {
	bits := func(n int, set ...int) []bool {
		b := make([]bool, n)
		for _, i := range set {
			b[i] = true
		}
		return b
	}
	metadata := func(piece int) pp.Message {
		return pp.Message{Type: pp.Extended, ExtendedID: 1, ExtendedPayload: fmt.Appendf(nil, "d8:msg_typei0e5:piecei%dee", piece)}
	}
	return map[string][]pp.Message{
		"hashes of nothing":        {{Type: pp.Hashes, Hashes: make([][32]byte, 1)}},
		"hashes with proof":        {{Type: pp.Hashes, ProofLayers: 1}},
		"hash request":             {{Type: pp.HashRequest, Length: 512}},
		"metadata before the file": {metadata(-1)},
		"metadata":                 {metadata(0)},
		"hole punching":            {{Type: pp.Extended, ExtendedID: 2, ExtendedPayload: []byte{0}}},
		"all, then none":           {{Type: pp.HaveAll}, {Type: pp.HaveNone}, {Type: pp.Have, Index: 1}},
		"none, then all":           {{Type: pp.HaveNone}, {Type: pp.Have, Index: 1}, {Type: pp.HaveAll}, {Type: pp.HaveNone}},
		"bitfield twice":           {{Type: pp.Bitfield, Bitfield: bits(8, 0)}, {Type: pp.Bitfield, Bitfield: bits(8)}},
		"long bitfield":            {{Type: pp.Bitfield, Bitfield: bits(1 << 20)}},
		"short bitfield":           {{Type: pp.Bitfield, Bitfield: bits(0)}},
		"spare bits":               {{Type: pp.Bitfield, Bitfield: bits(8, 5)}},
		"have at once":             {{Type: pp.Have, Index: 0}},
		"have out of range":        {{Type: pp.HaveNone}, {Type: pp.Have, Index: 4}},
		"have far out of range":    {{Type: pp.HaveNone}, {Type: pp.Have, Index: 1<<32 - 1}},
		"chunk nobody asked for":   {{Type: pp.HaveAll}, {Type: pp.Piece, Index: 1, Piece: make([]byte, chunker.ChunkLength)}},
		"chunk over the end":       {{Type: pp.HaveAll}, {Type: pp.Piece, Begin: chunker.MinPieceLength - 1, Piece: make([]byte, chunker.ChunkLength)}},
		"crooked chunk":            {{Type: pp.HaveAll}, {Type: pp.Piece, Begin: 1, Piece: make([]byte, chunker.ChunkLength)}},
		"empty chunk":              {{Type: pp.HaveAll}, {Type: pp.Piece}},
		"endless request":          {{Type: pp.Request, Length: 1<<32 - 1}},
		"request over the end":     {{Type: pp.Request, Begin: 1<<32 - chunker.ChunkLength, Length: chunker.ChunkLength}},
		"request out of range":     {{Type: pp.Request, Index: 1<<32 - 1, Length: chunker.ChunkLength}},
		"request of nothing":       {{Type: pp.Request}},
		"request of a missing one": {{Type: pp.Request, Index: 1, Length: chunker.ChunkLength}, {Type: pp.Port}},
		"same request twice":       {{Type: pp.Request, Length: chunker.ChunkLength}, {Type: pp.Request, Length: chunker.ChunkLength}, {Type: pp.Request, Length: chunker.ChunkLength}, {Type: pp.Port}},
		"reject of nothing asked":  {{Type: pp.Reject, Index: 3, Length: chunker.ChunkLength}},
		"reject out of range":      {{Type: pp.Reject, Index: 1<<32 - 1}},
		"port":                     {{Type: pp.Port, Port: 1}},
		"allowed fast":             {{Type: pp.AllowedFast, Index: 1 << 30}},
		"suggest":                  {{Type: pp.Suggest, Index: 1 << 30}},
	}
}

func TestHostilePeer(t *testing.T) {
	c := newContent(t, 4*chunker.MinPieceLength)
	m := newNode(t, "n", plain()).join(t, c, Events{})
	m.bring(t, 0, c.piece(0))
	m.want(t, 1, chunker.SumOf(c.piece(1)))
	for name, ms := range hostile() {
		t.Run(name, func(t *testing.T) {
			raw := dialRaw(t, m.node.addr, c)
			raw.send(ms...)
			if !raw.closed() {
				t.Error("the connection was not closed")
			}
		})
	}
	worksStill(t, m, c)
}

// TestGarbageOnTheWirePort: whatever arrives, the next peer is served.
func TestGarbageOnTheWirePort(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			c := newContent(t, 1<<20)
			p := plain()
			p.tls = secure
			m := newNode(t, "n", p).join(t, c, Events{})
			m.bring(t, 0, c.piece(0))
			hash := c.id.InfoHash()
			greeting := append([]byte("\x13BitTorrent protocol\x00\x00\x00\x00\x00\x10\x00\x04"), hash[:]...)
			greeting = append(greeting, bytes.Repeat([]byte{7}, 20)...)
			for _, junk := range [][]byte{
				nil,
				[]byte("GET / HTTP/1.1\r\n\r\n"),
				bytes.Repeat([]byte{0xff}, 4096),
				greeting[:40],
				append([]byte("\x13BitTorrent protocol"), make([]byte, 48)...),
				append(bytes.Clone(greeting), 0xff, 0xff, 0xff, 0xff, 7),
				append(bytes.Clone(greeting), 0, 0, 0, 1, 0xee),
				binary.BigEndian.AppendUint32(bytes.Clone(greeting), 3),
			} {
				raw, err := net.Dial("tcp", m.node.addr)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = raw.Write(junk)
				_ = raw.Close()
			}
			o := newNode(t, "o", p).join(t, c, Events{})
			o.meet(m)
			o.want(t, 0, chunker.SumOf(c.piece(0)))
			o.awaitPiece(t, 0)
		})
	}
}

// TestMutePeer: a connection that never says a word ends with the handshake's
// time limit.
func TestMutePeer(t *testing.T) {
	p := plain()
	p.tune.dialTimeout = 50 * time.Millisecond
	n := newNode(t, "n", p)
	raw, err := net.Dial("tcp", n.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if r := (&rawPeer{raw, t}); !r.closed() {
		t.Error("still open")
	}
}

func worksStill(t testing.TB, m *member, c content) {
	t.Helper()
	o := newNode(t, "other", plain()).join(t, c, Events{})
	o.meet(m)
	o.want(t, 0, chunker.SumOf(c.piece(0)))
	o.awaitPiece(t, 0)
	o.Drop()
}

// FuzzWire sends arbitrary bytes after the handshake to an engine that is in
// the middle of a download. It fails by panicking, or by not serving the next
// peer.
func FuzzWire(f *testing.F) {
	for _, ms := range hostile() {
		var b []byte
		for _, m := range ms {
			b = append(b, m.MustMarshalBinary()...)
		}
		f.Add(b)
	}
	c := newContent(f, 4*chunker.MinPieceLength)
	m := newNode(f, "n", plain()).join(f, c, Events{})
	m.bring(f, 0, c.piece(0))
	m.want(f, 1, chunker.SumOf(c.piece(1)))
	f.Fuzz(func(t *testing.T, wire []byte) {
		raw := dialRaw(t, m.node.addr, c)
		if _, err := raw.Write(wire); err == nil {
			_ = raw.Conn.(*net.TCPConn).CloseWrite()
		}
		if !raw.closed() {
			t.Error("the connection was not closed")
		}
		if len(wire) > 0 && wire[0] == 0xaa { // now and then
			worksStill(t, m, c)
		}
	})
}

// TestStuckPeer: a peer that holds still is not asked for one piece after
// another, each of which would have to wait until somebody else is found late:
// it is left out in the end, and everything comes from the other one.
func TestStuckPeer(t *testing.T) {
	c := newContent(t, 40*chunker.MinPieceLength)
	p := plain()
	p.tune.answer = 3 * time.Second
	leech := newNode(t, "leech", p).join(t, c, Events{})
	raw := dialRaw(t, leech.node.addr, c)
	raw.send(pp.Message{Type: pp.HaveAll}, pp.Message{Type: pp.Unchoke})
	slow := plain()
	slow.upload = 2 << 20
	seed := newNode(t, "seed", slow).join(t, c, Events{})
	for i := range c.pieces() {
		seed.bring(t, i, c.piece(i))
	}
	leech.await(t, "the stuck one", func() bool { return leech.Stats().Peers == 1 })
	for i := range c.pieces() {
		leech.want(t, i, chunker.SumOf(c.piece(i)))
	}
	leech.meet(seed)
	leech.awaitAll(t)
	if !raw.closed() {
		t.Error("the stuck peer is still connected")
	}
	if got := leech.Stats().WastedBytes; got != 0 {
		t.Errorf("%d bytes wasted", got)
	}
}

// TestRequestsWithoutEnd: a peer that asks for what is not there, and does not
// listen to the answers, takes no memory.
func TestRequestsWithoutEnd(t *testing.T) {
	c := newContent(t, 4*chunker.MinPieceLength)
	m := newNode(t, "n", plain()).join(t, c, Events{})
	m.bring(t, 0, c.piece(0))
	raw := dialRaw(t, m.node.addr, c)
	raw.send(pp.Message{Type: pp.HaveNone})
	one := pp.Message{Type: pp.Request, Index: 1, Length: chunker.ChunkLength}
	many := bytes.Repeat(one.MustMarshalBinary(), 1<<16)
	_ = raw.SetWriteDeadline(time.Now().Add(10 * time.Second))
	for range 100 {
		if _, err := raw.Write(many); err != nil {
			if asTimeout(err, new(net.Error)) {
				t.Fatal("the connection was not closed")
			}
			return
		}
	}
	t.Fatal("6 million requests were taken")
}
