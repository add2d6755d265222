package swarm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/engine"
	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/peertls"
)

// roster is a membership that the test writes.
type roster struct {
	mu      sync.Mutex
	live    []members.Member
	changed chan struct{}
}

func newRoster() *roster { return &roster{changed: make(chan struct{})} }

func (r *roster) set(f func([]members.Member) []members.Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.live = f(slices.Clone(r.live))
	close(r.changed)
	r.changed = make(chan struct{})
}

// view is one node's view of the roster.
type view struct {
	*roster
	self members.Member
}

func (v view) Self() members.Member { return v.self }

func (v view) Live() []members.Member {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.live
}

func (v view) Changed() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.roster.changed
}

// testNode is a whole node but for containerd and the mirror.
type testNode struct {
	*Node
	id     string
	store  *chunker.Store
	engine *engine.Engine
	srv    *http.Server
	stop   context.CancelFunc
	done   chan struct{}
	wire   net.Listener
	kill   func()
}

type cluster struct {
	t      testing.TB
	roster *roster
	nodes  []*testNode
	log    zerolog.Logger
	ca     *peertls.CA // nil: plain
}

func newCluster(t testing.TB, n int, change ...func(*Config)) *cluster {
	c := &cluster{t: t, roster: newRoster(), log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)}
	for range n {
		c.add(change...)
	}
	return c
}

// newTLSCluster has mutual TLS on both ports.
func newTLSCluster(t testing.TB, n int) *cluster {
	c := newCluster(t, 0)
	ca, err := peertls.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c.ca = ca
	for range n {
		c.add()
	}
	return c
}

