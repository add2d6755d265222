package tracker

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/chunker"
)

// InventoryTTL is how long an announcement counts without refresh. Nodes
// refresh every third of it.
const InventoryTTL = 15 * time.Minute

// Config of a Tracker.
type Config struct {
	Params Params
	// Live says whether a node is a live member; the holders that died are
	// not handed out. It must be fast.
	Live       func(node string) bool
	Log        zerolog.Logger
	Registerer prometheus.Registerer
}

// Tracker serves the digests that rendezvous gives to this node. It is safe
// for concurrent use.
type Tracker struct {
	cfg Config
	met *metrics

	mu     sync.Mutex // taken before a swarm's
	inv    *inventory
	swarms map[key]*swarm
}

type key struct {
	digest digest.Digest
	size   int64
}

// machine is what Large and Small have in common.
type machine interface {
	Join(h *Hello, now time.Time) []Out
	Handle(node string, u Up, now time.Time) []Out
	Leave(node string, now time.Time) []Out
	SetHolders(nodes []string, now time.Time) []Out
	Tick(now time.Time) []Out
	Pieces() int
	Idle() bool
}

type swarm struct {
	mu       sync.Mutex
	m        machine
	sessions map[string]*Session
	// fresh: no node had the blob when the first came for it, and none has told yet
	// that it is whole. Of the tracker's mu. That the inventory has no holder says
	// less: a node may announce the blob before it tells its session.
	fresh bool
}

// Session is one puller's stream, as the tracker sees it.
type Session struct {
	t    *Tracker
	sw   *swarm
	key  key
	node string
	box  *Outbox[Down, *Down]
}

// New returns a Tracker; Run must be called for leases to expire.
func New(cfg Config) *Tracker {
	return &Tracker{cfg: cfg, met: newMetrics(cfg.Registerer), inv: newInventory(InventoryTTL), swarms: map[key]*swarm{}}
}

// Run drives the clock until ctx ends.
func (t *Tracker) Run(ctx context.Context) error {
	looks := Looks{Every: TickEvery}
	tick := time.NewTicker(looks.Every)
	defer tick.Stop()
	hold := time.NewTicker(time.Second)
	defer hold.Stop()
	sweep := time.NewTicker(InventoryTTL / 15)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if !looks.Skip(time.Now()) {
				t.tick()
			}
		case <-hold.C:
			t.refresh()
		case <-sweep.C:
			t.mu.Lock()
			t.inv.expire(time.Now())
			t.met.inventory.Set(float64(len(t.inv.blobs)))
			t.mu.Unlock()
		}
	}
}

func (t *Tracker) tick() {
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.swarms))
	t.mu.Unlock()
	for _, sw := range all {
		sw.mu.Lock()
		sw.deliver(sw.m.Tick(time.Now()))
		sw.mu.Unlock()
	}
}

// refresh has the swarms let go of holders that left the cluster.
func (t *Tracker) refresh() {
	t.mu.Lock()
	all := maps.Clone(t.swarms)
	t.mu.Unlock()
	t.tell(all)
}

// tell has swarms hear who holds their blobs.
func (t *Tracker) tell(all map[key]*swarm) {
	for k, sw := range all {
		t.mu.Lock()
		holders := t.lock(k, sw)
		t.mu.Unlock()
		sw.deliver(sw.m.SetHolders(holders, time.Now()))
		sw.mu.Unlock()
	}
}

// lock locks a swarm and returns who holds its blob. Tracker.mu is held until the
// swarm is locked, so that what the inventory hears later reaches the swarm later.
func (t *Tracker) lock(k key, sw *swarm) (holders []string) {
	_, holders = t.inv.holders(k.digest, t.cfg.Live)
	sw.mu.Lock()
	return holders
}

// Join opens a session for a checked hello. The first messages are in the
// session's outbox when Join returns.
func (t *Tracker) Join(h *Hello) (*Session, error) {
	k := key{h.Digest, h.Size}
	sw, holders, err := t.swarm(k)
	if err != nil {
		return nil, err
	}
	defer sw.mu.Unlock()
	s := &Session{t: t, sw: sw, key: k, node: h.Node, box: NewOutbox[Down]()}
	if old := sw.sessions[h.Node]; old != nil {
		old.box.Close()
	}
	sw.sessions[h.Node] = s
	now := time.Now()
	out := sw.m.SetHolders(holders, now)
	sw.deliver(append(out, sw.m.Join(h, now)...))
	return s, nil
}

// swarm returns a blob's swarm, locked, and who holds the blob.
func (t *Tracker) swarm(k key) (*swarm, []string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sw := t.swarms[k]; sw != nil {
		return sw, t.lock(k, sw), nil
	}
	sw := &swarm{sessions: map[string]*Session{}, fresh: t.inv.blobs[k.digest] == nil}
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	if k.size == 0 {
		sw.m = NewSmall(t.cfg.Params, rng)
	} else {
		g, err := chunker.GeometryOf(k.size)
		if err != nil {
			return nil, nil, fmt.Errorf("track %s: %w", k.digest, err)
		}
		sw.m = NewLarge(t.cfg.Params, g, rng)
	}
	t.swarms[k] = sw
	t.met.swarms.Set(float64(len(t.swarms)))
	return sw, t.lock(k, sw), nil
}

