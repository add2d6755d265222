package engine

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// lookAround is how often peers that have nothing to do are looked at again
// while something is missing: another one may have become slow.
const lookAround = 100 * time.Millisecond

func (t *Torrent) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run is the torrent's goroutine: it dials, and watches the clock.
func (t *Torrent) run() {
	defer close(t.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.life.Done():
			return
		case <-t.wake:
		case <-timer.C:
		}
		now := time.Now()
		t.mu.Lock()
		if t.active {
			for _, p := range t.roster.due(now) {
				t.work.Go(func() { t.dial(p) })
			}
		}
		t.closeSilent(now)
		t.askAll(now)
		next := t.next(now)
		t.mu.Unlock()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// next is when there is something to do; zero: not before somebody pokes.
func (t *Torrent) next(now time.Time) (at time.Time) {
	if t.active {
		at = t.roster.wake()
	}
	for l := range t.links {
		if len(l.asked) > 0 {
			at = sooner(at, now.Add(lookAround))
			at = sooner(at, l.heard.Add(t.e.tune.answer))
		}
	}
	return at
}

// sooner is the earlier time, where zero means never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// tellOwner has the next callOwner call f. Torrent.mu is held.
func (t *Torrent) tellOwner(f func()) { t.queue = append(t.queue, f) }

// callOwner tells the owner what happened, in order, unless the torrent is dropped.
// No lock is held.
func (t *Torrent) callOwner() {
	t.calling.Lock()
	defer t.calling.Unlock()
	t.mu.Lock()
	queue := t.queue
	t.queue = nil
	t.mu.Unlock()
	for _, f := range queue {
		if t.life.Err() != nil {
			return
		}
		f()
	}
}

// failed judges a piece that could not be taken in. Torrent.mu is held, as for
// the following.
func (t *Torrent) failed(l *link, i int, err error) {
	if errors.Is(err, chunker.ErrNoSum) || !t.picker.Wants(i) {
		t.over(i) // withdrawn while it was under way
		return
	}
	f := t.failures[i]
	if f == nil {
		f = &failure{}
		t.failures[i] = f
	}
	f.tries++
	wrong := errors.Is(err, chunker.ErrWrongPiece)
	log := t.e.cfg.Log.With().Stringer("digest", t.id.Digest).Int("piece", i).Str("peer", t.name(l.id)).Logger()
	if wrong {
		t.e.met.bad.Inc()
		log.Warn().Msg("piece from a peer contradicts its published digest, discarded")
		if !slices.Contains(f.senders, l.id) {
			f.senders = append(f.senders, l.id)
		}
	} else {
		log.Error().Err(err).Msg("piece from a peer cannot be stored, discarded: check the disk under the data directory")
	}
	if f.tries >= maxFailures {
		t.over(i)
		var names []string
		for _, id := range f.senders {
			names = append(names, t.name(id))
		}
		t.tellOwner(func() {
			if t.ev.PieceBad != nil {
				t.ev.PieceBad(i, names)
			}
		})
	}
	if wrong {
		t.leaveOut(l.id, "lied")
	}
}

// leaveOut closes a peer's connections and turns it away for a while.
func (t *Torrent) leaveOut(id peerID, reason string) {
	t.roster.cut(id, time.Now())
	found := false
	for l := range t.links {
		if l.id == id && !l.refused {
			l.refused, found = true, true
			l.voidAll()
			l.end()
		}
	}
	if !found {
		return // left, or was left out for its last piece
	}
	t.e.met.cut.WithLabelValues(reason).Inc()
	t.e.cfg.Log.Warn().Str("peer", t.name(id)).Str("reason", reason).Stringer("digest", t.id.Digest).
		Msg("leaving a peer out of the blob's swarm for a while")
}

// closeSilent ends connections to peers that owe chunks for too long.
func (t *Torrent) closeSilent(now time.Time) {
	for l := range t.links {
		if !l.refused && len(l.asked) > 0 && now.Sub(l.heard) >= t.e.tune.answer {
			t.leaveOut(l.id, "silent")
		}
	}
}

// dial connects to a peer and trades with it until the connection ends.
func (t *Torrent) dial(p Peer) {
	l := t.reach(p.Addr)
	t.mu.Lock()
	t.roster.dialled(p, time.Now())
	t.mu.Unlock()
	if l == nil {
		t.poke() // it is to be tried again
		return
	}
	defer t.e.hold(l.c)()
	t.trade(l)
}

// reach connects to a peer; nil: in vain.
func (t *Torrent) reach(addr string) *link {
	ctx, cancel := context.WithTimeout(t.life, t.e.tune.dialTimeout)
	defer cancel()
	c, err := t.e.cfg.Dial(ctx, addr)
	if err != nil {
		t.e.cfg.Log.Debug().Err(err).Str("addr", addr).Msg("cannot connect to a peer")
		return nil
	}
	c, d := dress(c, t.e.cfg.ClientTLS, tls.Client)
	inTime := context.AfterFunc(ctx, func() { hangUp(c) })
	h, err := t.e.greet(c, handshake{hash: infoHash(t.id.InfoHash())}, true)
	if !inTime() || err != nil {
		t.e.cfg.Log.Debug().Err(err).Str("addr", addr).Msg("cannot greet a peer")
		hangUp(c)
		return nil
	}
	return t.join(c, d, h.id, t.e.id)
}

// join makes a connection one of the torrent's; nil: it is not wanted, and was
// closed.
func (t *Torrent) join(c net.Conn, d *doze, id, dialer peerID) *link {
	l := newLink(t, c, d, id, dialer)
	if !t.attach(l) {
		l.end()
		return nil
	}
	return l
}

// trade trades with a peer that has joined until the connection ends.
func (t *Torrent) trade(l *link) {
	defer l.end()
	defer t.work.Done()
	defer t.e.turns.pass()
	defer t.detach(l)
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		if err := l.write(); err != nil {
			l.fail(err)
		}
	}()
	l.fail(l.read())
	<-wrote
}

