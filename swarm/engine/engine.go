package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/shoal-dev/shoal/chunker"
)

// tuning holds what tests and benchmarks vary. See defaultTuning.
type tuning struct {
	outstanding        int
	minDepth, maxDepth int
	chunk              int
	maxConns           int
	dialTimeout        time.Duration
	answer             time.Duration
}

// depth is how many chunks may be requested of one of n peers at a time.
func (t tuning) depth(n int) int {
	return min(max(t.outstanding/(t.chunk*max(n, 1)), t.minDepth), t.maxDepth)
}

// defaultTuning is what every engine runs with.
var defaultTuning = tuning{
	// How many bytes may be requested at a time, over all peers of a blob: what
	// 10 Gbit/s carry in 13 ms. 8 containerd nodes pulling 1 GiB at 100 Mbit/s
	// took 1.31 times the bound with 3.5 MiB, 1.27 with 7, 1.23 with 14.
	outstanding: 16 << 20,
	// How many chunks of it may be requested of one peer. Few leave a
	// connection idle, many delay what others wait for: they are served in map
	// order.
	minDepth: 4,
	maxDepth: 16,
	// The length of a chunk in bytes, the same on all nodes.
	chunk: chunker.ChunkLength,
	// How many peers one blob is traded with. Connections are used both ways,
	// and the tracker introduces fewer.
	maxConns: 64,
	// Bounds a connection attempt, and then its handshakes.
	dialTimeout: 3 * time.Second,
	// How long a peer may owe a chunk without sending any: with chunks of
	// 64 KiB it is slower than 2 KiB/s then.
	answer: 30 * time.Second,
}

// Config of an Engine.
type Config struct {
	// NodeID names this node to its peers.
	NodeID string
	// Listener accepts peers; with TLS it is a TLS listener. The engine
	// closes it.
	Listener net.Listener
	// Dial connects to a peer's wire address, with TLS if the cluster has
	// it.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	Log zerolog.Logger
	// Registerer, if set, gets the engine's metrics.
	Registerer prometheus.Registerer
}

// Engine is this node's BitTorrent client. Its methods are safe for concurrent
// use.
//
// The library calls back with its client lock held. Locks are taken in this
// order: the library's, Engine.mu, Torrent.mu. So nothing here calls the
// library while it holds one of its own.
type Engine struct {
	cfg   Config
	tune  tuning
	met   *metrics
	cl    *torrent.Client
	id    torrent.PeerID
	conns *conns

	mu       sync.Mutex
	closed   bool
	torrents map[[20]byte]*Torrent // by info hash
	links    map[*torrent.PeerConn]*link
}

// New starts an engine.
func New(c Config) (*Engine, error) { return newEngine(c, defaultTuning) }

func newEngine(c Config, tune tuning) (*Engine, error) {
	if c.Listener == nil || c.Dial == nil || c.NodeID == "" {
		return nil, errors.New("new engine: node id, listener and dial are required")
	}
	e := &Engine{
		cfg: c, tune: tune, id: peerID(c.NodeID), conns: newConns(),
		torrents: map[[20]byte]*Torrent{}, links: map[*torrent.PeerConn]*link{},
	}
	cl, err := torrent.NewClient(e.clientConfig())
	if err != nil {
		return nil, fmt.Errorf("start torrent client: %w", err)
	}
	e.cl = cl
	if e.met, err = newMetrics(c.Registerer, e); err != nil {
		cl.Close()
		return nil, fmt.Errorf("register engine metrics: %w", err)
	}
	cl.AddDialer(dialer{e.conns, c.Dial})
	cl.AddListener(listener{c.Listener, e.conns})
	return e, nil
}

// clientConfig tells the library how to behave. Each setting was checked in
// the source of v1.61.0.
func (e *Engine) clientConfig() *torrent.ClientConfig {
	tc := torrent.NewDefaultClientConfig()
	// Nobody outside of the cluster hears of a blob.
	tc.NoDHT, tc.DisableTrackers, tc.DisablePEX = true, true, true
	tc.DisableWebtorrent, tc.DisableWebseeds = true, true
	tc.NoDefaultPortForwarding = true
	// Our own listener and dialer, which are TLS where the cluster is; so the
	// library's obfuscation would only cost.
	tc.DisableUTP, tc.DisableTCP = true, true
	tc.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{Preferred: false, RequirePreferred: true}
	tc.PeerID = string(e.id[:])
	// Tells peers our name, see Engine.extended.
	tc.ExtendedHandshakeClientVersion = e.cfg.NodeID
	// Without Seed a peer gets at most 100 KiB more than it gave; without
	// AlwaysWantConns a node that has and wants nothing yet refuses peers.
	tc.Seed, tc.AlwaysWantConns = true, true
	tc.DropDuplicatePeerIds = true
	// Two complete nodes may each still serve others; Drop ends it.
	tc.DropMutuallyCompletePeers = false
	// The default of 64 MiB is a window over the rarest pieces, in which
	// those that the neighbours have do not appear.
	tc.MaxUnverifiedBytes = 0
	tc.DialRateLimiter = rate.NewLimiter(rate.Inf, 0)
	tc.EstablishedConnsPerTorrent = e.tune.maxConns
	tc.HalfOpenConnsPerTorrent, tc.TotalHalfOpenConns = 100, 1000
	tc.NominalDialTimeout, tc.MinDialTimeout = e.tune.dialTimeout, e.tune.dialTimeout
	tc.HandshakesTimeout = e.tune.dialTimeout
	// How much piece data may wait per connection to be sent: twice what a
	// node of ours requests at a time.
	tc.MaxAllocPeerRequestDataPerConn = 2 * e.tune.maxDepth * e.tune.chunk
	tc.DefaultStorage = noStorage{} // the default one opens a database
	tc.Logger, tc.Slogger = libraryLoggers(e.cfg.Log)

	cb := &tc.Callbacks
	cb.PeerConnAdded = append(cb.PeerConnAdded, e.connected)
	cb.PeerConnClosed = e.disconnected
	cb.ReadMessage = e.message
	cb.ReadExtendedHandshake = e.extended
	cb.SentRequest = append(cb.SentRequest, e.requested)
	cb.DeletedRequest = append(cb.DeletedRequest, e.answered)
	cb.ReceivedUsefulData = append(cb.ReceivedUsefulData, e.received)
	return tc
}

