package peertls

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

const (
	// settle is how long the directory must be quiet before it is read: tools
	// write several files one after the other.
	settle = 200 * time.Millisecond
	// defaultPoll is how often the directory is read without any event. A
	// secret's change takes the kubelet up to its sync period of a minute to
	// bring here anyway.
	defaultPoll = time.Minute
	// expiryShare is the part of a certificate's life, as a divisor, in whose
	// last stretch its owner is warned. Certificate managers renew with a
	// third left, so a tenth means that renewal does not work.
	expiryShare = 10
)

// Config says where the credentials are and what they must be for.
type Config struct {
	// Dir holds the four files; see the package documentation.
	Dir string
	// Cluster is the cluster id that certificates must not contradict.
	// Required.
	Cluster string
	// Poll is the interval of the reading that happens without any event.
	// Zero means a minute.
	Poll time.Duration
	// Log receives rotations, refused sets and coming expiry.
	Log zerolog.Logger
	// Registerer receives the metrics; nil means none.
	Registerer prometheus.Registerer
	// Now is the clock by which certificates are valid; nil means time.Now.
	Now func() time.Time
}

// Credentials are a node's certificates and keys, kept up to date. All methods
// are safe for concurrent use.
type Credentials struct {
	dir     string
	cluster string
	poll    time.Duration
	now     func() time.Time
	log     zerolog.Logger
	metrics *metrics

	set atomic.Pointer[set]

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at each rotation
	// refused is the sum of the last set that was not taken, so that it is
	// logged once and not at every look.
	refused [sha256.Size]byte
	// warned is the last certificate whose coming expiry was logged.
	warned *set
}

// Load reads and checks the credentials. Without a valid set there is no node:
// the error says what is wrong with which file.
func Load(c Config) (*Credentials, error) {
	if err := checkName(c.Cluster); err != nil {
		return nil, fmt.Errorf("load credentials: cluster: %w", err)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Poll <= 0 {
		c.Poll = defaultPoll
	}
	f, err := readFiles(c.Dir)
	if err != nil {
		return nil, err
	}
	s, err := f.parse(c.Cluster, c.Now())
	if err != nil {
		return nil, fmt.Errorf("load credentials from %s: %w", c.Dir, err)
	}
	cr := &Credentials{
		dir:     c.Dir,
		cluster: c.Cluster,
		poll:    c.Poll,
		now:     c.Now,
		log:     c.Log,
		changed: make(chan struct{}),
	}
	cr.set.Store(s)
	cr.metrics = newMetrics(c.Registerer, cr)
	cr.describe("peer credentials loaded", s)
	return cr, nil
}

// GossipKey is the key that encrypts what this node gossips: 32 bytes.
func (c *Credentials) GossipKey() []byte {
	return slices.Clone(c.set.Load().gossip[0])
}

// GossipKeys are all keys with which gossip may be encrypted, the one of
// [Credentials.GossipKey] first.
func (c *Credentials) GossipKeys() [][]byte {
	var keys [][]byte
	for _, k := range c.set.Load().gossip {
		keys = append(keys, slices.Clone(k))
	}
	return keys
}

// ID is this node's own identity as others see it: the name in its
// certificate, or [AnyNode].
func (c *Credentials) ID() string {
	_, node, _ := identity(c.set.Load().cert.Leaf) // checked by parse
	return node
}

// Changed is closed when the next rotation has taken effect. Call it again
// for the one after.
func (c *Credentials) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

// Run follows changes of the directory until ctx ends. It returns nil then;
// there is no other way for it to end. Without it the credentials stay as
// [Load] found them.
func (c *Credentials) Run(ctx context.Context) error {
	events, problems, stop := c.watch()
	defer stop()
	poll := time.NewTicker(c.poll)
	defer poll.Stop()
	quiet := time.NewTimer(0) // a change may have come between Load and watch
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-events:
			quiet.Reset(settle)
		case err := <-problems:
			// An overflow of the event queue, typically: something changed.
			c.log.Warn().Err(err).Str("dir", c.dir).Msg("watching peer credentials")
			quiet.Reset(settle)
		case <-quiet.C:
			c.reload()
		case <-poll.C:
			c.reload()
			c.warnExpiry()
		}
	}
}

// watch starts watching the directory. Without the means to (inotify instances
// are a scarce resource on busy hosts) the channels stay silent and polling
// does the work.
func (c *Credentials) watch() (<-chan fsnotify.Event, <-chan error, func()) {
	w, err := fsnotify.NewWatcher()
	if err == nil {
		// The directory and not the files: links and renames replace files,
		// and a watch would stay with the old ones.
		if err = w.Add(c.dir); err == nil {
			return w.Events, w.Errors, func() { _ = w.Close() }
		}
		_ = w.Close()
	}
	c.log.Warn().Err(err).Str("dir", c.dir).Dur("interval", c.poll).
		Msg("cannot watch peer credentials; reading them at intervals")
	return nil, nil, func() {}
}

// reload takes over the directory's contents if they are new and valid.
func (c *Credentials) reload() {
	f, err := readFiles(c.dir)
	if err == nil && f.sum() == c.set.Load().sum {
		c.mu.Lock()
		c.refused = [sha256.Size]byte{} // put right again by hand
		c.mu.Unlock()
		return
	}
	var s *set
	if err == nil {
		s, err = f.parse(c.cluster, c.now())
	}
	if err != nil {
		c.refuse(f, err)
		return
	}
	c.mu.Lock()
	c.set.Store(s)
	close(c.changed)
	c.changed = make(chan struct{})
	c.refused = [sha256.Size]byte{}
	c.mu.Unlock()
	c.metrics.reloads.WithLabelValues("ok").Inc()
	c.describe("peer credentials rotated", s)
}

// refuse reports a set that was not taken, once.
func (c *Credentials) refuse(f files, err error) {
	sum := f.sum()
	c.mu.Lock()
	known := c.refused == sum
	c.refused = sum
	c.mu.Unlock()
	if known {
		return
	}
	c.metrics.reloads.WithLabelValues("error").Inc()
	c.log.Error().Err(err).Str("dir", c.dir).
		Time("expires", c.set.Load().cert.Leaf.NotAfter).
		Msg("new peer credentials refused; keeping the previous ones")
}

// Expiry is when the node's certificate ends.
func (c *Credentials) Expiry() time.Time { return c.set.Load().cert.Leaf.NotAfter }

// warnExpiry logs once per certificate that its end is near.
func (c *Credentials) warnExpiry() {
	s := c.set.Load()
	leaf := s.cert.Leaf
	left := leaf.NotAfter.Sub(c.now())
	c.mu.Lock()
	due := left < leaf.NotAfter.Sub(leaf.NotBefore)/expiryShare && c.warned != s
	if due {
		c.warned = s
	}
	c.mu.Unlock()
	if due {
		c.log.Warn().Time("expires", leaf.NotAfter).Dur("left", left).
			Msg("peer certificate expires soon and has not been renewed")
	}
}

func (c *Credentials) describe(msg string, s *set) {
	_, node, _ := identity(s.cert.Leaf) // checked by parse
	c.log.Info().Str("dir", c.dir).Str("identity", node).
		Str("serial", s.cert.Leaf.SerialNumber.Text(16)).
		Time("expires", s.cert.Leaf.NotAfter).
		Str("authority", s.root.Subject.CommonName).
		Int("gossip_keys", len(s.gossip)).
		Msg(msg)
}
