package engine

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/picker"
)

// tuning holds what tests and benchmarks vary. See defaultTuning.
type tuning struct {
	picker      picker.Tuning
	maxConns    int
	dialTimeout time.Duration
	answer      time.Duration
}

// defaultTuning is what every engine runs with.
var defaultTuning = tuning{
	// How many peers one blob is traded with. Connections are used both ways,
	// and the tracker introduces fewer.
	maxConns: 64,
	// Bounds a connection attempt and its handshakes.
	dialTimeout: 3 * time.Second,
	// How long a peer may owe a chunk without sending any: with chunks of
	// 128 KiB it is slower than 4.4 KiB/s then.
	answer: 30 * time.Second,
}

const (
	// maxComing is how many bytes of pieces may be half received, per blob.
	maxComing = 64 << 20
	// maxStrangers is how many incoming connections may be in their handshakes.
	maxStrangers = 256
)

// Config of an Engine.
type Config struct {
	// NodeID names this node to its peers.
	NodeID string
	// Listener accepts peers. The engine closes it.
	Listener net.Listener
	// Dial connects to a peer's wire address.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// ServerTLS and ClientTLS secure the connections that were accepted and
	// dialled. Both nil: the cluster has no TLS.
	ServerTLS, ClientTLS *tls.Config
	// Nodes, if set, lists the cluster's nodes: a peer that dialled is called
	// by its name in logs and events then. It must not call the engine.
	Nodes func() []string

	Log zerolog.Logger
	// Registerer, if set, gets the engine's metrics.
	Registerer prometheus.Registerer
}

// Engine trades blobs with other nodes. Its methods are safe for concurrent
// use.
//
// Locks are taken in this order: Engine.mu or Torrent.mu, link.mu, turns.mu; the
// blob's own are last.
type Engine struct {
	cfg    Config
	tune   tuning
	met    *metrics
	id     peerID
	life   context.Context // ends with the engine
	cancel context.CancelFunc
	work   sync.WaitGroup // accepting, and incoming connections

	buffers chunker.Buffers
	turns   turns

	mu       sync.Mutex
	closed   bool
	torrents map[infoHash]*Torrent
	conns    map[net.Conn]struct{}
}

// New starts an engine.
func New(c Config) (*Engine, error) { return newEngine(c, defaultTuning) }

func newEngine(c Config, tune tuning) (*Engine, error) {
	if c.Listener == nil || c.Dial == nil || c.NodeID == "" {
		return nil, errors.New("new engine: node id, listener and dial are required")
	}
	if (c.ServerTLS == nil) != (c.ClientTLS == nil) {
		return nil, errors.New("new engine: TLS is for both directions or for none")
	}
	e := &Engine{cfg: c, tune: tune, id: nodeID(c.NodeID), torrents: map[infoHash]*Torrent{}, conns: map[net.Conn]struct{}{}}
	e.life, e.cancel = context.WithCancel(context.Background())
	var err error
	if e.met, err = newMetrics(c.Registerer); err != nil {
		return nil, fmt.Errorf("register engine metrics: %w", err)
	}
	e.work.Go(e.accept)
	return e, nil
}

// Close drops all torrents and connections. Nothing of the engine runs any
// more when it returns.
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
	for c := range e.conns {
		hangUp(c)
	}
	e.mu.Unlock()
	e.cancel()
	err := e.cfg.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	for _, t := range ts {
		t.Drop()
	}
	e.work.Wait()
	return err
}

// nodeID is a node's name on the wire: the customary client prefix, and a hash
// of the node's name.
func nodeID(node string) (id peerID) {
	h := sha256.Sum256([]byte(node))
	copy(id[:], "-SH0001-")
	copy(id[8:], h[:])
	return id
}

// accept takes in peers. Failures are waited out: a host can be short of file
// descriptors for a while.
func (e *Engine) accept() {
	strangers := make(chan struct{}, maxStrangers)
	for wait := time.Millisecond; ; {
		c, err := e.cfg.Listener.Accept()
		switch {
		case err == nil:
			wait = time.Millisecond
			select {
			case strangers <- struct{}{}:
				e.work.Go(func() { e.receive(c, strangers) })
			default:
				hangUp(c)
			}
			continue
		case errors.Is(err, net.ErrClosed):
			wait = acceptRetryMax
		}
		select {
		case <-e.life.Done():
			return
		case <-time.After(wait):
			wait = min(2*wait, acceptRetryMax)
		}
	}
}

// receive serves a connection that a peer has opened.
func (e *Engine) receive(c net.Conn, strangers <-chan struct{}) {
	c, d := dress(c, e.cfg.ServerTLS, tls.Server)
	release := e.hold(c)
	defer release()
	t, h := e.meet(c)
	<-strangers
	if t == nil {
		hangUp(c)
		return
	}
	if l := t.join(c, d, h.id, h.id); l != nil {
		t.trade(l)
	}
}

// meet learns which blob a peer is after.
func (e *Engine) meet(c net.Conn) (*Torrent, handshake) {
	h, err := e.greet(c, handshake{}, false)
	if err != nil {
		return nil, h
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.torrents[h.hash], h
}

// greet exchanges handshakes. Who dials speaks first, and is answered only for
// a blob that is traded here.
func (e *Engine) greet(c net.Conn, own handshake, first bool) (h handshake, err error) {
	if err := c.SetDeadline(time.Now().Add(e.tune.dialTimeout)); err != nil {
		return h, err
	}
	tuneTCP(c)
	own.id = e.id
	if first {
		if _, err := c.Write(own.bytes()); err != nil {
			return h, fmt.Errorf("write handshake: %w", err)
		}
	}
	if h, err = readHandshake(c); err != nil {
		return h, err
	}
	switch {
	case first:
		if h.hash != own.hash {
			return h, errors.New("peer answers for another blob")
		}
	default:
		e.mu.Lock()
		known := e.torrents[h.hash] != nil
		e.mu.Unlock()
		if !known {
			return h, errors.New("blob is not traded here")
		}
		own.hash = h.hash
		if _, err := c.Write(own.bytes()); err != nil {
			return h, fmt.Errorf("write handshake: %w", err)
		}
	}
	return h, c.SetDeadline(time.Time{})
}

// hold has Close end the connection; release when it has ended.
func (e *Engine) hold(c net.Conn) (release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		hangUp(c)
	}
	e.conns[c] = struct{}{}
	return func() {
		e.mu.Lock()
		delete(e.conns, c)
		e.mu.Unlock()
	}
}
