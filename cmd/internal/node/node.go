package node

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/mirror"
	"github.com/shoal-dev/shoal/mirror/containerd"
	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
	"github.com/shoal-dev/shoal/swarm/engine"
	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/peertls"
)

// dialTimeout bounds the connection to a peer's wire port. Members are alive
// by gossip, so one that does not answer for that long has just died.
const dialTimeout = 5 * time.Second

// Addresses are where a node listens, ports resolved.
type Addresses struct {
	Mirror, Control, Wire, Gossip string
	// Metrics is empty when there is no such listener.
	Metrics string
}

// Node is one Shoal node. Make it with New and call Run once, or Close.
type Node struct {
	cfg      Config
	registry *prometheus.Registry
	health   health
	// responses are the mirror's.
	responses underway
	tracer    trace.Tracer // nil without traces

	creds      *peertls.Credentials // nil without TLS
	store      *chunker.Store
	members    *members.Members
	engine     *engine.Engine
	containerd *containerd.Store // nil without one
	swarm      *swarm.Node
	upstream   *upstream.Client
	mirror     *mirror.Mirror

	mirrorLn, controlLn, wireLn, metricsLn net.Listener
	// undo closes what New has opened, in the order of opening.
	undo []func() error
}

// New opens a node: files, sockets and all. Nothing is answered before Run,
// except gossip.
func New(c Config) (_ *Node, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Drain == 0 {
		c.Drain = defaultDrain
	}
	n := &Node{cfg: c, registry: prometheus.NewRegistry()}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
		}
	}()
	n.registry.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(c.Version),
	)
	for _, step := range []func() error{
		n.openTraces, n.openCredentials, n.listen, n.openMembers, n.openContent, n.openSwarm, n.openMirror,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// Close gives up a node that was not run.
func (n *Node) Close() error {
	var errs []error
	for i := len(n.undo) - 1; i >= 0; i-- {
		errs = append(errs, n.undo[i]())
	}
	n.undo = nil
	return errors.Join(errs...)
}

// Addresses are where the node listens.
func (n *Node) Addresses() Addresses {
	a := Addresses{
		Mirror: n.mirrorLn.Addr().String(), Control: n.controlLn.Addr().String(),
		Wire: n.wireLn.Addr().String(), Gossip: n.members.Addr(),
	}
	if n.metricsLn != nil {
		a.Metrics = n.metricsLn.Addr().String()
	}
	return a
}

func (n *Node) openCredentials() error {
	c := n.cfg
	if c.InsecurePeers {
		c.Log.Warn().Msg("insecure-peers: other nodes are not authenticated and nothing is encrypted: anyone on this network can feed this node wrong bytes and read what it has")
		return nil
	}
	creds, err := peertls.Load(peertls.Config{
		Dir: c.CertsDir, Cluster: c.Cluster, Log: part(c.Log, "peertls"), Registerer: n.registry,
	})
	if err != nil {
		return fmt.Errorf("certs-dir: %w", err)
	}
	if !peertls.Speaks(creds.ID(), c.Name) {
		return fmt.Errorf("certs-dir: the certificate in %s is for node %q, and this is node %q: issue one with 'shoal certs node %s', or set node", c.CertsDir, creds.ID(), c.Name, c.Name)
	}
	n.creds = creds
	return nil
}

// listen opens the listeners before anything tells others about their ports.
func (n *Node) listen() error {
	for _, l := range []struct {
		setting, addr string
		to            *net.Listener
	}{
		{"mirror-addr", n.cfg.MirrorAddr, &n.mirrorLn},
		{"control-addr", n.cfg.ControlAddr, &n.controlLn},
		{"wire-addr", n.cfg.WireAddr, &n.wireLn},
		{"metrics-addr", n.cfg.MetricsAddr, &n.metricsLn},
	} {
		if l.addr == "" {
			continue
		}
		ln, err := net.Listen("tcp", l.addr)
		if err != nil {
			return fmt.Errorf("%s: %w", l.setting, err)
		}
		*l.to = ln
		n.undo = append(n.undo, ignoreClosed(ln.Close))
	}
	return nil
}

func (n *Node) openMembers() error {
	c := n.cfg
	m := members.Config{
		Cluster: c.Cluster, NodeID: c.Name, BindAddr: c.GossipAddr, AdvertiseAddr: c.AdvertiseAddr,
		ControlPort: port(n.controlLn), WirePort: port(n.wireLn),
		Zone: c.Zone, Join: c.Join, Insecure: c.InsecurePeers,
		Log: part(c.Log, "members"), Registerer: n.registry,
	}
	if n.creds != nil {
		m.SecretKey = n.creds.GossipKey()
	}
	ms, err := members.New(m)
	if err != nil {
		return fmt.Errorf("gossip: %w", err)
	}
	n.members = ms
	n.undo = append(n.undo, ms.Close)
	return nil
}

// openContent opens the places where blobs are.
func (n *Node) openContent() error {
	c := n.cfg
	store, err := chunker.Open(chunker.Options{
		Dir: storeDir(c.DataDir), Capacity: c.CacheSize, Reserve: c.DiskReserve,
		OnChange: func(d digest.Digest, size int64, present bool) {
			// Nothing changes before the swarm exists: it is the only one
			// to write into the store.
			n.swarm.StoreChanged(d, size, present)
		},
		Log: part(c.Log, "chunker"), Registerer: n.registry,
	})
	if err != nil {
		return fmt.Errorf("data-dir: %w", err)
	}
	n.store = store
	n.undo = append(n.undo, store.Close)
	if c.ContainerdSocket == "" {
		c.Log.Info().Msg("no containerd-socket: blobs are kept in the piece store alone")
		return nil
	}
	n.containerd, err = containerd.New(containerd.Config{
		Socket: c.ContainerdSocket, Root: c.ContainerdRoot,
		Log: part(c.Log, "containerd"), Registerer: n.registry,
	})
	if err != nil {
		return fmt.Errorf("containerd-socket: %w", err)
	}
	n.health.containerd = n.containerd
	n.undo = append(n.undo, n.containerd.Close)
	return nil
}

func (n *Node) openSwarm() error {
	c := n.cfg
	dial := (&net.Dialer{Timeout: dialTimeout}).DialContext
	wire := engine.Config{
		NodeID: c.Name, Listener: n.wireLn, Nodes: n.nodes,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return dial(ctx, "tcp", addr) },
		Log:  part(c.Log, "engine"), Registerer: n.registry,
	}
	var control *tls.Config
	if n.creds != nil {
		control = n.creds.ClientConfig()
		wire.ServerTLS, wire.ClientTLS = n.creds.ServerConfig(), n.creds.ClientConfig()
	}
	eng, err := engine.New(wire)
	if err != nil {
		return fmt.Errorf("peer wire: %w", err)
	}
	n.engine = eng
	n.undo = append(n.undo, eng.Close)
	sc := swarm.Config{
		Cluster: c.Cluster, Store: n.store, Members: n.members, Engine: eng, TLS: control,
		TagTTL: c.TagTTL, Log: part(c.Log, "swarm"), Registerer: n.registry,
	}
	if n.containerd != nil { // a nil *Store in the interface would not be nil
		sc.Local = n.containerd
	}
	n.swarm, err = swarm.New(sc)
	return err
}

