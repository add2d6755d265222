package swarm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/peertls"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

const (
	// callTimeout bounds a control request. A member that takes longer is
	// as good as dead: gossip will say so in a few seconds.
	callTimeout = 2 * time.Second
	// dialTimeout bounds the connection to a peer.
	dialTimeout = 2 * time.Second
	// pingAfter and pingTimeout find a peer that vanished without a FIN
	// within about 6 s, on both ends of a tracker stream.
	pingAfter   = 3 * time.Second
	pingTimeout = 3 * time.Second
	// idleBody is how long a blob transfer from a peer may pause.
	idleBody = 5 * time.Second
	// peerConns is how many idle transfer connections to one peer are kept;
	// the tracker gives a puller at most six leases at a time.
	peerConns = 6
)

// peerClient speaks to the control plane of the other nodes. Control messages
// and tracker streams share one HTTP/2 connection per node; blobs go over
// HTTP/1.1 connections of their own, where no flow control of Go's HTTP/2
// slows them and no transfer delays a message.
type peerClient struct {
	control, data *http.Client
	scheme        string
	self          string
	clocks        clocks
}

func newPeerClient(c Config, self string, skew prometheus.Gauge) *peerClient {
	dialer := &net.Dialer{Timeout: dialTimeout}
	control := &http.Transport{
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: dialTimeout,
		Protocols:           new(http.Protocols),
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		IdleConnTimeout:     time.Minute,
	}
	data := &http.Transport{
		DialContext:           dialer.DialContext,
		TLSHandshakeTimeout:   dialTimeout,
		ResponseHeaderTimeout: idleBody,
		Protocols:             new(http.Protocols),
		MaxIdleConnsPerHost:   peerConns,
		IdleConnTimeout:       30 * time.Second,
		ReadBufferSize:        64 << 10,
		DisableCompression:    true,
	}
	data.Protocols.SetHTTP1(true)
	scheme := "http"
	if c.TLS != nil {
		scheme = "https"
		control.TLSClientConfig = c.TLS.Clone()
		data.TLSClientConfig = c.TLS.Clone()
		control.TLSClientConfig.NextProtos = nil
		data.TLSClientConfig.NextProtos = []string{"http/1.1"}
		control.Protocols.SetHTTP2(true)
	} else {
		control.Protocols.SetUnencryptedHTTP2(true)
	}
	return &peerClient{
		control: &http.Client{Transport: control}, data: &http.Client{Transport: data},
		scheme: scheme, self: self, clocks: clocks{gauge: skew},
	}
}

func (p *peerClient) close() {
	p.control.CloseIdleConnections()
	p.data.CloseIdleConnections()
}

func (p *peerClient) request(ctx context.Context, m members.Member, method, path string, body io.Reader) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.scheme+"://"+m.Control+path, body)
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w", m.ID, err)
	}
	req.Header.Set(nodeHeader, p.self)
	return req, nil
}

// do sends a request and makes sure that the answer comes from m.
func (p *peerClient) do(c *http.Client, req *http.Request, m members.Member) (*http.Response, error) {
	resp, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w: %w", m.ID, ErrUnavailable, err)
	}
	if resp.TLS != nil {
		if id, err := peertls.PeerID(*resp.TLS); err != nil || !peertls.Speaks(id, m.ID) {
			resp.Body.Close()
			return nil, fmt.Errorf("ask node %s: %w: %s answers as %q", m.ID, ErrUnavailable, m.Control, id)
		}
	}
	p.clocks.compare(resp.Header.Get("Date"), time.Now())
	if resp.StatusCode/100 != 2 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		kind := ErrUnavailable
		if resp.StatusCode == http.StatusNotFound {
			kind = ErrNotFound
		}
		return nil, fmt.Errorf("ask node %s: %w: %s: %.200q", m.ID, kind, resp.Status, text)
	}
	return resp, nil
}

// call makes one bounded control request.
func (p *peerClient) call(ctx context.Context, m members.Member, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode message: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := p.request(ctx, m, method, path, body)
	if err != nil {
		return err
	}
	resp, err := p.do(p.control, req, m)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(out); err != nil {
		return fmt.Errorf("ask node %s: decode answer: %w", m.ID, err)
	}
	return nil
}

