package swarm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/engine"
	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// Membership is what the swarm needs to know about the cluster; see package
// members. Implementations are safe for concurrent use.
type Membership interface {
	// Self is this node.
	Self() members.Member
	// Live lists the live members, self included.
	Live() []members.Member
	// Changed is closed at the next change of Live.
	Changed() <-chan struct{}
}

// Config of a Node. Store, Members and Engine are required.
type Config struct {
	// Cluster id; it salts the torrents' identity.
	Cluster string
	// Store keeps the pieces of blobs in flight, and whole blobs until Local
	// has them.
	Store *chunker.Store
	// Local is where this node keeps blobs for good, containerd's content
	// store; nil without one.
	Local Content
	// Members is the cluster.
	Members Membership
	// Engine trades pieces.
	Engine *engine.Engine
	// TLS is the client side of the control plane's mutual TLS, of package
	// peertls; nil speaks plain HTTP to peers and believes the names they
	// give, for people who said that they want that.
	TLS *tls.Config
	// TagTTL is how long a resolved tag is served without asking upstream.
	// Default 10 s.
	TagTTL time.Duration
	// Patience is how long a download waits without a byte before it helps
	// itself from the origin. Default 5 s.
	Patience time.Duration
	// Linger is how long a download goes on after its last reader left, and
	// how long a whole blob is still traded with pullers that need it without
	// anything being asked for. Default 10 s: containerd comes back within
	// that after a cut connection.
	Linger time.Duration
	// Tracker tunes the lease decisions.
	Tracker tracker.Params

	Log        zerolog.Logger
	Registerer prometheus.Registerer
}

// Node is this node's part in the swarm. All methods are safe for concurrent
// use.
type Node struct {
	cfg     Config
	met     *metrics
	peers   *peerClient
	tracker *tracker.Tracker
	inv     *inventory
	tags    *tagCache
	small   singleflight.Group
	flights chan struct{} // holds one for each small blob under way
	spans   *spanCache
	// spanFlights are spans on their way.
	spanFlights singleflight.Group
	buffers     chunker.Buffers

	// life ends when Run ends; downloads outlive the requests that started
	// them, but not the node.
	life    context.Context
	endLife context.CancelFunc
	work    sync.WaitGroup

	mu        sync.Mutex
	closing   bool
	downloads map[digest.Digest]*download
	// suspects are nodes that vouched for wrong bytes, and until when they
	// are not believed.
	suspects map[string]time.Time
	// deaf are trackers that did not answer, and until when they are passed
	// over.
	deaf map[string]time.Time
}

// suspectFor is how long a node that vouched for wrong bytes is not believed:
// long enough to finish a rollout without it, short enough that one that only
// passed on in good faith what another gave it is soon of use again.
const suspectFor = 10 * time.Minute

// New returns a Node. Its Handler must be served on the control address and
// its Run be running before it is of use to others.
func New(c Config) (*Node, error) {
	if c.Store == nil || c.Members == nil || c.Engine == nil {
		return nil, errors.New("new swarm node: store, members and engine are required")
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.TagTTL, 10*time.Second)
	def(&c.Patience, 5*time.Second)
	def(&c.Linger, 10*time.Second)
	n := &Node{
		cfg: c, met: newMetrics(c.Registerer), tags: newTagCache(), spans: newSpanCache(),
		downloads: map[digest.Digest]*download{},
		suspects:  map[string]time.Time{}, deaf: map[string]time.Time{},
		flights: make(chan struct{}, smallFlights),
	}
	n.life, n.endLife = context.WithCancel(context.Background())
	n.peers = newPeerClient(c, c.Members.Self().ID, n.met.skew)
	n.tracker = tracker.New(tracker.Config{
		Params: c.Tracker, Live: n.live, Log: c.Log, Registerer: c.Registerer,
	})
	n.inv = newInventory(n)
	for _, e := range c.Store.Complete() {
		n.inv.stored(Held{Digest: e.Digest, Size: e.Size}, true)
	}
	return n, nil
}

// Run drives the tracker and the announcements until ctx ends, then hands over what
// the tracker knows, ends all downloads and waits for them.
func (n *Node) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.tracker.Run(ctx) })
	g.Go(func() error { return n.inv.run(ctx) })
	g.Go(func() error { return newHandover(n).run(ctx) })
	err := g.Wait()
	n.mu.Lock()
	n.closing = true
	n.mu.Unlock()
	n.endLife()
	n.work.Wait()
	n.peers.close()
	return err
}

// Handler serves the control plane to the other nodes.
func (n *Node) Handler() http.Handler { return n.handler() }

// Announce tells the cluster what appeared in, or vanished from, the local
// content. A blob that Local keeps is dropped from the piece store after dropAfter,
// so that no second copy stays.
func (n *Node) Announce(added []Held, removed []digest.Digest) {
	for _, h := range added {
		n.inv.local(h, true)
	}
	for _, d := range removed {
		n.inv.local(Held{Digest: d}, false)
	}
}

// StoreChanged tells the cluster that a whole blob appeared in, or vanished
// from, the piece store; it is meant for chunker.Options.OnChange.
func (n *Node) StoreChanged(d digest.Digest, size int64, present bool) {
	n.inv.stored(Held{Digest: d, Size: size}, present)
}