// nodes are the names of the cluster's nodes.
func (n *Node) nodes() []string {
	var names []string
	for _, m := range n.members.Live() {
		names = append(names, m.ID)
	}
	return names
}

func (n *Node) openMirror() error {
	c := n.cfg
	up, err := NewUpstream(c, n.registry)
	if err != nil {
		return err
	}
	n.upstream = up
	n.undo = append(n.undo, func() error { up.Close(); return nil })
	auth := make(map[string]mirror.Authorization, len(c.Authorization))
	for host, whose := range c.Authorization {
		auth[host] = mirror.Authorization(whose)
	}
	m, err := mirror.New(mirror.Config{
		Swarm: n.swarm, Upstream: mirror.FromClient(up),
		Registries: c.Registries, DefaultRegistry: c.DefaultRegistry, Hold: c.HoldUntilVerified,
		Authorization: auth, GrantTTL: c.GrantTTL, Outage: mirror.Outage(c.OnOutage), OutageGrace: c.OutageGrace,
		Tracer: n.tracer, Log: part(c.Log, "mirror"), Registerer: n.registry,
	})
	if err != nil {
		return fmt.Errorf("registries: %w", err)
	}
	n.mirror = m
	n.undo = append(n.undo, func() error { m.Close(); return nil })
	return nil
}

// NewUpstream returns the client of registries that a node with this configuration
// has. Close it when it is no longer used.
func NewUpstream(c Config, r prometheus.Registerer) (*upstream.Client, error) {
	up, err := upstream.New(upstream.Config{
		Insecure: c.InsecureRegistries, CAs: c.RegistryCAs, DockerConfig: c.DockerConfig,
		Proxy: http.ProxyFromEnvironment, UserAgent: userAgent(c.Version),
		Log: part(c.Log, "upstream"), Registerer: r,
	})
	if err != nil {
		return nil, fmt.Errorf("registries: %w", err)
	}
	return up, nil
}

func userAgent(version string) string {
	if version == "" {
		return "shoal"
	}
	return "shoal/" + version
}

// port is a TCP listener's.
func port(l net.Listener) int {
	_, p, _ := net.SplitHostPort(l.Addr().String()) // a net.Addr is well formed
	n, _ := strconv.Atoi(p)
	return n
}

func ignoreClosed(f func() error) func() error {
	return func() error {
		if err := f(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}
