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
	"github.com/anacrolix/torrent/metainfo"
	pp "github.com/anacrolix/torrent/peer_protocol"
	"github.com/anacrolix/torrent/storage"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/time/rate"

	"github.com/shoal-dev/shoal/chunker"
)

const (
	// requestDepth is how many chunks may be requested of one peer at a time:
	// 8 × 128 KiB cover the bandwidth-delay product of 1 Gbit/s at 8 ms, and
	// deeper queues measured worse (the uploader serves them in map order).
	requestDepth = 8
	// uploadBuffer is how much piece data may wait per connection to be
	// sent, in bytes; it must hold the requests of a peer.
	uploadBuffer = 4 << 20
	// maxConns is how many peers one blob is traded with. The tracker
	// introduces fewer; connections are used both ways.
	maxConns = 64
	// maxFailures is how often a piece may fail verification before it is
	// not wanted any more.
	maxFailures = 3
	// dialTimeout bounds a connection attempt, handshake included.
	dialTimeout = 3 * time.Second
)

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

	Log        zerolog.Logger
	Registerer prometheus.Registerer
}

// Engine is this node's BitTorrent client. Its methods are safe for concurrent
// use.
type Engine struct {
	cfg Config
	met *metrics
	cl  *torrent.Client

	mu       sync.Mutex
	torrents map[*torrent.Torrent]*Torrent
	names    map[torrent.PeerID]string
}

// Peer is another node that is pulling the same blob.
type Peer struct {
	// ID is the node's name, Addr its wire address host:port.
	ID, Addr string
}

// New starts an engine.
func New(c Config) (*Engine, error) {
	if c.Listener == nil || c.Dial == nil || c.NodeID == "" {
		return nil, errors.New("new engine: node id, listener and dial are required")
	}
	e := &Engine{cfg: c, met: newMetrics(c.Registerer), torrents: map[*torrent.Torrent]*Torrent{}, names: map[torrent.PeerID]string{}}
	id := peerID(c.NodeID)

	tc := torrent.NewDefaultClientConfig()
	tc.NoDHT, tc.DisableTrackers, tc.DisablePEX = true, true, true
	tc.DisableWebtorrent, tc.DisableWebseeds = true, true
	tc.DisableUTP, tc.DisableTCP = true, true // our own listener and dialer
	tc.NoDefaultPortForwarding = true
	tc.HeaderObfuscationPolicy = torrent.HeaderObfuscationPolicy{Preferred: false, RequirePreferred: true}
	tc.PeerID = string(id[:])
	tc.Seed = true
	tc.AlwaysWantConns = true
	tc.DropDuplicatePeerIds = true
	tc.DropMutuallyCompletePeers = false
	tc.MaxUnverifiedBytes = 0
	tc.DialRateLimiter = rate.NewLimiter(rate.Inf, 0)
	tc.EstablishedConnsPerTorrent = maxConns
	tc.HalfOpenConnsPerTorrent = maxConns
	tc.TotalHalfOpenConns = 1000
	tc.NominalDialTimeout, tc.MinDialTimeout = dialTimeout, dialTimeout
	tc.HandshakesTimeout = dialTimeout
	tc.KeepAliveTimeout = keepAlive
	tc.MaxAllocPeerRequestDataPerConn = uploadBuffer
	tc.DefaultStorage = noStorage{}
	tc.Logger, tc.Slogger = libraryLoggers(c.Log)
	tc.Callbacks.ReadExtendedHandshake = func(_ *torrent.PeerConn, m *pp.ExtendedHandshakeMessage) {
		m.Reqq = min(m.Reqq, requestDepth)
	}
	var open sync.Map
	tc.Callbacks.PeerConnAdded = append(tc.Callbacks.PeerConnAdded, func(pc *torrent.PeerConn) {
		pc.PeerMaxRequests = requestDepth
		open.Store(pc, nil)
		e.met.peers.Inc()
	})
	tc.Callbacks.PeerConnClosed = func(pc *torrent.PeerConn) {
		// It is also called for connections that never came so far.
		if _, ok := open.LoadAndDelete(pc); ok {
			e.met.peers.Dec()
		}
	}
	tc.Callbacks.ReceivedUsefulData = append(tc.Callbacks.ReceivedUsefulData, e.received)

	cl, err := torrent.NewClient(tc)
	if err != nil {
		return nil, fmt.Errorf("start torrent client: %w", err)
	}
	e.cl = cl
	cl.AddDialer(dialer{c.Dial})
	cl.AddListener(listener{Listener: c.Listener, next: newAddresses()})
	return e, nil
}

// Close drops all torrents and connections.
func (e *Engine) Close() error {
	err := e.cfg.Listener.Close()
	errs := e.cl.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
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

func (e *Engine) name(id torrent.PeerID) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if n, ok := e.names[id]; ok {
		return n
	}
	return fmt.Sprintf("unknown %x", id[8:])
}

// received notes who sent parts of a piece. The library calls it with its
// lock held, once per chunk.
func (e *Engine) received(ev torrent.ReceivedUsefulDataEvent) {
	pc, ok := ev.Peer.TryAsPeerConn()
	if !ok {
		return
	}
	e.mu.Lock()
	t := e.torrents[ev.Peer.Torrent()]
	e.mu.Unlock()
	if t != nil {
		t.touched(int(ev.Message.Index), pc.PeerID)
	}
	e.met.received.Add(float64(len(ev.Message.Piece)))
}