// blob opens [off, off+n) of a blob that m holds; n < 0 means all of it. The
// body fails when nothing comes for idleBody.
func (p *peerClient) blob(ctx context.Context, m members.Member, d digest.Digest, off, n int64) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := p.request(ctx, m, http.MethodGet, pathBlobs+d.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if n >= 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	}
	resp, err := p.do(p.data, req, m)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if n >= 0 && (resp.StatusCode != http.StatusPartialContent || resp.ContentLength != n) {
		cancel(nil)
		resp.Body.Close()
		return nil, fmt.Errorf("ask node %s: %w: %s with %d bytes for a range of %d", m.ID, ErrUnavailable, resp.Status, resp.ContentLength, n)
	}
	b := &idleReader{ReadCloser: resp.Body, cancel: cancel, idle: idleBody}
	b.timer = time.AfterFunc(idleBody, func() { cancel(errIdle) })
	return b, nil
}

var errIdle = errors.New("no bytes from the peer")

// idleReader cancels a transfer that pauses too long.
type idleReader struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
}

func (r *idleReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.timer.Reset(r.idle)
	return n, err
}

func (r *idleReader) Close() error {
	r.timer.Stop()
	r.cancel(nil)
	return r.ReadCloser.Close()
}

// conn is a session with a tracker, this node's own or another's. Send and
// Recv may run side by side; Close ends both. CloseSend says that nothing more
// will be sent; the tracker then ends the session, and Recv with it.
type conn interface {
	Send(u tracker.Up) error
	CloseSend()
	Recv(ctx context.Context) (tracker.Down, error)
	Close()
}

// localConn is a session with this node's own tracker.
type localConn struct{ s *tracker.Session }

func (c localConn) Send(u tracker.Up) error { return c.s.Handle(u) }

func (c localConn) Recv(ctx context.Context) (tracker.Down, error) {
	d, ok := c.s.Next(ctx)
	if !ok {
		return d, io.EOF
	}
	return d, nil
}

func (c localConn) CloseSend() { c.s.Close() }
func (c localConn) Close()     { c.s.Close() }

// remoteConn is a session over the network.
type remoteConn struct {
	w      *io.PipeWriter
	enc    *json.Encoder
	body   io.ReadCloser
	dec    *tracker.Decoder[tracker.Down]
	cancel context.CancelFunc
}

// track opens a tracker session on m with a hello. The call returns when the
// tracker has accepted it.
func (p *peerClient) track(ctx context.Context, m members.Member, hello tracker.Up) (conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	req, err := p.request(ctx, m, http.MethodPost, pathTrack, pr)
	if err != nil {
		cancel()
		return nil, err
	}
	enc := json.NewEncoder(pw)
	go func() {
		// Fails only when the request fails, which do reports.
		_ = enc.Encode(hello)
	}()
	bound := time.AfterFunc(callTimeout, cancel)
	resp, err := p.do(p.control, req, m)
	if err != nil || !bound.Stop() {
		cancel()
		_ = pw.CloseWithError(io.ErrClosedPipe)
		if err == nil {
			resp.Body.Close()
			err = fmt.Errorf("ask node %s: %w: no answer in %v", m.ID, ErrUnavailable, callTimeout)
		}
		return nil, err
	}
	return &remoteConn{w: pw, enc: enc, body: resp.Body, dec: tracker.NewDecoder[tracker.Down](resp.Body), cancel: cancel}, nil
}

func (c *remoteConn) Send(u tracker.Up) error {
	for _, part := range u.Split() {
		if err := c.enc.Encode(part); err != nil {
			return fmt.Errorf("send to tracker: %w", err)
		}
	}
	return nil
}

// Recv is ended by the context that track was called with, or by Close.
func (c *remoteConn) Recv(context.Context) (tracker.Down, error) { return c.dec.Next() }

// CloseSend ends the request's body; a pipe's Close does not fail.
func (c *remoteConn) CloseSend() { _ = c.w.Close() }

func (c *remoteConn) Close() {
	c.CloseSend()
	_ = c.body.Close()
	c.cancel()
}
