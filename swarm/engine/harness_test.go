package engine

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/shoal-dev/shoal/chunker"
)

// net loopback: nodes of one process, with TLS or without, each with an upload
// cap of its own.

// plan says how test nodes are made.
type plan struct {
	tls    bool
	upload float64 // bytes per second for each node, 0: no cap
	tune   tuning
	wrap   func(net.Conn) net.Conn // around each connection of the node
	reg    prometheus.Registerer
	log    zerolog.Logger
}

func plain() plan { return plan{tune: defaultTuning, log: zerolog.Nop()} }

// node is an engine with a store of its own on loopback.
type node struct {
	*Engine
	id, addr string
	store    *chunker.Store
}

// testNodes are the nodes whose names matter in a test.
func testNodes() []string { return []string{"honest", "liar"} }

func newNode(t testing.TB, id string, p plan) *node {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	store, err := chunker.Open(chunker.Options{Dir: t.TempDir(), Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	dress := func(c net.Conn) net.Conn { return c }
	if p.wrap != nil {
		dress = p.wrap
	}
	if p.upload > 0 {
		lim := rate.NewLimiter(rate.Limit(p.upload), shapeStep)
		inner := dress
		dress = func(c net.Conn) net.Conn { return &shaped{inner(c), lim} }
	}
	l = dressed{l, dress}
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return nil, err
		}
		return dress(c), nil
	}
	cfg := Config{NodeID: id, Listener: l, Dial: dial, Nodes: testNodes, Log: p.log, Registerer: p.reg}
	if p.tls {
		cfg.ServerTLS, cfg.ClientTLS = testTLS(t)
	}
	e, err := newEngine(cfg, p.tune)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close engine %s: %v", id, err)
		}
		_ = store.Close()
	})
	return &node{Engine: e, id: id, addr: addr, store: store}
}

func (n *node) peer() Peer { return Peer{n.id, n.addr} }

// dressed wraps the connections that a listener accepts.
type dressed struct {
	net.Listener
	dress func(net.Conn) net.Conn
}

func (l dressed) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.dress(c), nil
}

// shapeStep is the burst of an upload cap: one TLS record.
const shapeStep = 16 << 10

// shaped is a connection whose writes share a rate with others.
type shaped struct {
	net.Conn
	lim *rate.Limiter
}

func (c *shaped) NetConn() net.Conn { return c.Conn }

func (c *shaped) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		part := p[n:min(len(p), n+shapeStep)]
		if err = c.lim.WaitN(context.Background(), len(part)); err != nil {
			return n, err
		}
		var m int
		m, err = c.Conn.Write(part)
		n += m
	}
	return n, err
}

// testTLS returns what peertls gives a node: TLS 1.3, both sides shown.
var testTLS = func() func(t testing.TB) (server, client *tls.Config) {
	cert := sync.OnceValues(func() (tls.Certificate, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return tls.Certificate{}, err
		}
		tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
	})
	return func(t testing.TB) (server, client *tls.Config) {
		t.Helper()
		c, err := cert()
		if err != nil {
			t.Fatal(err)
		}
		base := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c}, InsecureSkipVerify: true}
		server = base.Clone()
		server.ClientAuth = tls.RequireAnyClientCert
		return server, base
	}
}()

// content is a blob's bytes with its identity.
type content struct {
	data []byte
	id   chunker.Identity
}

func newContent(t testing.TB, n int) content {
	t.Helper()
	p := make([]byte, n)
	_, _ = mrand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)}).Read(p)
	g, err := chunker.GeometryOf(int64(n))
	if err != nil {
		t.Fatal(err)
	}
	return content{p, chunker.Identity{Cluster: "test", Digest: digest.FromBytes(p), Geometry: g}}
}

func (c content) pieces() int { return c.id.Geometry.NumPieces() }

func (c content) piece(i int) []byte {
	off, n := c.id.Geometry.Piece(i)
	return c.data[off : off+n]
}

// member is a node in the swarm of a blob.
type member struct {
	*Torrent
	node *node
	blob *chunker.Blob
}

// join puts a node into a swarm.
func (n *node) join(t testing.TB, c content, ev Events) *member {
	t.Helper()
	b, err := n.store.Acquire(c.id.Digest, c.id.Geometry.Size)
	if err != nil {
		t.Fatal(err)
	}
	tor, err := n.Add(c.id, b, ev)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tor.Drop(); b.Release() })
	return &member{tor, n, b}
}

// bring has a member take piece i from a source.
func (m *member) bring(t testing.TB, i int, p []byte) chunker.Sum {
	t.Helper()
	sum, err := m.blob.WritePiece(i, p)
	if err != nil {
		t.Fatal(err)
	}
	m.Have(i)
	return sum
}

// want has a member learn a piece's sum and want it.
func (m *member) want(t testing.TB, i int, sum chunker.Sum) {
	t.Helper()
	if err := m.blob.Expect(i, sum); err != nil {
		t.Fatal(err)
	}
	m.Want(i)
}

func (m *member) meet(others ...*member) {
	for _, o := range others {
		m.AddPeers([]Peer{o.node.peer()})
	}
}

// await fails the test unless ok becomes true, which it asks at each of the
// blob's changes and now and then.
func (m *member) await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		changed := m.blob.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Millisecond):
		case <-deadline:
			t.Fatalf("%s: not after 20 s; node %s has %d of %d pieces, %+v", what, m.node.id, m.blob.Have().Count(), m.blob.Have().Len(), m.Stats())
		}
	}
}

func (m *member) awaitPiece(t testing.TB, i int) {
	t.Helper()
	m.await(t, fmt.Sprintf("piece %d", i), func() bool { return m.blob.Has(i) })
}

func (m *member) awaitAll(t testing.TB) {
	t.Helper()
	m.await(t, "all pieces", func() bool { have := m.blob.Have(); return have.Full() })
}
