package engine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hostTimeout is how long the host of a peer may not answer at all
	// before its connections end.
	hostTimeout = 30 * time.Second
	// writeTimeout is how long one write may take, of a chunk and a bit.
	writeTimeout = 30 * time.Second
	// rearm is how old a write deadline may be before it is renewed, since
	// that costs more than looking at the clock.
	rearm = 2 * time.Second
	// unsent is how much the kernel takes of a connection before it can send
	// it, in bytes: what waits there can be neither cancelled nor overtaken.
	// With the default, no limit, 8 containerd nodes pulling 1 GiB at
	// 100 Mbit/s took 1.33 times the bound instead of 1.27.
	unsent = 32 << 10
	// acceptRetryMax bounds the wait after a failed accept.
	acceptRetryMax = time.Second
)

// outgoing is the address of a peer that is dialled, as the library knows it.
// It is opaque on purpose: where the library can read an IP address it keeps
// accounts by it, and would ban or remember nodes that share one.
type outgoing string

func (a outgoing) String() string { return "to:" + string(a) }

// incoming is the address of a peer that dialled.
type incoming string

func (a incoming) Network() string { return "tcp" }
func (a incoming) String() string  { return "from:" + string(a) }

// dialer connects the library to peers.
type dialer struct {
	conns *conns
	dial  func(ctx context.Context, addr string) (net.Conn, error)
}

func (d dialer) DialerNetwork() string { return "tcp" }

func (d dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	addr, ok := strings.CutPrefix(addr, outgoing("").String())
	if !ok {
		return nil, fmt.Errorf("dial %s: not an address of a peer", addr)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.conns.ctx, cancel)()
	c, err := d.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return d.conns.add(c, c.RemoteAddr())
}

// listener hands peers to the library.
type listener struct {
	net.Listener
	conns *conns
}

// Accept fails only when the engine is closed: the library would call it again
// at once.
func (l listener) Accept() (net.Conn, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, acceptRetryMax) {
		c, err := l.Listener.Accept()
		if err == nil {
			if c, err := l.conns.add(c, incoming(c.RemoteAddr().String())); err == nil {
				return c, nil
			}
		}
		if errors.Is(err, net.ErrClosed) {
			wait = acceptRetryMax
		}
		select {
		case <-l.conns.ctx.Done():
			return nil, net.ErrClosed
		case <-time.After(wait):
		}
	}
}

// conns are the open connections of an engine, so that it can close them all:
// those in a handshake belong to no torrent yet.
type conns struct {
	ctx    context.Context // done when closed
	cancel context.CancelFunc

	mu   sync.Mutex
	open map[*conn]struct{}
}

func newConns() *conns {
	ctx, cancel := context.WithCancel(context.Background())
	return &conns{ctx: ctx, cancel: cancel, open: map[*conn]struct{}{}}
}

func (s *conns) add(c net.Conn, remote net.Addr) (net.Conn, error) {
	w := &conn{Conn: c, remote: remote, conns: s}
	tuneTCP(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		_ = c.Close()
		return nil, net.ErrClosed
	}
	s.open[w] = struct{}{}
	return w, nil
}

func (s *conns) close() {
	s.cancel()
	s.mu.Lock()
	open := s.open
	s.open = nil
	s.mu.Unlock()
	for c := range open {
		_ = c.Conn.Close()
	}
}

// conn is a connection to a peer.
type conn struct {
	net.Conn
	remote net.Addr
	conns  *conns

	// The library has one writer at a time, and lifts the handshake's
	// deadline before it starts the one that stays.
	established bool
	armed       time.Time
}

func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Close() error {
	c.conns.mu.Lock()
	delete(c.conns.open, c)
	c.conns.mu.Unlock()
	return c.Conn.Close()
}

// SetWriteDeadline is called by the library with no deadline once the
// handshakes are over.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.established, c.armed = t.IsZero(), time.Time{}
	return c.Conn.SetWriteDeadline(t)
}

// Write fails when the peer stops reading.
func (c *conn) Write(p []byte) (int, error) {
	if c.established {
		if now := time.Now(); now.Sub(c.armed) > rearm {
			if err := c.Conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
				return 0, err
			}
			c.armed = now
		}
	}
	return c.Conn.Write(p)
}

// tuneTCP lets the kernel end a connection whose other host has vanished, idle
// or not, and limits what it buffers. Connections that are not TCP are left
// alone.
func tuneTCP(c net.Conn) {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			// Three unanswered probes after a third of the time.
			_ = v.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: hostTimeout / 3, Interval: hostTimeout * 2 / 9, Count: 3})
			if raw, err := v.SyscallConn(); err == nil {
				_ = raw.Control(func(fd uintptr) {
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(hostTimeout.Milliseconds()))
					_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
				})
			}
			return
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return
		}
	}
}
