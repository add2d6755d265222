package swarm

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// PathProbe is where a node lets others see what comes through to it and back.
	PathProbe = "/v1/probe"
	// probeSize is how much goes in either direction, in bytes: several packets of
	// the largest size that networks have.
	probeSize = 64 << 10
)

// Probe is a look at another node from outside the cluster's own traffic: it opens
// a connection of its own, as transfers do, sends as much as makes full packets, and
// reads a range of as much.
type Probe struct {
	// Addr is the other node's control address; Node is this one's name.
	Addr, Node string
	// TLS is as in [Config].
	TLS *tls.Config
	// Packet bounds the IP packets of the connection in both directions, in bytes, as
	// a narrower link on the way would. 0: what the route allows.
	Packet int
}

// ProbeResult is what a probe has seen.
type ProbeResult struct {
	// Connected tells that the other node's kernel has accepted the connection.
	Connected bool
	// Packet is how large IP packets are by what this node's kernel knows of the
	// way, in bytes; 0 if it does not tell.
	Packet int
	// RoundTrip is how long it took to get rid of what was sent and be answered.
	RoundTrip time.Duration
}

// Run makes the probe. What was seen before an error is returned with it.
func (p Probe) Run(ctx context.Context) (ProbeResult, error) {
	var r ProbeResult
	conn, err := (&net.Dialer{Control: p.bound}).DialContext(ctx, "tcp", p.Addr)
	if err != nil {
		return r, fmt.Errorf("probe %s: %w", p.Addr, err)
	}
	defer conn.Close()
	r.Connected, r.Packet = true, packetOf(conn)
	unused := make(chan net.Conn, 1)
	unused <- conn
	transport := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			select {
			case conn := <-unused:
				return conn, nil
			default:
				return nil, errors.New("the connection was closed")
			}
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	defer transport.CloseIdleConnections()
	scheme := "http"
	if p.TLS != nil {
		scheme = "https"
		transport.TLSClientConfig = p.TLS.Clone()
		transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
	}
	client := &http.Client{Transport: transport}
	ask := func(method string, body []byte, want int) error {
		req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+p.Addr+PathProbe, bytes.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set(nodeHeader, p.Node)
		if method == http.MethodGet {
			req.Header.Set("Range", fmt.Sprintf("bytes=0-%d", probeSize-1))
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(io.LimitReader(resp.Body, probeSize))
		switch {
		case err != nil:
			return err
		case resp.StatusCode != want:
			return fmt.Errorf("%s: %.200s", resp.Status, strings.TrimSpace(string(text)))
		case method == http.MethodGet && len(text) != probeSize:
			return fmt.Errorf("%d bytes for a range of %d", len(text), probeSize)
		}
		return nil
	}
	// The handshake comes first, so that its time is not the round trip's.
	if err = ask(http.MethodPost, nil, http.StatusNoContent); err == nil {
		start := time.Now()
		err = ask(http.MethodPost, make([]byte, probeSize), http.StatusNoContent)
		r.RoundTrip = time.Since(start)
	}
	if err == nil {
		err = ask(http.MethodGet, nil, http.StatusPartialContent)
	}
	if err != nil {
		return r, fmt.Errorf("probe %s: %w", p.Addr, err)
	}
	return r, nil
}

// bound keeps the segments of a connection small from its first packet on: this
// node's, and by what it offers the other's too.
func (p Probe) bound(network, _ string, raw syscall.RawConn) error {
	if p.Packet == 0 {
		return nil
	}
	headers := 40 // IPv4 and TCP; TCP's options count as segment
	if network == "tcp6" {
		headers = 60
	}
	var set error
	err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, p.Packet-headers)
	})
	return errors.Join(err, set)
}

// packetOf is the size of packets that the kernel holds possible on a connection's
// way.
func packetOf(conn net.Conn) int {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0
	}
	size := 0
	_ = raw.Control(func(fd uintptr) { // closed already: not known
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			size = int(info.Pmtu)
		}
	})
	return size
}

// ServeProbe is the other side: it takes in what it is sent, and answers a range of
// zeros.
func ServeProbe(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, probeSize)); err != nil {
			http.Error(w, "too much", http.StatusRequestEntityTooLarge)
			return
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, probeSize)))
}
