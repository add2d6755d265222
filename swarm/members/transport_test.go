package members

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"
)

// TestGarbage: bytes from anyone, on either socket, with and without the
// right label, do no harm.
func TestGarbage(t *testing.T) {
	t.Parallel()
	a, b := create(t, config("a")), create(t, config("b"))
	plain := config("p")
	plain.SecretKey, plain.Insecure = nil, true
	p := create(t, plain) // what is refused unread elsewhere is parsed here
	label := append([]byte{244, 3}, "lab"...)
	for _, n := range []*node{a, p} {
		for _, payload := range [][]byte{
			{}, {0}, {244}, {244, 0}, {244, 255, 'l'}, label,
			append(bytes.Clone(label), 1),
			append(bytes.Clone(label), bytes.Repeat([]byte{0xff}, 1300)...),
			append(bytes.Clone(label), 7, 255, 0, 1),                            // compound message cut short
			append(bytes.Clone(label), 9, 0x83, 0xa4, 'A', 'l'),                 // compressed message cut short
			append(bytes.Clone(label), 10, 0xff, 0xff, 0xff, 0xff, 1),           // encrypted stream of 4 GiB
			append(bytes.Clone(label), 4, 0x81, 0xa4, 'N', 'o', 'd', 'e', 0xc0), // alive without a name
			append(bytes.Clone(label), 6, 0xdf, 0xff, 0xff, 0xff, 0xff),         // push/pull with a map of 4 G entries
			[]byte("GET / HTTP/1.1\r\n\r\n"),
			bytes.Repeat([]byte{12}, 60000),
		} {
			u, err := net.Dial("udp", n.Addr())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = u.Write(payload)
			_ = u.Close()
			c, err := net.Dial("tcp", n.Addr())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(payload)
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(patience))
			_, _ = io.Copy(io.Discard, c) // until the node has closed it
			_ = c.Close()
		}
		if got := len(n.Live()); got != 1 {
			t.Errorf("%s has %d members", n.Self().ID, got)
		}
	}
	if err := b.ping(a); err != nil {
		t.Error(err)
	}
}

// TestTransport: datagrams arrive whole, each in memory of its own; streams
// are limited, and end with the transport at both ends.
func TestTransport(t *testing.T) {
	t.Parallel()
	open := func() *transport {
		tr, err := listen(netip.MustParseAddr("127.0.0.1"), 0, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		tr.advertise = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tr.port())
		t.Cleanup(func() {
			if err := tr.Shutdown(); err != nil {
				t.Error(err)
			}
		})
		return tr
	}
	a, b := open(), open()
	to := b.advertise.String()
	first, second := bytes.Repeat([]byte{1}, 9000), []byte{2}
	for _, p := range [][]byte{first, second} {
		if _, err := a.WriteTo(p, to); err != nil {
			t.Fatal(err)
		}
	}
	p1, p2 := <-b.PacketCh(), <-b.PacketCh()
	if !bytes.Equal(p1.Buf, first) || !bytes.Equal(p2.Buf, second) {
		t.Errorf("received %d and %d bytes", len(p1.Buf), len(p2.Buf))
	}
	if got := p1.From.String(); got != a.advertise.String() {
		t.Errorf("from %s", got)
	}
	if _, err := a.WriteToAddress(second, memberlist.Address{Addr: "no address"}); err == nil {
		t.Error("sent to nowhere")
	}

	// As many streams as there are slots; one more only when one is closed.
	var dialled, accepted []net.Conn
	for range maxStreams {
		c, err := a.DialTimeout(to, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		say(t, c)
		dialled, accepted = append(dialled, c), append(accepted, <-b.StreamCh())
	}
	c, err := a.DialTimeout(to, time.Second) // by the kernel
	if err != nil {
		t.Fatal(err)
	}
	say(t, c)
	dialled = append(dialled, c)
	var (
		freed atomic.Bool
		early = accepted[0]
	)
	time.AfterFunc(20*time.Millisecond, func() {
		freed.Store(true)
		_ = early.Close()
		_ = early.Close() // frees one slot only
	})
	accepted = append(accepted, <-b.StreamCh())
	if !freed.Load() {
		t.Error("more streams than slots")
	}
	var said [len(hello)]byte
	if _, err := io.ReadFull(accepted[1], said[:]); err != nil || string(said[:]) != hello {
		t.Errorf("a stream says %q, %v", said, err)
	}
	if n := len(b.slots); n != maxStreams {
		t.Errorf("%d slots in use", n)
	}
	if err := b.Shutdown(); err != nil {
		t.Fatal(err)
	}
	for _, c := range append(dialled[1:], accepted[1:]...) {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, c); os.IsTimeout(err) {
			t.Fatalf("a stream outlives its transport: %v", err)
		}
		_ = c.Close()
	}
	a.hangUp()
	if _, err := a.DialTimeout(to, time.Second); err == nil || a.dialing.Err() != context.Canceled {
		t.Errorf("dialled after hanging up: %v", err)
	}
}

const hello = "hello"

func say(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.WriteString(c, hello); err != nil {
		t.Fatal(err)
	}
}

// TestLook: who only looks whether the port is open leaves no line in the log.
func TestLook(t *testing.T) {
	t.Parallel()
	log := &lines{}
	c := config("a")
	c.Log = zerolog.New(log).Level(zerolog.InfoLevel)
	a := create(t, c)
	knock := func(text string) (from string) {
		t.Helper()
		conn, err := net.Dial("tcp", a.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, _ = io.Copy(io.Discard, conn) // until the node has closed it
		return conn.LocalAddr().String()
	}
	quiet := knock("")
	log.await(t, knock("nonsense"))
	log.mu.Lock()
	defer log.mu.Unlock()
	if bytes.Contains(log.buf.Bytes(), []byte(quiet)) {
		t.Errorf("a look leaves a line:\n%s", &log.buf)
	}
}
