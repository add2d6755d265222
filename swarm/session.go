package swarm

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// puller is one blob's side of a tracker session.
type puller interface {
	// hello describes the state at the moment of joining: the hello itself
	// and the sums of the pieces at hand.
	hello() tracker.Up
	// handle takes in a message; it must not block.
	handle(tracker.Down)
	// lost says that the session is gone, and with it all leases.
	lost()
}

// track keeps a session with the digest's tracker until ctx ends, the tracker
// ends it with Done, or out is closed and sent: with the first in rank that
// answers, moving when the rank changes. out is drained into whichever session
// is open.
func (n *Node) track(ctx context.Context, d digest.Digest, pieces int, p puller, out *tracker.Outbox[tracker.Up, *tracker.Up]) {
	backoff := 50 * time.Millisecond
	for ctx.Err() == nil {
		changed := n.cfg.Members.Changed()
		ranked := n.rank(d.String())
		if len(ranked) == 0 {
			return
		}
		m := ranked[0]
		began := time.Now()
		err := n.session(ctx, m, d, pieces, p, out, changed)
		p.lost()
		switch {
		case ctx.Err() != nil || errors.Is(err, errDone):
			return
		case err == nil: // the rank changed
			continue
		case errors.Is(err, errDrained):
			return
		}
		n.markDeaf(m.ID, err)
		if time.Since(began) > 5*time.Second {
			backoff = 50 * time.Millisecond
		}
		select {
		case <-time.After(backoff + rand.N(backoff)):
		case <-ctx.Done():
		}
		backoff = min(2*backoff, 2*time.Second)
	}
}

var (
	errDone    = errors.New("swarm done")
	errDrained = errors.New("everything said")
)

// session is one session with m. It returns nil when another member should be
// the tracker by now.
func (n *Node) session(ctx context.Context, m members.Member, d digest.Digest, pieces int, p puller,
	out *tracker.Outbox[tracker.Up, *tracker.Up], changed <-chan struct{},
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	hello := p.hello()
	c, err := n.join(ctx, m, hello)
	if err != nil {
		return err
	}
	defer c.Close()

	recv := make(chan error, 1)
	go func() {
		for {
			down, err := c.Recv(ctx)
			if err == nil {
				err = down.Check(pieces)
			}
			if err != nil {
				recv <- err
				return
			}
			p.handle(down)
			if down.Done {
				recv <- errDone
				return
			}
		}
	}()
	send := make(chan error, 1)
	sendCtx, stopSend := context.WithCancel(ctx)
	go func() {
		for {
			u, ok := out.Next(sendCtx)
			if !ok {
				send <- errDrained
				return
			}
			if err := c.Send(u); err != nil {
				send <- err
				return
			}
		}
	}()
	// Whatever ends the session, both goroutines are gone when it returns.
	finish := func(err error) error {
		stopSend()
		c.Close()
		cancel()
		_ = <-send
		_ = <-recv
		return err
	}
	for {
		select {
		case err := <-recv:
			recv <- err
			return finish(err)
		case err := <-send:
			send <- err
			if errors.Is(err, errDrained) && ctx.Err() == nil {
				// The tracker closes its side when it has read the last word.
				c.CloseSend()
				select {
				case e := <-recv:
					recv <- e
				case <-time.After(callTimeout):
				case <-ctx.Done():
				}
			}
			return finish(err)
		case <-ctx.Done():
			return finish(ctx.Err())
		case <-changed:
			changed = n.cfg.Members.Changed()
			if r := n.rank(d.String()); len(r) > 0 && r[0].ID != m.ID {
				return finish(nil)
			}
		}
	}
}

// join opens a session, in the process when this node is the tracker. What
// comes with the hello is sent after it, in messages of legal size.
func (n *Node) join(ctx context.Context, m members.Member, up tracker.Up) (conn, error) {
	hello := tracker.Up{Hello: up.Hello}
	up.Hello = nil
	var c conn
	if m.ID == n.self() {
		if err := hello.Hello.Check(m.ID); err != nil {
			return nil, err
		}
		s, err := n.tracker.Join(hello.Hello)
		if err != nil {
			return nil, err
		}
		c = localConn{s}
	} else {
		var err error
		if c, err = n.peers.track(ctx, m, hello); err != nil {
			return nil, err
		}
	}
	if !up.Empty() {
		if err := c.Send(up); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}
