package engine

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// flaky fails to accept, as when the process is out of file descriptors.
type flaky struct {
	net.Listener
	tries  atomic.Int64
	until  time.Time
	closed chan struct{}
}

func (l *flaky) Close() error {
	close(l.closed)
	return nil
}

func (l *flaky) Accept() (net.Conn, error) {
	l.tries.Add(1)
	if time.Now().Before(l.until) {
		return nil, errors.New("too many open files")
	}
	<-l.closed
	return nil, net.ErrClosed
}

// TestAcceptBacksOff: a host without file descriptors is not made busier.
func TestAcceptBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &flaky{until: time.Now().Add(time.Minute), closed: make(chan struct{})}
		e, err := New(Config{NodeID: "n", Listener: l, Dial: func(context.Context, string) (net.Conn, error) { return nil, errors.New("no") }})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if n := l.tries.Load(); n > 100 || n < 10 {
			t.Errorf("%d tries in a minute", n)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

// nested hides a connection as tls.Conn does.
type nested struct{ net.Conn }

func (n nested) NetConn() net.Conn { return n.Conn }

// TestTuneTCP: the kernel is told to give up on a host that has vanished, and to
// buffer little.
func TestTuneTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	tuneTCP(nested{nested{c}})
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	get := func(opt int) (v int) {
		_ = raw.Control(func(fd uintptr) { v, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, opt) })
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if got := get(unix.TCP_USER_TIMEOUT); got != 30_000 {
		t.Errorf("user timeout %d ms", got)
	}
	if got := get(unix.TCP_NOTSENT_LOWAT); got != unsent {
		t.Errorf("%d bytes may wait in the kernel", got)
	}
	if idle, every, n := get(unix.TCP_KEEPIDLE), get(unix.TCP_KEEPINTVL), get(unix.TCP_KEEPCNT); idle+every*n > 31 || idle < 5 {
		t.Errorf("keep-alive after %d s, %d times every %d s", idle, n, every)
	}
	a, b := net.Pipe()
	defer b.Close()
	tuneTCP(a) // not TCP, left alone
	_ = a.Close()
}
