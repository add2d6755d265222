package members

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"
)

const (
	// suffixLength of an instance's random suffix, in bytes. Two instances of
	// one id must differ, nothing more.
	suffixLength = 8
	// leaveTimeout bounds the farewell. The message goes to a few members
	// every 200 ms, 16 times in a cluster of 1000: 1.2 s.
	leaveTimeout = 3 * time.Second
	// updateTimeout bounds the wait for a change of metadata to be sent; the
	// same arithmetic.
	updateTimeout = 3 * time.Second
)

// Members is this node's membership. All methods are safe for concurrent use.
type Members struct {
	log      zerolog.Logger
	metrics  *metrics
	resolver Resolver
	seeds    []seed
	pace     pace

	net    *transport
	list   *memberlist.Memberlist
	ring   *memberlist.Keyring // nil when insecure
	meta   atomic.Pointer[meta]
	roster *roster

	mu     sync.Mutex // held while the list is told to update, leave or stop
	closed bool
}

// New opens the sockets and answers who calls; it contacts nobody before
// [Members.Run]. Close it if Run is not called.
func New(c Config) (*Members, error) {
	m, err := newMembers(c)
	if err != nil {
		return nil, fmt.Errorf("start membership: %w", err)
	}
	return m, nil
}

func newMembers(c Config) (*Members, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	own := meta{
		id:       c.NodeID,
		control:  uint16(c.ControlPort),
		wire:     uint16(c.WirePort),
		zone:     c.Zone,
		born:     c.Now().UnixMilli(),
		protocol: ProtocolVersion,
	}
	if err := own.check(); err != nil {
		return nil, err
	}
	ip, port, err := parseBind(c.BindAddr)
	if err != nil {
		return nil, fmt.Errorf("bind address %q: %w", c.BindAddr, err)
	}
	seeds, err := parseSeeds(c.Join, port)
	if err != nil {
		return nil, err
	}
	suffix := make([]byte, suffixLength)
	if _, err := rand.Read(suffix); err != nil {
		return nil, err
	}
	t, err := listen(ip, port, c.Log)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Members, error) {
		return nil, errors.Join(err, t.Shutdown())
	}
	t.advertise, err = advertised(context.Background(), c.Resolver, c.AdvertiseAddr, ip, t.port())
	if err != nil {
		return fail(fmt.Errorf("advertise address: %w", err))
	}
	self := instance{
		name:   own.id + "/" + hex.EncodeToString(suffix),
		born:   own.born,
		gossip: t.advertise,
		member: newMember(own, t.advertise.Addr()),
	}
	m := &Members{
		log:      c.Log,
		resolver: c.Resolver,
		seeds:    seeds,
		pace:     c.hooks.pace.withDefaults(),
		net:      t,
		roster:   newRoster(self),
		metrics:  newMetrics(),
	}
	m.meta.Store(&own)
	var wire memberlist.NodeAwareTransport = t
	if c.hooks.wrap != nil {
		wire = c.hooks.wrap(t)
	}
	conf, err := c.library(self.name, wire)
	if err != nil {
		return fail(err)
	}
	conf.Delegate, conf.Events, conf.Alive = delegate{m}, delegate{m}, delegate{m}
	m.ring = conf.Keyring
	if m.list, err = memberlist.Create(conf); err != nil {
		return fail(err)
	}
	m.metrics.register(c.Registerer,
		func() float64 { return float64(len(m.Live())) },
		func() float64 { return float64(m.list.GetHealthScore()) })
	if c.Insecure {
		m.log.Warn().Msg("gossip is not encrypted: anyone who reaches this port can become a member")
	}
	m.log.Info().Str("node", own.id).Str("cluster", c.Cluster).Stringer("addr", t.advertise).Msg("listening for gossip")
	return m, nil
}

// Run joins the cluster through the seeds, keeps this node in it, and leaves
// when ctx ends: politely, within 3 s. It returns nil then; there is no other
// way for it to end. A node that finds no seed goes on alone and keeps trying.
func (m *Members) Run(ctx context.Context) error {
	// Attempts to join may be waiting for a dead seed.
	stop := context.AfterFunc(ctx, m.net.hangUp)
	defer stop()
	m.seek(ctx)
	m.leave()
	return m.Close()
}

// leave says farewell. Others notice the absence anyway if it is not heard.
func (m *Members) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	if err := m.list.Leave(leaveTimeout); err != nil {
		m.log.Info().Err(err).Msg("left the cluster without a reply")
		return
	}
	m.log.Info().Msg("left the cluster")
}

// Close stops at once, without a farewell: to the others this node has died.
// It may be called more than once, and after Run.
func (m *Members) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	if err := m.list.Shutdown(); err != nil {
		return fmt.Errorf("stop membership: %w", err)
	}
	return nil
}

// Self is this node as the others see it.
func (m *Members) Self() Member {
	return m.roster.own().member
}

// Addr is the gossip address of this node, host:port: a seed for others.
func (m *Members) Addr() string {
	a := m.net.advertise
	return net.JoinHostPort(a.Addr().String(), strconv.Itoa(int(a.Port())))
}

// Live lists the nodes believed to be alive, this one included, sorted by id.
// The slice must not be modified.
func (m *Members) Live() []Member {
	return m.roster.members()
}

// Changed is closed at the next change of what [Members.Live] returns. To miss
// nothing, call it first and Live afterwards.
func (m *Members) Changed() <-chan struct{} {
	return m.roster.wait()
}

// SetZone changes this node's zone and tells the others. It returns when the
// change has been sent, at the latest after 3 s; it reaches the others in any
// case.
func (m *Members) SetZone(zone string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := *m.meta.Load()
	next.zone = zone
	if err := next.check(); err != nil {
		return fmt.Errorf("change zone: %w", err)
	}
	if m.closed {
		return errors.New("change zone: membership has ended")
	}
	m.meta.Store(&next)
	if err := m.list.UpdateNode(updateTimeout); err != nil {
		m.log.Debug().Err(err).Msg("change of zone is not sent yet")
	}
	return nil
}

// SetKeys changes the gossip keys: the first encrypts from now on, all of them
// decrypt. To change the cluster's key without a break, give every node
// (old, new), then every node (new, old). Keys left out are still accepted
// until the process ends.
func (m *Members) SetKeys(keys [][]byte) error {
	if m.ring == nil {
		return errors.New("change gossip keys: gossip is not encrypted")
	}
	if len(keys) == 0 {
		return errors.New("change gossip keys: none given")
	}
	for _, k := range keys {
		if len(k) != KeyLength {
			return fmt.Errorf("change gossip keys: key has %d bytes, not %d", len(k), KeyLength)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		if err := m.ring.AddKey(k); err != nil {
			return fmt.Errorf("change gossip keys: %w", err)
		}
	}
	if err := m.ring.UseKey(keys[0]); err != nil {
		return fmt.Errorf("change gossip keys: %w", err)
	}
	return nil
}
