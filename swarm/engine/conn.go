package engine

import (
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"time"
)

const (
	// keepAlive is how often an idle connection is written to.
	keepAlive = 10 * time.Second
	// silence is how long a connection may bring nothing, keep-alives
	// included, before it is dead. The library itself would wait 150 s.
	silence = 3 * keepAlive
	// writeStall is how long one write may take: 128 KiB at 4 kB/s.
	writeStall = silence
)

// dialer connects the library to peers.
type dialer struct {
	dial func(ctx context.Context, addr string) (net.Conn, error)
}

func (d dialer) DialerNetwork() string { return "tcp" }

func (d dialer) Dial(ctx context.Context, addr string) (net.Conn, error) {
	c, err := d.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, remote: c.RemoteAddr()}, nil
}

// listener hands peers to the library under addresses of their own.
type listener struct {
	net.Listener
	next *addresses
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, remote: l.next.addr()}, nil
}

// addresses makes addresses that no host has, one per connection: of
// 100::/64, which RFC 6666 reserves for discarding.
type addresses struct{ n atomic.Uint64 }

func newAddresses() *addresses { return &addresses{} }

func (a *addresses) addr() net.Addr {
	ip := make(net.IP, net.IPv6len)
	ip[0] = 0x01
	binary.BigEndian.PutUint64(ip[8:], a.n.Add(1))
	return &net.TCPAddr{IP: ip, Port: 1}
}

// conn notices dead peers by itself.
type conn struct {
	net.Conn
	remote net.Addr
}

func (c *conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline and its kin are the library's wish for the handshake only; the
// deadlines below are stricter or come later.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeStall)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}
