package node

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/swarm"
)

const (
	// headerTimeout bounds the wait for a request's header: longer than any
	// client on the same node or network takes, short against a client that
	// only holds connections open.
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection without a request stays open.
	// containerd's own limit is 30 s, the swarm's client's a minute.
	idleTimeout = 2 * time.Minute
	// maxHeader bounds a request header in bytes. The largest legitimate one
	// carries a registry token of a few KiB.
	maxHeader = 64 << 10
	// peerDrain bounds the wait for transfers to peers at the end. They take
	// them up elsewhere at once.
	peerDrain = 2 * time.Second
	// pingAfter and pingTimeout find, from the server's side, a peer whose
	// tracker stream is silent because it vanished. The client's side in
	// package swarm has the same values.
	pingAfter   = 3 * time.Second
	pingTimeout = 3 * time.Second
)

// Run serves until ctx ends and then stops in good order (see the package
// documentation), returning nil; or until a part of the node fails, and
// returns that failure. Run may be called once.
func (n *Node) Run(ctx context.Context) error {
	// Three lives, ended one after the other: that of the mirror, that of
	// the membership, and that of all else.
	failed, fail := context.WithCancelCause(context.Background())
	defer fail(nil)
	memberLife, leave := context.WithCancel(context.Background())
	defer leave()
	partLife, end := context.WithCancel(context.Background())
	defer end()

	var parts, gossip errgroup.Group
	run := func(g *errgroup.Group, ctx context.Context, name string, f func(context.Context) error) {
		g.Go(func() error {
			err := f(ctx)
			if err != nil && ctx.Err() == nil {
				fail(fmt.Errorf("%s: %w", name, err))
			}
			return nil
		})
	}
	serve := func(name string, s *http.Server, l net.Listener, tls bool) {
		run(&parts, partLife, name, func(context.Context) error {
			var err error
			if tls {
				err = s.ServeTLS(l, "", "")
			} else {
				err = s.Serve(l)
			}
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		})
	}

	mirrorSrv, controlSrv, metricsSrv := n.servers()
	run(&gossip, memberLife, "members", n.members.Run)
	run(&parts, partLife, "swarm", n.swarm.Run)
	if n.creds != nil {
		run(&parts, partLife, "credentials", n.creds.Run)
		run(&parts, partLife, "gossip keys", n.followKeys)
	}
	if n.containerd != nil {
		run(&parts, partLife, "containerd", func(ctx context.Context) error {
			return n.containerd.Run(ctx, func(added []swarm.Held, removed []digest.Digest) {
				n.swarm.Announce(added, removed)
				// Before it is ready, it tells of what has been there.
				if n.containerd.Ready() {
					n.mirror.Landed(added)
				}
			})
		})
	}
	serve("control listener", controlSrv, n.controlLn, n.creds != nil)
	if n.metricsLn != nil {
		serve("metrics listener", metricsSrv, n.metricsLn, false)
	}
	serve("mirror listener", mirrorSrv, n.mirrorLn, false)
	n.health.serving.Store(true)
	a := n.Addresses()
	n.cfg.Log.Info().Str("mirror", a.Mirror).Str("control", a.Control).Str("wire", a.Wire).
		Str("gossip", a.Gossip).Str("metrics", a.Metrics).Bool("tls", n.creds != nil).
		Str("version", n.cfg.Version).Msg("serving")

	select {
	case <-ctx.Done():
		n.cfg.Log.Info().Dur("drain", n.cfg.Drain).Msg("stopping")
	case <-failed.Done():
		n.cfg.Log.Error().Err(context.Cause(failed)).Msg("stopping because a part failed")
	}
	n.health.serving.Store(false)

	// The layers that containerd has not asked for yet belong to the pull: refused,
	// they would come from the registry, once for each node that stops.
	deadline := time.Now().Add(n.cfg.Drain)
	n.responses.wait(deadline)
	if !stop(mirrorSrv, time.Until(deadline)) {
		n.cfg.Log.Warn().Msg("responses still under way are cut: clients get the rest from their next host")
	}
	leave()
	_ = gossip.Wait()
	stop(controlSrv, peerDrain)
	end()
	if n.metricsLn != nil {
		_ = metricsSrv.Close()
	}
	_ = parts.Wait()
	err := errors.Join(context.Cause(failed), n.Close())
	n.cfg.Log.Info().Msg("stopped")
	return err
}

// stop lets a server finish what it is doing for as long as d, and closes it.
// It reports whether it finished.
func stop(s *http.Server, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	err := s.Shutdown(ctx)
	_ = s.Close()
	return err == nil
}

func (n *Node) servers() (mirror, control, metrics *http.Server) {
	mirror = n.server("mirror", n.responses.count(n.mirror.Handler()))
	control = n.server("control", n.swarm.Handler())
	control.Protocols = new(http.Protocols)
	control.Protocols.SetHTTP1(true)
	control.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
	if n.creds != nil {
		control.TLSConfig = n.creds.ServerConfig("h2", "http/1.1")
		control.Protocols.SetHTTP2(true)
	} else {
		control.Protocols.SetUnencryptedHTTP2(true)
	}
	metrics = n.server("metrics", n.health.handler(n.registry))
	return mirror, control, metrics
}

// server has no limit on the time of a response or a request's body: blobs and
// tracker streams take as long as they take, and their handlers bound them.
func (n *Node) server(name string, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          stdlog.New(debugWriter{part(n.cfg.Log, name)}, "", 0),
	}
}

// followKeys hands rotated gossip keys to the membership.
func (n *Node) followKeys(ctx context.Context) error {
	for {
		changed := n.creds.Changed()
		if err := n.members.SetKeys(n.creds.GossipKeys()); err != nil {
			n.cfg.Log.Error().Err(err).Msg("rotated gossip keys are refused, the previous ones stay")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// part names the part of the node that logs.
func part(l zerolog.Logger, name string) zerolog.Logger {
	return l.With().Str("part", name).Logger()
}

// debugWriter takes what net/http has to say, mostly about clients that speak
// nonsense or go away: worth a look when something is wrong, and nothing that
// a stranger should be able to fill the log with.
type debugWriter struct{ log zerolog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug().Msg(strings.TrimSpace(string(p)))
	return len(p), nil
}