// fail ends the connection for a reason, which is logged if it is the peer's
// fault.
func (l *link) fail(err error) {
	var ne net.Error
	l.mu.Lock()
	known := l.ended
	l.mu.Unlock()
	l.end()
	if errors.Is(err, errDisk) {
		l.t.e.cfg.Log.Error().Err(err).Stringer("digest", l.t.id.Digest).
			Msg("cannot read a piece for a peer: check the disk under the data directory")
		return
	}
	if known || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &ne) {
		return
	}
	l.t.mu.Lock()
	name := l.t.name(l.id)
	l.t.mu.Unlock()
	l.t.e.met.cut.WithLabelValues("protocol").Inc()
	l.t.e.cfg.Log.Warn().Err(err).Str("peer", name).Stringer("digest", l.t.id.Digest).
		Msg("peer broke the wire protocol, closing the connection")
}

// attach begins to trade on a connection, unless the peer is not welcome, or
// another connection to it is as good.
func (t *Torrent) attach(l *link) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.dropped || l.id == t.e.id || len(t.links) >= t.maxLinks() {
		return false
	}
	for old := range t.links {
		if old.id != l.id {
			continue
		}
		if !preferred(old, l) {
			return false
		}
		old.refused = true
		old.voidAll()
		old.end()
	}
	if !t.roster.connected(l.id, now) {
		t.roster.gone(l.id, now)
		return false
	}
	l.peer = t.picker.Join()
	t.links[l] = struct{}{}
	t.work.Add(1)
	t.e.met.peers.Inc()
	have := t.blob.Have()
	l.say(func(b []byte) []byte {
		b = appendHave(b, have)
		b = appendMessage(b, pp.Unchoke)
		return appendMessage(b, pp.Interested)
	})
	return true
}

func (t *Torrent) detach(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.links, l)
	t.e.turns.drop(l)
	l.peer.Leave()
	t.roster.gone(l.id, time.Now())
	t.e.met.peers.Dec()
	if !t.dropped {
		t.askAll(time.Now())
		t.poke()
	}
}

// maxLinks is how many peers the blob is traded with. Each may be in the middle
// of sending a piece, which is in memory until it is complete.
func (t *Torrent) maxLinks() int {
	return max(8, min(t.e.tune.maxConns, int(maxComing/t.id.Geometry.PieceLength)))
}
