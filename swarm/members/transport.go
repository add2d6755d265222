package members

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"
)

const (
	// dialTimeout bounds connecting to a member or seed: one lost SYN is
	// repeated after a second. The library's own 10 s, with a few black-holed
	// seeds in a row, would keep a node waiting for minutes.
	dialTimeout = 3 * time.Second
	// bindTries is how many free ports are tried for port 0: the TCP port that
	// the kernel finds may be taken for UDP.
	bindTries = 10
	// maxDatagram is the largest there is. Members send far smaller ones.
	maxDatagram = 64 << 10
	// receiveBuffer is what the kernel may queue, in bytes, as far as it
	// allows that much: a thousand nodes starting at once talk all at once.
	receiveBuffer = 2 << 20
	// maxStreams bounds the streams served at one time. Strangers can open
	// them, too: each is decrypted only when it is read. The library closes
	// those that take more than 10 s.
	maxStreams = 128
	// firstByte is how long a stream may say nothing before it is closed: as long
	// as the library would wait.
	firstByte = 10 * time.Second
	// errorPause keeps a failing socket (out of descriptors, typically) from
	// using up a processor.
	errorPause = 100 * time.Millisecond
)

// transport connects the library with the network: one UDP socket and one TCP
// listener on the same port. The library's own would do but for its memory
// (64 KiB for each datagram, as long as any message of it is queued), for the
// choice of the advertised address, and for streams that outlive a shutdown.
type transport struct {
	log       zerolog.Logger
	udp       *net.UDPConn
	tcp       *net.TCPListener
	advertise netip.AddrPort // set once, before the library sees it

	packets chan *memberlist.Packet
	streams chan net.Conn
	slots   chan struct{} // one for each stream being served

	dialing context.Context // ends by hangUp
	hangUp  context.CancelFunc
	serving context.Context // ends by Shutdown
	stop    context.CancelFunc
	loops   sync.WaitGroup
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens the sockets and starts to serve them. An invalid ip means all
// interfaces.
func listen(ip netip.Addr, port uint16, log zerolog.Logger) (*transport, error) {
	tries := 1
	if port == 0 {
		tries = bindTries
	}
	var (
		t   = &transport{log: log}
		err error
	)
	for range tries {
		if err = t.bind(ip, port); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("listen for gossip: %w", err)
	}
	if err := t.udp.SetReadBuffer(receiveBuffer); err != nil {
		log.Debug().Err(err).Msg("gossip keeps the system's receive buffer")
	}
	t.packets = make(chan *memberlist.Packet)
	t.streams = make(chan net.Conn)
	t.slots = make(chan struct{}, maxStreams)
	t.dialing, t.hangUp = context.WithCancel(context.Background())
	t.serving, t.stop = context.WithCancel(context.Background())
	t.loops.Go(t.receive)
	t.loops.Go(t.accept)
	return t, nil
}

// bind opens both sockets or none.
func (t *transport) bind(ip netip.Addr, port uint16) (err error) {
	at := netip.AddrPortFrom(ip, port)
	if t.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
		return err
	}
	at = netip.AddrPortFrom(ip, t.port())
	if t.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
		return errors.Join(err, t.tcp.Close())
	}
	return nil
}

// port is the one in use.
func (t *transport) port() uint16 {
	return t.tcp.Addr().(*net.TCPAddr).AddrPort().Port()
}

// receive passes on datagrams.
func (t *transport) receive() {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		now := time.Now()
		if err != nil {
			if !t.failed("receive datagram", err) {
				return
			}
			continue
		}
		if n == 0 {
			continue
		}
		p := &memberlist.Packet{
			Buf:       append([]byte(nil), buf[:n]...), // the library keeps it
			From:      net.UDPAddrFromAddrPort(unmap(from)),
			Timestamp: now,
		}
		select {
		case t.packets <- p:
		case <-t.serving.Done():
			return
		}
	}
}

// accept passes on streams, maxStreams at a time.
func (t *transport) accept() {
	for {
		select {
		case t.slots <- struct{}{}:
		case <-t.serving.Done():
			return
		}
		conn, err := t.tcp.Accept()
		if err != nil {
			<-t.slots
			if !t.failed("accept stream", err) {
				return
			}
			continue
		}
		s := t.track(t.serving, conn, func() { <-t.slots })
		t.loops.Go(func() { t.introduce(s) })
	}
}

// introduce passes a stream on as soon as it says something. Those that never do
// are of who only looks whether the port is open, such as load balancers and 'shoal
// doctor': the library would warn of each.
func (t *transport) introduce(s *stream) {
	var first [1]byte
	err := s.SetReadDeadline(time.Now().Add(firstByte))
	if err == nil {
		_, err = io.ReadFull(s.Conn, first[:])
	}
	if err == nil {
		err = s.SetReadDeadline(time.Time{})
	}
	if err != nil {
		t.log.Debug().Err(err).Stringer("from", s.RemoteAddr()).Msg("gossip stream said nothing")
		_ = s.Close()
		return
	}
	s.in = io.MultiReader(bytes.NewReader(first[:]), s.Conn)
	select {
	case t.streams <- s:
	case <-t.serving.Done():
		_ = s.Close()
	}
}

// failed deals with the error of a socket, and reports whether to go on.
func (t *transport) failed(what string, err error) bool {
	if t.serving.Err() != nil {
		return false
	}
	t.log.Warn().Err(err).Msg(what)
	pause := time.NewTimer(errorPause)
	defer pause.Stop()
	select {
	case <-pause.C:
		return true
	case <-t.serving.Done():
		return false
	}
}

// PacketCh is where the library gets datagrams.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh is where the library gets streams.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// FinalAdvertiseAddr is the address found at the start, whatever the library
// thinks.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// WriteTo sends a datagram.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, fmt.Errorf("send datagram: %w", err)
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

// WriteToAddress sends a datagram.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// DialTimeout opens a stream.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	d := net.Dialer{Timeout: min(timeout, dialTimeout)}
	conn, err := d.DialContext(t.dialing, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return t.track(t.dialing, conn, func() {}), nil
}

// DialAddressTimeout opens a stream.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// Shutdown closes the sockets and all streams, and waits until nothing is
// passed on any more.
func (t *transport) Shutdown() error {
	t.hangUp()
	t.stop()
	err := errors.Join(t.tcp.Close(), t.udp.Close())
	t.loops.Wait()                     // streams end with serving
	if errors.Is(err, net.ErrClosed) { // a second call
		return nil
	}
	return err
}

// track makes a stream end with ctx at the latest, and calls done when it is
// closed.
func (t *transport) track(ctx context.Context, conn net.Conn, done func()) *stream {
	return &stream{
		Conn: conn, in: conn,
		stop: context.AfterFunc(ctx, func() { _ = conn.Close() }),
		done: sync.OnceFunc(done),
	}
}

// stream is a connection that ends with its transport.
type stream struct {
	net.Conn
	in   io.Reader // Conn, with what was read of it already
	stop func() bool
	done func()
}

func (s *stream) Read(p []byte) (int, error) { return s.in.Read(p) }

func (s *stream) Close() error {
	s.stop()
	s.done()
	return s.Conn.Close()
}

// unmap makes an IPv4 address of one that a dual-stack socket shows as IPv6.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
