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

// TestWriteDeadline: a peer that stops reading costs one write's time.
func TestWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		s := newConns()
		defer s.close()
		c, err := s.add(ours, ours.RemoteAddr())
		if err != nil {
			t.Fatal(err)
		}
		// The handshake's own limit stands at first.
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		start := time.Now()
		if _, err := c.Write([]byte("hello")); err == nil || time.Since(start) != 3*time.Second {
			t.Errorf("handshake: %v after %v", err, time.Since(start))
		}
		_ = c.SetWriteDeadline(time.Time{})
		go func() {
			buf := make([]byte, 5)
			for range 3 {
				_, _ = theirs.Read(buf)
				time.Sleep(writeTimeout / 2)
			}
		}()
		for range 3 {
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Errorf("slow reader: %v", err)
			}
		}
		start = time.Now()
		if _, err := c.Write([]byte("hello")); err == nil {
			t.Error("nobody reads, but the write succeeded")
		} else if took := time.Since(start); took > writeTimeout || took < writeTimeout-rearm {
			t.Errorf("gave up after %v", took)
		}
	})
}

// flaky fails to accept, as when the process is out of file descriptors.
type flaky struct {
	net.Listener
	tries atomic.Int64
	until time.Time
	conn  net.Conn
}

func (l *flaky) Accept() (net.Conn, error) {
	l.tries.Add(1)
	if time.Now().Before(l.until) {
		return nil, errors.New("too many open files")
	}
	return l.conn, nil
}

// TestAcceptBacksOff: the library calls Accept in a tight loop.
func TestAcceptBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		s := newConns()
		l := &flaky{until: time.Now().Add(time.Minute), conn: a}
		if _, err := (listener{l, s}).Accept(); err != nil {
			t.Error(err)
		}
		if n := l.tries.Load(); n > 100 {
			t.Errorf("%d tries in a minute", n)
		}
		l.until = time.Now().Add(time.Hour)
		go func() {
			time.Sleep(time.Second)
			s.close()
		}()
		if _, err := (listener{l, s}).Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

// TestCloseReachesHandshakes: connections and dials that belong to no torrent
// yet end with the engine.
func TestCloseReachesHandshakes(t *testing.T) {
	s := newConns()
	a, b := net.Pipe()
	if _, err := s.add(a, a.RemoteAddr()); err != nil {
		t.Fatal(err)
	}
	dialled := make(chan error)
	go func() {
		_, err := dialer{s, func(ctx context.Context, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}.Dial(context.Background(), outgoing("x:1").String())
		dialled <- err
	}()
	s.close()
	if _, err := b.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if err := <-dialled; !errors.Is(err, context.Canceled) {
		t.Errorf("dial: %v", err)
	}
	if _, err := s.add(b, b.RemoteAddr()); err == nil {
		t.Error("a connection was added after close")
	}
}

func TestDialOnlyOurAddresses(t *testing.T) {
	d := dialer{newConns(), func(context.Context, string) (net.Conn, error) {
		t.Error("dialled")
		return nil, errors.New("no")
	}}
	if _, err := d.Dial(context.Background(), "192.0.2.1:80"); err == nil {
		t.Error("no error")
	}
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
