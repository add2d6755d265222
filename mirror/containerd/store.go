package containerd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/swarm"
)

// defaultReconcile is how often everything is compared without a reason. With
// 1,000 blobs that is 20 ms a minute on both sides together, so there is nothing
// to be saved by waiting longer.
const defaultReconcile = time.Minute

// Config of a Store. Only Socket is required.
type Config struct {
	// Socket is the path of containerd's, with or without "unix://".
	Socket string
	// Root is where the content store, or containerd's own root, is to be
	// found as files, for nodes that see it under another path than containerd
	// does. Empty means the path that containerd tells. What cannot be read as
	// files is read through the socket.
	Root string
	// Reconcile is how often all content is compared with what is known, in
	// case that a change was not noticed. Default 1 min.
	Reconcile time.Duration

	Log zerolog.Logger
	// Registerer takes the metrics; nil means none.
	Registerer prometheus.Registerer
}

// Validate says what is wrong with a configuration.
func (c Config) Validate() error {
	switch {
	case c.socket() == "":
		return errors.New("containerd: no socket")
	case c.Reconcile < 0:
		return fmt.Errorf("containerd: negative reconcile period %v", c.Reconcile)
	default:
		return nil
	}
}

func (c Config) socket() string { return strings.TrimPrefix(c.Socket, "unix://") }

// OnChange is told which blobs appeared and which vanished, each at most once
// in a call; a blob that is added may have been added before, with the same
// size.
type OnChange func(added []swarm.Held, removed []digest.Digest)

// Store is containerd's content on this node. It implements swarm.Content, and
// is safe for concurrent use.
type Store struct {
	cfg    Config
	pace   pace
	met    *metrics
	daemon *daemon
	index  *index
	// files is nil while containerd's directory is not known, or not readable.
	files atomic.Pointer[files]
	ready atomic.Bool
	// doubts are blobs that could not be opened.
	doubts chan key
}

// New returns a Store that knows nothing yet; it does not connect. Run follows
// containerd, and Close must end the Store.
func New(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Reconcile == 0 {
		c.Reconcile = defaultReconcile
	}
	d, err := newDaemon(c.socket())
	if err != nil {
		return nil, err
	}
	return &Store{
		cfg: c,
		pace: pace{
			settle: 100 * time.Millisecond, retries: 6, maxChecks: 64,
			followUp: 5 * time.Second, minGap: time.Second, reconcile: c.Reconcile,
		},
		met: newMetrics(c.Registerer), daemon: d, index: newIndex(),
		doubts: make(chan key, 64),
	}, nil
}

// Close gives up the connection and the directory. Run must have ended; blobs
// that are open as files stay readable.
func (s *Store) Close() error {
	err := s.daemon.conn.Close()
	if f := s.files.Swap(nil); f != nil {
		err = errors.Join(err, f.close())
	}
	if err != nil {
		return fmt.Errorf("close containerd's content: %w", err)
	}
	return nil
}

// Ready says that containerd is connected and that its content is known.
func (s *Store) Ready() bool { return s.ready.Load() }

// Has says that containerd holds a blob, as far as is known.
func (s *Store) Has(d digest.Digest) bool {
	k, ok := keyOf(d)
	if !ok {
		return false
	}
	_, ok = s.index.lookup(k)
	return ok
}

// Keeps implements swarm.Content: containerd holds the blob, and an image refers
// to it. That is not so while only the lease of a pull does, and never with layers
// that containerd discards once they are unpacked. It is as of the last walk.
func (s *Store) Keeps(d digest.Digest) bool {
	k, ok := keyOf(d)
	if !ok {
		return false
	}
	e, ok := s.index.lookup(k)
	return ok && e.kept
}

// Open implements swarm.Content. The Reader is independent of ctx, which bounds
// the opening only, and stays valid when containerd deletes the blob if it is
// a file. The error wraps swarm.ErrNotFound if the blob is not there, and
// swarm.ErrUnavailable if it can only be read through a daemon that does not
// answer.
func (s *Store) Open(ctx context.Context, d digest.Digest) (swarm.Reader, error) {
	k, ok := keyOf(d)
	if !ok {
		return nil, fmt.Errorf("open %.80q in containerd: %w", d, swarm.ErrNotFound)
	}
	e, ok := s.index.lookup(k)
	if !ok {
		return nil, fmt.Errorf("open %s in containerd: %w", d, swarm.ErrNotFound)
	}
	if f := s.files.Load(); f != nil {
		b, err := f.open(k, e.size)
		switch {
		case err == nil:
			s.met.opens.WithLabelValues("file").Inc()
			return b, nil
		case errors.Is(err, errDamaged):
			s.doubt(k)
			return nil, fmt.Errorf("open %s in containerd: %w: %w", d, swarm.ErrNotFound, err)
		}
		// Collected meanwhile, or not in this directory: the daemon knows.
	}
	// The last byte tells that the blob is there, and whole.
	var last [1]byte
	if err := s.daemon.read(ctx, e.namespace, k, last[:], e.size-1); err != nil {
		if errors.Is(err, swarm.ErrNotFound) {
			s.doubt(k)
		}
		return nil, fmt.Errorf("open %s in containerd: %w", d, err)
	}
	s.met.opens.WithLabelValues("api").Inc()
	return newAPIBlob(s.daemon, e.namespace, k, e.size), nil
}

// doubt has a blob checked that could not be opened.
func (s *Store) doubt(k key) {
	s.met.opens.WithLabelValues("gone").Inc()
	select {
	case s.doubts <- k:
	default: // enough to do; the next who tries says so again
	}
}