// deliver puts messages into the outboxes; sw.mu is held, which keeps their
// order.
func (sw *swarm) deliver(out []Out) {
	pace := PaceDown(len(sw.sessions))
	for _, o := range out {
		if s := sw.sessions[o.To]; s != nil {
			s.box.SetPace(pace)
			s.box.Put(o.Down)
		}
	}
}

// Handle takes in one message of the session's puller. An error wraps
// ErrMessage and means that the session should be closed.
func (s *Session) Handle(u Up) error {
	if err := u.Check(s.sw.m.Pieces()); err != nil {
		return err
	}
	now := time.Now()
	if u.Whole {
		s.t.mu.Lock()
		size := max(u.WholeSize, s.key.size)
		s.t.inv.add(s.key.digest, size, s.node, now)
		if s.sw.fresh {
			s.sw.fresh = false
			s.t.met.fresh.Add(float64(size))
		}
		s.t.mu.Unlock()
	}
	s.sw.mu.Lock()
	defer s.sw.mu.Unlock()
	if s.sw.sessions[s.node] != s {
		return nil // a newer session of the same node has taken over
	}
	for _, d := range u.Disputes {
		s.t.met.disputes.Inc()
		s.t.cfg.Log.Warn().Str("digest", s.key.digest.String()).Int("piece", d.Index).
			Str("node", s.node).Str("voucher", d.By).
			Msg("a node proved a published piece digest wrong: the voucher's disk, memory or intent is bad")
	}
	s.sw.deliver(s.sw.m.Handle(s.node, u, now))
	return nil
}

// Next waits for messages to the puller. ok is false when the session is over.
func (s *Session) Next(ctx context.Context) (d Down, ok bool) { return s.box.Next(ctx) }

// Close ends the session: the puller's leases go to others.
func (s *Session) Close() {
	s.box.Close()
	s.sw.mu.Lock()
	mine := s.sw.sessions[s.node] == s
	if mine {
		delete(s.sw.sessions, s.node)
		s.sw.deliver(s.sw.m.Leave(s.node, time.Now()))
	}
	s.sw.mu.Unlock()
	if !mine {
		return
	}
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.sw.mu.Lock()
	defer s.sw.mu.Unlock()
	if s.sw.m.Idle() && s.t.swarms[s.key] == s.sw {
		delete(s.t.swarms, s.key)
		s.t.met.swarms.Set(float64(len(s.t.swarms)))
	}
}

// Announce takes in what a node holds, or no longer holds.
func (t *Tracker) Announce(node string, added []Item, removed []digest.Digest) {
	now := time.Now()
	var changed []digest.Digest
	t.mu.Lock()
	for _, a := range added {
		t.inv.add(a.Digest, a.Size, node, now)
		changed = append(changed, a.Digest)
	}
	for _, d := range removed {
		if t.inv.remove(d, node) {
			changed = append(changed, d)
		}
	}
	touched := map[key]*swarm{}
	for _, d := range changed {
		for k, sw := range t.swarms {
			if k.digest == d {
				touched[k] = sw
			}
		}
	}
	t.mu.Unlock()
	t.tell(touched)
}

// Item is one announced blob.
type Item struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// Holders tells who holds d, and its size if known (else 0).
func (t *Tracker) Holders(d digest.Digest) (size int64, nodes []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inv.holders(d, t.cfg.Live)
}

// Pullers counts the nodes that pull d now, or have done so and still trade it.
func (t *Tracker) Pullers(d digest.Digest) int {
	t.mu.Lock()
	var sws []*swarm
	for k, sw := range t.swarms {
		if k.digest == d {
			sws = append(sws, sw)
		}
	}
	t.mu.Unlock()
	n := 0
	for _, sw := range sws {
		sw.mu.Lock()
		n += len(sw.sessions)
		sw.mu.Unlock()
	}
	return n
}

// Havers tells who pulls d and has the n > 0 bytes from off of it already.
func (t *Tracker) Havers(d digest.Digest, off, n int64) []string {
	t.mu.Lock()
	var large []*swarm
	for k, sw := range t.swarms {
		if k.digest == d && off >= 0 && n > 0 && off <= k.size-n {
			large = append(large, sw)
		}
	}
	t.mu.Unlock()
	var nodes []string
	for _, sw := range large {
		sw.mu.Lock()
		if l, ok := sw.m.(*Large); ok {
			nodes = append(nodes, l.havers(off, n)...)
		}
		sw.mu.Unlock()
	}
	return nodes
}

// Lookup asks what to do about a tag; see [TagAnswer].
func (t *Tracker) Lookup(ref, node string, ttl time.Duration) TagAnswer {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inv.lookup(ref, node, ttl, time.Now())
}

// Publish takes in what upstream said about a tag; nil: it did not answer.
func (t *Tracker) Publish(ref, node string, r *Resolution) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inv.publish(ref, node, r, time.Now())
}

// Last returns what was published about a reference, nil if nothing: for a node that
// will not ask upstream, and must not keep others waiting.
func (t *Tracker) Last(ref string) *Resolution {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inv.last(ref, time.Now())
}

// References lists what was published about tags, of the age that it has now.
func (t *Tracker) References() []Reference {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.inv.references(time.Now())
}

// Adopt takes in what another tracker knew. The newer word stands.
func (t *Tracker) Adopt(node string, refs []Reference) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	for _, r := range refs {
		t.inv.adopt(r, node, now)
	}
}
