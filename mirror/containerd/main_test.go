package containerd

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	eventsapi "github.com/containerd/containerd/api/services/events/v1"
	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/events/exchange"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	eventsserver "github.com/containerd/containerd/v2/plugins/services/events"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	bolt "go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/shoal-dev/shoal/swarm"
)

// TestMain looks for leaks. containerd's event exchange cannot be closed.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/docker/go-events.(*Broadcaster).run"))
}

// patience bounds every wait of the tests.
const patience = 20 * time.Second

// ctrd is a containerd in this process: the real content store, metadata
// database with garbage collection, event exchange and gRPC services, without
// the daemon around them.
type ctrd struct {
	t            testing.TB
	socket, root string
	db           *metadata.DB
	exchange     *exchange.Exchange
	publisher    *publisher
	// exported is what introspection tells; set before start.
	exported string
	// slow is how long each call of one answer takes; set before start.
	slow   time.Duration
	server *grpc.Server
	served sync.WaitGroup
}

// publisher passes events on unless their topic is blocked.
type publisher struct {
	to *exchange.Exchange

	mu      sync.Mutex
	blocked func(topic string) bool
}

func (p *publisher) Publish(ctx context.Context, topic string, e events.Event) error {
	p.mu.Lock()
	blocked := p.blocked != nil && p.blocked(topic)
	p.mu.Unlock()
	if blocked {
		return nil
	}
	return p.to.Publish(ctx, topic, e)
}

func (p *publisher) block(f func(topic string) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blocked = f
}

// deaf blocks all events, old those that containerd 2.0 and before do not have.
func deaf(string) bool      { return true }
func old(topic string) bool { return topic == "/content/create" }
func open(string) bool      { return false }

// newCtrd does not listen yet.
func newCtrd(t testing.TB) *ctrd {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctrd") // the name of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &ctrd{t: t, socket: filepath.Join(dir, "s"), root: filepath.Join(dir, "content"), exchange: exchange.NewExchange()}
	c.exported = c.root
	c.publisher = &publisher{to: c.exchange}
	store, err := local.NewStore(c.root)
	if err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	c.db = metadata.NewDB(db, store, nil, metadata.WithEventsPublisher(c.publisher))
	if err := c.db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.stop()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// start serves the socket.
func (c *ctrd) start() *ctrd {
	c.t.Helper()
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		time.Sleep(c.slow)
		return h(ctx, req)
	}))
	contentapi.RegisterContentServer(c.server, contentserver.New(c.db.ContentStore()))
	eventsapi.RegisterEventsServer(c.server, eventsserver.NewService(c.exchange))
	namespacesapi.RegisterNamespacesServer(c.server, namespaceServer{db: c.db})
	introspectionapi.RegisterIntrospectionServer(c.server, introspectionServer{root: c.exported})
	c.served.Go(func() { _ = c.server.Serve(l) })
	return c
}

// stop breaks all connections, as a killed daemon does.
func (c *ctrd) stop() {
	if c.server != nil {
		c.server.Stop()
		c.served.Wait()
		c.server = nil
	}
}

// namespaceServer and introspectionServer are what containerd's own, which can
// be had from its plugin registry only, do for us.
type namespaceServer struct {
	namespacesapi.UnimplementedNamespacesServer
	db *metadata.DB
}

func (s namespaceServer) List(ctx context.Context, _ *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	var answer namespacesapi.ListNamespacesResponse
	err := s.db.View(func(tx *bolt.Tx) error {
		names, err := metadata.NewNamespaceStore(tx).List(ctx)
		for _, n := range names {
			answer.Namespaces = append(answer.Namespaces, &namespacesapi.Namespace{Name: n})
		}
		return err
	})
	return &answer, err
}

type introspectionServer struct {
	introspectionapi.UnimplementedIntrospectionServer
	root string
}

func (s introspectionServer) Plugins(context.Context, *introspectionapi.PluginsRequest) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{
		{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": s.root}},
	}}, nil
}

// data makes content that nothing else has.
func data(size int) []byte {
	p := make([]byte, size)
	r := rand.NewChaCha8([32]byte(bytes.Repeat([]byte{byte(rand.Uint32()), byte(rand.Uint32())}, 16)))
	_, _ = r.Read(p) // never fails
	return p
}