// Open opens a whole blob on this node: from the piece store, else from the
// local content.
func (n *Node) Open(ctx context.Context, d digest.Digest) (Reader, error) {
	if b, ok := n.cfg.Store.Get(d); ok {
		return storedBlob{b}, nil
	}
	if n.cfg.Local != nil {
		return n.cfg.Local.Open(ctx, d)
	}
	return nil, fmt.Errorf("open %s: %w", d, ErrNotFound)
}

// storedBlob is a pinned blob of the piece store as a Reader.
type storedBlob struct{ *chunker.Blob }

func (b storedBlob) Size() int64  { return b.Geometry().Size }
func (b storedBlob) Close() error { b.Release(); return nil }

// Locate tells how large a blob is, if any node knows, and how many nodes
// hold it whole. The error wraps ErrNotFound when nobody does.
func (n *Node) Locate(ctx context.Context, d digest.Digest) (size int64, holders int, err error) {
	size, nodes, err := n.holders(ctx, d)
	return size, len(nodes), err
}

// Pullers tells how many nodes pull a blob now, as far as its tracker knows.
func (n *Node) Pullers(ctx context.Context, d digest.Digest) (int, error) {
	ms := first(n.rank(d.String()), 1)
	if len(ms) == 0 {
		return 0, nil
	}
	if ms[0].ID == n.self() {
		return n.tracker.Pullers(d), nil
	}
	var a holdersAnswer
	if err := n.peers.call(ctx, ms[0], http.MethodGet, pathHolders+d.String(), nil, &a); err != nil {
		return 0, fmt.Errorf("ask who pulls %s: %w", d, err)
	}
	return a.Pullers, nil
}

// holders asks the digest's tracker, then its standby.
func (n *Node) holders(ctx context.Context, d digest.Digest) (int64, []string, error) {
	var last error
	for _, m := range first(n.rank(d.String()), 2) {
		var a holdersAnswer
		if m.ID == n.self() {
			a.Size, a.Nodes = n.tracker.Holders(d)
		} else if err := n.peers.call(ctx, m, http.MethodGet, pathHolders+d.String(), nil, &a); err != nil {
			last = err
			continue
		}
		if len(a.Nodes) > 0 {
			return a.Size, a.Nodes, nil
		}
	}
	if last != nil {
		return 0, nil, fmt.Errorf("locate %s: %w", d, last)
	}
	return 0, nil, fmt.Errorf("locate %s: %w", d, ErrNotFound)
}

// rangeHolders are the nodes that have a range of a blob, as far as its tracker
// knows: those that hold the whole, and those that pull it and have come so far.
func (n *Node) rangeHolders(ctx context.Context, d digest.Digest, off, length int64) []string {
	for _, m := range first(n.rank(d.String()), 2) {
		var a holdersAnswer
		if m.ID == n.self() {
			_, a.Nodes = n.tracker.Holders(d)
			a.Havers = n.tracker.Havers(d, off, length)
		} else if err := n.peers.call(ctx, m, http.MethodGet, fmt.Sprintf("%s%s?off=%d&n=%d", pathHolders, d, off, length), nil, &a); err != nil {
			n.cfg.Log.Debug().Str("node", m.ID).Err(err).Msg("cannot ask who has a part of a blob")
			continue
		}
		if nodes := append(a.Nodes, a.Havers...); len(nodes) > 0 {
			return nodes
		}
	}
	return nil
}

func (n *Node) self() string { return n.cfg.Members.Self().ID }

func (n *Node) live(node string) bool { _, ok := n.member(node); return ok }

func (n *Node) member(id string) (members.Member, bool) {
	for _, m := range n.cfg.Members.Live() {
		if m.ID == id {
			return m, true
		}
	}
	return members.Member{}, false
}

// ranks is how many members of a ranking are ever asked.
const ranks = 4

// rank is the beginning of the ranking of the live members for key, with those
// that recently did not answer last.
func (n *Node) rank(key string) []members.Member {
	n.mu.Lock()
	defer n.mu.Unlock()
	ranked := members.Top(key, ranks+len(n.deaf), n.cfg.Members.Live())
	if len(n.deaf) == 0 {
		return ranked
	}
	now := time.Now()
	good, bad := make([]members.Member, 0, len(ranked)), []members.Member(nil)
	for _, m := range ranked {
		if until, ok := n.deaf[m.ID]; ok && now.Before(until) {
			bad = append(bad, m)
		} else {
			good = append(good, m)
		}
	}
	return append(good, bad...)
}

// markDeaf passes a tracker over for a while. Others notice on their own: each
// node's own failure to reach it is what counts.
func (n *Node) markDeaf(id string, err error) {
	if id == n.self() {
		return
	}
	n.cfg.Log.Debug().Str("node", id).Err(err).Msg("node does not answer, asking the next in rank")
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for k, until := range n.deaf {
		if now.After(until) {
			delete(n.deaf, k)
		}
	}
	n.deaf[id] = now.Add(3 * time.Second)
}

func (n *Node) suspect(id string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	until, ok := n.suspects[id]
	return ok && time.Now().Before(until)
}

func (n *Node) addSuspect(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.suspects[id] = time.Now().Add(suspectFor)
}

func first[T any](s []T, n int) []T { return s[:min(n, len(s))] }