// credentials issues a certificate of ca to a node.
func credentials(t testing.TB, ca *peertls.CA, node string) *peertls.Credentials {
	t.Helper()
	cert, err := ca.Issue(node, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := peertls.WriteNode(dir, cert, false); err != nil {
		t.Fatal(err)
	}
	creds, err := peertls.Load(peertls.Config{Dir: dir, Cluster: "test", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return creds
}

func (c *cluster) add(change ...func(*Config)) *testNode {
	c.t.Helper()
	n := c.start(fmt.Sprintf("node%d", len(c.nodes)), change...)
	c.nodes = append(c.nodes, n)
	return n
}

// restart ends a node and starts one of the same name, with nothing.
func (c *cluster) restart(i int, change ...func(*Config)) {
	c.t.Helper()
	c.nodes[i].kill()
	c.nodes[i] = c.start(c.nodes[i].id, change...)
}

func (c *cluster) start(id string, change ...func(*Config)) *testNode {
	t := c.t
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	control, wire := listen(), listen()
	n := &testNode{id: id, done: make(chan struct{}), wire: wire}
	log := c.log.With().Str("node", n.id).Logger()
	var err error
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	}
	wireConfig := engine.Config{NodeID: n.id, Listener: wire, Log: log, Dial: dial}
	var client, server *tls.Config
	if c.ca != nil {
		creds := credentials(t, c.ca, n.id)
		client, server = creds.ClientConfig(), creds.ServerConfig("h2", "http/1.1")
		wireConfig.ServerTLS, wireConfig.ClientTLS = creds.ServerConfig(), client
	}
	n.store, err = chunker.Open(chunker.Options{Dir: filepath.Join(t.TempDir(), n.id), Log: log, OnChange: func(d digest.Digest, size int64, present bool) {
		n.Node.StoreChanged(d, size, present)
	}})
	if err != nil {
		t.Fatal(err)
	}
	n.engine, err = engine.New(wireConfig)
	if err != nil {
		t.Fatal(err)
	}
	m := members.Member{ID: n.id, Control: control.Addr().String(), Wire: wire.Addr().String(), Born: time.Now().UnixNano()}
	cfg := Config{
		Cluster: "test", Store: n.store, Members: view{c.roster, m}, Engine: n.engine, Log: log,
		TLS: client, Patience: 2 * time.Second, Linger: time.Second,
	}
	for _, f := range change {
		f(&cfg)
	}
	if n.Node, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	n.srv = &http.Server{Handler: n.Handler(), Protocols: new(http.Protocols)}
	n.srv.Protocols.SetHTTP1(true)
	n.srv.Protocols.SetHTTP2(true)
	n.srv.Protocols.SetUnencryptedHTTP2(true)
	if server != nil {
		n.srv.TLSConfig = server
		go func() { _ = n.srv.ServeTLS(control, "", "") }()
	} else {
		go func() { _ = n.srv.Serve(control) }()
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.stop = cancel
	go func() {
		defer close(n.done)
		_ = n.Run(ctx)
	}()
	c.roster.set(func(live []members.Member) []members.Member { return append(live, m) })
	n.kill = sync.OnceFunc(func() {
		c.roster.set(func(live []members.Member) []members.Member {
			return slices.DeleteFunc(live, func(x members.Member) bool { return x.ID == n.id })
		})
		_ = n.srv.Close()
		cancel()
		<-n.done
		_ = n.engine.Close()
		_ = n.store.Close()
	})
	t.Cleanup(n.kill)
	return n
}

// fakeOrigin is a registry's blob in memory that counts what leaves it, and
// misbehaves as told. The real client and registry are used by the mirror's
// tests and end to end.
type fakeOrigin struct {
	data    []byte
	sent    atomic.Int64
	noRange bool
	// rate in bytes per second over all readers; 0 is unlimited.
	rate int64
	fail atomic.Bool
	gate sync.Mutex
	// beside, if set, is an origin whose rate this one shares.
	beside *fakeOrigin
	// corrupt, if set, may change what is sent.
	corrupt func(off int64, p []byte)
}

func (o *fakeOrigin) Open(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if o.fail.Load() {
		return nil, fmt.Errorf("registry down: %w", ErrUnavailable)
	}
	if o.noRange && (off != 0 || n != int64(len(o.data))) {
		return nil, ErrNoRange
	}
	return &originReader{o: o, ctx: ctx, pos: off, r: io.NewSectionReader(bytes.NewReader(o.data), off, n)}, nil
}

type originReader struct {
	o   *fakeOrigin
	ctx context.Context
	pos int64
	r   io.Reader
}

func (r *originReader) Read(p []byte) (int, error) {
	if r.o.fail.Load() {
		return 0, fmt.Errorf("registry broke off: %w", ErrUnavailable)
	}
	if r.ctx.Err() != nil {
		return 0, r.ctx.Err()
	}
	p = p[:min(len(p), 64<<10)]
	n, err := r.r.Read(p)
	if r.o.corrupt != nil {
		r.o.corrupt(r.pos, p[:n])
	}
	r.pos += int64(n)
	r.o.sent.Add(int64(n))
	if r.o.rate > 0 {
		gate := &r.o.gate
		if r.o.beside != nil {
			gate = &r.o.beside.gate
		}
		gate.Lock()
		time.Sleep(time.Duration(n) * time.Second / time.Duration(r.o.rate))
		gate.Unlock()
	}
	return n, err
}

func (r *originReader) Close() error { return nil }

func randomBlob(t testing.TB, n int) ([]byte, digest.Digest) {
	p := make([]byte, n)
	if _, err := rand.Read(p); err != nil {
		t.Fatal(err)
	}
	return p, digest.FromBytes(p)
}

// read fetches the blob on a node and compares every byte.
func (n *testNode) read(ctx context.Context, d digest.Digest, want []byte, o Origin) (Stats, error) {
	dl, err := n.Fetch(ctx, Request{Digest: d, Size: int64(len(want)), Origin: o})
	if err != nil {
		return Stats{}, fmt.Errorf("%s: %w", n.id, err)
	}
	defer dl.Close()
	r := dl.NewReader(ctx, 0, int64(len(want)))
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		return dl.Stats(), fmt.Errorf("%s: after %d bytes: %w", n.id, len(got), err)
	}
	if !bytes.Equal(got, want) {
		return dl.Stats(), fmt.Errorf("%s: wrong bytes", n.id)
	}
	return dl.Stats(), nil
}

// readAll fetches the blob on all nodes at once.
func readAll(t testing.TB, nodes []*testNode, d digest.Digest, want []byte, o Origin) []Stats {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stats, errs := make([]Stats, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { stats[i], errs[i] = n.read(ctx, d, want, o) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return stats
}

func (o *fakeOrigin) copies() float64 { return float64(o.sent.Load()) / float64(len(o.data)) }

func TestColdClusterTakesOneCopy(t *testing.T) {
	c := newCluster(t, 6)
	data, d := randomBlob(t, 48<<20+12345)
	o := &fakeOrigin{data: data, rate: 48 << 20}
	for i, s := range readAll(t, c.nodes, d, data, o) {
		t.Logf("node %d: %+v", i, s)
	}
	if got := o.copies(); got > 1.02 {
		t.Errorf("%.3f copies left the registry, want 1", got)
	}
}

// TestLayersComeInOrder: two layers of an image that all nodes ask for at the same
// time share the registry's link, and the first one gets nearly all of it. Then the
// second one does.
func TestLayersComeInOrder(t *testing.T) {
	c := newCluster(t, 6)
	first, d1 := randomBlob(t, 24<<20)
	second, d2 := randomBlob(t, 24<<20)
	o1 := &fakeOrigin{data: first, rate: 32 << 20}
	o2 := &fakeOrigin{data: second, rate: 32 << 20, beside: o1}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var reads sync.WaitGroup
	errs := make(chan error, 2*len(c.nodes))
	for _, n := range c.nodes {
		for _, r := range []Request{
			{Digest: d2, Size: int64(len(second)), Origin: o2, After: []digest.Digest{d1}},
			{Digest: d1, Size: int64(len(first)), Origin: o1},
		} {
			dl, err := n.Fetch(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			reads.Go(func() {
				defer dl.Close()
				errs <- dl.Wait(ctx)
			})
		}
	}
	for o1.copies() < 1 && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if got := o2.copies(); got > 0.5 {
		t.Errorf("%.2f of the second layer had left the registry when the first one had", got)
	} else {
		t.Logf("%.2f of the second layer had left the registry when the first one had", got)
	}
	reads.Wait()
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := o1.copies() + o2.copies(); got > 2.04 {
		t.Errorf("%.3f copies of two layers left the registry", got)
	}
}

func TestLateNodeIsServedByHolders(t *testing.T) {
	c := newCluster(t, 3)
	data, d := randomBlob(t, 24<<20)
	o := &fakeOrigin{data: data}
	readAll(t, c.nodes, d, data, o)
	before := o.sent.Load()
	late := c.add()
	readAll(t, []*testNode{late}, d, data, nil)
	if o.sent.Load() != before {
		t.Error("the late node went to the registry")
	}
}

func TestRegistryWithoutRanges(t *testing.T) {
	c := newCluster(t, 4)
	data, d := randomBlob(t, 16<<20)
	o := &fakeOrigin{data: data, noRange: true, rate: 32 << 20}
	readAll(t, c.nodes, d, data, o)
	if got := o.copies(); got > 1.1 {
		t.Errorf("%.2f copies left a registry that ignores ranges, want 1", got)
	}
}

func TestSmallBlobIsFetchedOnce(t *testing.T) {
	c := newCluster(t, 6)
	data, d := randomBlob(t, 10_000)
	o := &fakeOrigin{data: data}
	readAll(t, c.nodes, d, data, o)
	if o.sent.Load() != int64(len(data)) {
		t.Errorf("%d bytes left the registry, want one copy of %d", o.sent.Load(), len(data))
	}
}