func in(t testing.TB, namespace string) context.Context {
	return namespaces.WithNamespace(t.Context(), namespace)
}

// ingest writes content without committing it.
func (c *ctrd) ingest(namespace string, p []byte) content.Writer {
	c.t.Helper()
	d := digest.FromBytes(p)
	w, err := c.db.ContentStore().Writer(in(c.t, namespace),
		content.WithRef(namespace+d.String()), content.WithDescriptor(ocispec.Descriptor{Digest: d, Size: int64(len(p))}))
	if err != nil {
		c.t.Fatal(err)
	}
	if st, err := w.Status(); err != nil || st.Offset == 0 {
		if _, err := w.Write(p); err != nil {
			c.t.Fatal(err)
		}
	}
	return w
}

// put commits content. Without labels nothing refers to it: it falls to the
// next garbage collection.
func (c *ctrd) put(namespace string, p []byte, labels map[string]string) digest.Digest {
	c.t.Helper()
	w := c.ingest(namespace, p)
	d := digest.FromBytes(p)
	if err := w.Commit(in(c.t, namespace), int64(len(p)), d, content.WithLabels(labels)); err != nil {
		c.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		c.t.Fatal(err)
	}
	return d
}

// keep is the label that keeps content from being collected.
var keep = map[string]string{"containerd.io/gc.root": "2026-01-01T00:00:00Z"}

func (c *ctrd) remove(namespace string, d digest.Digest) {
	c.t.Helper()
	if err := c.db.ContentStore().Delete(in(c.t, namespace), d); err != nil {
		c.t.Fatal(err)
	}
}

func (c *ctrd) collect() {
	c.t.Helper()
	if _, err := c.db.GarbageCollect(c.t.Context()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *ctrd) publish(namespace, topic string, e events.Event) {
	c.t.Helper()
	if err := c.exchange.Publish(in(c.t, namespace), topic, e); err != nil {
		c.t.Fatal(err)
	}
}

func (c *ctrd) path(d digest.Digest) string {
	return filepath.Join(c.root, "blobs", "sha256", d.Encoded())
}

// cluster is who hears of changes.
type cluster struct {
	t       testing.TB
	mu      sync.Mutex
	held    map[digest.Digest]int64
	calls   int
	changed chan struct{}
}

func newCluster(t testing.TB) *cluster {
	return &cluster{t: t, held: map[digest.Digest]int64{}, changed: make(chan struct{})}
}

func (c *cluster) hear(added []swarm.Held, removed []digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(added)+len(removed) == 0 {
		c.t.Error("told of no change")
	}
	for _, d := range removed {
		if _, ok := c.held[d]; !ok {
			c.t.Errorf("%s withdrawn and was not there", d)
		}
		delete(c.held, d)
	}
	for _, h := range added {
		c.held[h.Digest] = h.Size
	}
	c.calls++
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *cluster) state() (map[digest.Digest]int64, int, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.held), c.calls, c.changed
}

// wait until the cluster knows these blobs and no others.
func (c *cluster) wait(want ...digest.Digest) {
	c.t.Helper()
	timeout := time.After(patience)
	for {
		held, _, changed := c.state()
		missing := 0
		for _, d := range want {
			if _, ok := held[d]; !ok {
				missing++
			}
		}
		if missing == 0 && len(held) == len(want) {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			c.t.Fatalf("the cluster knows %v, want %v", held, want)
		}
	}
}

// start runs a Store until the test ends.
func start(t testing.TB, cfg Config, tune ...func(*pace)) (*Store, *cluster) {
	t.Helper()
	cfg.Log = zerolog.New(zerolog.NewTestWriter(t))
	if cfg.Registerer == nil {
		cfg.Registerer = prometheus.NewPedanticRegistry()
	}
	if cfg.Reconcile == 0 {
		cfg.Reconcile = time.Hour // what a test looks at must not be found this way
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.pace.settle, s.pace.minGap, s.pace.followUp = 20*time.Millisecond, 10*time.Millisecond, time.Hour
	for _, f := range tune {
		f(&s.pace)
	}
	cl := newCluster(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, cl.hear) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s, cl
}

// eventually polls what nobody tells.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func ready(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, "ready", s.Ready)
}