// Close drops all torrents and connections. Goroutines of the library end soon
// after it returns.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	var ts []*Torrent
	for _, t := range e.torrents {
		ts = append(ts, t)
	}
	e.mu.Unlock()
	for _, t := range ts {
		t.Drop()
	}
	errs := e.cl.Close()
	err := e.cfg.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	e.conns.close()
	return errors.Join(append(errs, err)...)
}

// peerID is a node's name on the wire: the customary client prefix, and a hash
// of the node's name.
func peerID(node string) (id torrent.PeerID) {
	h := sha256.Sum256([]byte(node))
	copy(id[:], "-SH0001-")
	copy(id[8:], h[:])
	return id
}

func (e *Engine) link(pc *torrent.PeerConn) *link {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.links[pc]
}

func (e *Engine) linkOf(p *torrent.Peer) *link {
	pc, ok := p.TryAsPeerConn()
	if !ok {
		return nil
	}
	return e.link(pc)
}

// extensions are those of BEP 10 that peers are told of: our nudge only.
// Metadata exchange and hole punching are left out: nobody needs them, and
// their handlers trust their input too much.
var extensions = torrent.LocalLtepProtocolMap{Index: []pp.ExtensionName{nudgeName}}

// connected hears of a connection after its handshake.
func (e *Engine) connected(pc *torrent.PeerConn) {
	pc.PeerMaxRequests = e.tune.minDepth // see link.take
	pc.LocalLtepProtocolMap = &extensions
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.torrents[pc.Torrent().InfoHash()]
	if t == nil {
		return // being dropped
	}
	l := newLink(t, pc)
	e.links[pc] = l
	e.met.peers.Inc()
	t.linked(l)
}

// disconnected hears of the end of a connection, also of one whose handshake
// failed.
func (e *Engine) disconnected(pc *torrent.PeerConn) {
	e.mu.Lock()
	l := e.links[pc]
	delete(e.links, pc)
	e.mu.Unlock()
	if l != nil {
		e.met.peers.Dec()
		l.t.unlinked(l)
	}
}

// invalid is a message type that the library answers by closing.
const invalid pp.MessageType = 0xff

// message judges what a peer sent before the library acts on it.
func (e *Engine) message(pc *torrent.PeerConn, m *pp.Message) {
	l := e.link(pc)
	if l == nil {
		m.Type, m.Keepalive = invalid, false
		return
	}
	err := l.take(m)
	if err == nil {
		return
	}
	if !errors.Is(err, errRefused) {
		e.met.cut.WithLabelValues("protocol").Inc()
		e.cfg.Log.Warn().Err(err).Str("peer", l.t.name(l.id)).Stringer("digest", l.t.id.Digest).
			Msg("peer broke the wire protocol, closing the connection")
	}
	m.Type, m.Keepalive = invalid, false
}

// extended sees a peer's extended handshake before the library: it limits the
// length of our request queue, and learns the peer's name.
func (e *Engine) extended(pc *torrent.PeerConn, m *pp.ExtendedHandshakeMessage) {
	m.Reqq = e.tune.maxDepth
	l := e.link(pc)
	if l != nil && peerID(m.V) == l.id {
		l.t.introduced(l.id, m.V)
	}
}

func (e *Engine) requested(ev torrent.PeerRequestEvent) {
	if l := e.linkOf(ev.Peer); l != nil {
		l.owe(1)
	}
}

func (e *Engine) answered(ev torrent.PeerRequestEvent) {
	if l := e.linkOf(ev.Peer); l != nil {
		l.owe(-1)
	}
}

// received notes who sent parts of a piece.
func (e *Engine) received(ev torrent.ReceivedUsefulDataEvent) {
	if l := e.linkOf(ev.Peer); l != nil {
		l.gave(int(ev.Message.Index))
	}
}