// Events tell a torrent's owner what happens to it. They are called from the
// library's hashing goroutines, without its lock, and must not block.
type Events struct {
	// PieceDone: piece i came through the swarm and is verified.
	PieceDone func(i int)
	// PieceBad: piece i contradicted its sum again and again, most recently
	// with data from these nodes; it is not wanted any more.
	PieceBad func(i int, peers []string)
}

// Add joins the swarm of a blob, which must stay pinned until Drop. Pieces
// that are complete are offered at once; none is wanted yet.
func (e *Engine) Add(id chunker.Identity, b *chunker.Blob, ev Events) (*Torrent, error) {
	t := &Torrent{e: e, id: id, blob: b, ev: ev, failures: map[int]int{}, from: map[int]map[torrent.PeerID]struct{}{}}
	lt, isNew := e.cl.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash:                 id.InfoHash(),
		Storage:                  blobStorage{t},
		ChunkSize:                chunker.ChunkLength,
		InfoBytes:                id.InfoBytes(),
		DisableInitialPieceCheck: true,
	})
	if !isNew {
		return nil, fmt.Errorf("add torrent of %s: already there", id.Digest)
	}
	t.t = lt
	e.mu.Lock()
	e.torrents[lt] = t
	e.met.torrents.Set(float64(len(e.torrents)))
	e.mu.Unlock()
	// The info is ours, so it is there without a peer; the library takes it
	// in on a goroutine of its own.
	select {
	case <-lt.GotInfo():
	case <-time.After(10 * time.Second):
		t.Drop()
		return nil, fmt.Errorf("add torrent of %s: the engine does not accept its info", id.Digest)
	}
	return t, nil
}

// Torrent is one blob being traded. Its methods are safe for concurrent use.
type Torrent struct {
	e    *Engine
	t    *torrent.Torrent
	id   chunker.Identity
	blob *chunker.Blob
	ev   Events

	mu       sync.Mutex
	failures map[int]int
	from     map[int]map[torrent.PeerID]struct{}
}

// AddPeers connects to peers; those that are connected already stay so.
func (t *Torrent) AddPeers(ps []Peer) {
	infos := make([]torrent.PeerInfo, 0, len(ps))
	t.e.mu.Lock()
	for _, p := range ps {
		id := peerID(p.ID)
		t.e.names[id] = p.ID
		infos = append(infos, torrent.PeerInfo{Id: id, Addr: torrent.StringAddr(p.Addr), Trusted: true})
	}
	t.e.mu.Unlock()
	t.t.AddPeers(infos)
}

// Want asks peers for pieces whose expected sums the blob knows.
func (t *Torrent) Want(is ...int) {
	for _, i := range is {
		t.t.Piece(i).SetPriority(torrent.PiecePriorityNormal)
	}
}

// Hurry asks for wanted pieces before all that are not hurried, however rare
// those are.
func (t *Torrent) Hurry(is ...int) {
	for _, i := range is {
		t.t.Piece(i).SetPriority(torrent.PiecePriorityHigh)
	}
}

// Unwant stops asking peers for pieces.
func (t *Torrent) Unwant(is ...int) {
	for _, i := range is {
		t.t.Piece(i).SetPriority(torrent.PiecePriorityNone)
	}
}

// Have tells the swarm that the completion of pieces changed in the blob by
// another way: they came from a source, or were rejected.
func (t *Torrent) Have(is ...int) {
	for _, i := range is {
		t.t.Piece(i).UpdateCompletion()
	}
}

// Stats of a torrent, in bytes of pieces since it was added.
type Stats struct {
	BytesFromPeers, BytesToPeers, WastedBytes int64
	// Peers is how many nodes it is connected to.
	Peers int
}

// Stats may be called at any time, also after Drop.
func (t *Torrent) Stats() Stats {
	s := t.t.Stats()
	read := s.BytesReadData.Int64()
	useful := s.BytesReadUsefulData.Int64()
	return Stats{BytesFromPeers: useful, BytesToPeers: s.BytesWrittenData.Int64(), WastedBytes: read - useful, Peers: s.ActivePeers}
}

// Drop leaves the swarm. No event is called after it returns, but by
// goroutines that were about to.
func (t *Torrent) Drop() {
	s := t.Stats()
	t.e.met.sent.Add(float64(s.BytesToPeers))
	t.e.met.wasted.Add(float64(s.WastedBytes))
	t.t.Drop()
	t.e.mu.Lock()
	delete(t.e.torrents, t.t)
	t.e.met.torrents.Set(float64(len(t.e.torrents)))
	t.e.mu.Unlock()
}

func (t *Torrent) touched(i int, id torrent.PeerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.from[i]
	if m == nil {
		m = map[torrent.PeerID]struct{}{}
		t.from[i] = m
	}
	m[id] = struct{}{}
}

// judged settles a verification of piece i; bad is true when it has failed too
// often.
func (t *Torrent) judged(i int, ok bool) (peers []string, bad bool) {
	t.mu.Lock()
	from := t.from[i]
	delete(t.from, i)
	if ok {
		delete(t.failures, i)
	} else {
		t.failures[i]++
		bad = t.failures[i] >= maxFailures
		if bad {
			delete(t.failures, i)
		}
	}
	t.mu.Unlock()
	if ok {
		return nil, false
	}
	for id := range from {
		peers = append(peers, t.e.name(id))
	}
	return peers, bad
}

// noStorage refuses torrents that bring no storage of their own; there are
// none.
type noStorage struct{}

func (noStorage) OpenTorrent(context.Context, *metainfo.Info, metainfo.Hash) (storage.TorrentImpl, error) {
	return storage.TorrentImpl{}, errors.New("torrent without storage")
}
