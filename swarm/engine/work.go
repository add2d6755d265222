package engine

import (
	"errors"
	"time"

	"github.com/anacrolix/torrent"
)

// staleAfter is how long to wait for the end of a hash.
const staleAfter = 5 * time.Millisecond

func (t *Torrent) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// run is the torrent's goroutine: whatever may take the library's lock, or
// calls the owner.
func (t *Torrent) run() {
	defer close(t.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-t.wake:
		case <-timer.C:
		}
		if !t.deliver() {
			return
		}
		now := time.Now()
		ages := t.pick(now)
		t.dial(now)
		t.closeSilent(now)
		t.nudge(now)
		t.freshen()
		t.mu.Lock()
		next := sooner(t.next(), ages)
		t.mu.Unlock()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		}
	}
}

// next is when there is something to do; zero: not before somebody pokes.
func (t *Torrent) next() (at time.Time) {
	if t.active {
		at = t.roster.wake()
	}
	if len(t.stale) > 0 {
		at = sooner(at, time.Now().Add(staleAfter))
	}
	for l := range t.links {
		at = sooner(at, l.nudge)
		if l.owed > 0 {
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

// deliver settles what the hashers left; false: the torrent is dropped.
func (t *Torrent) deliver() bool {
	t.mu.Lock()
	queue := t.queue
	t.queue = nil
	t.mu.Unlock()
	for _, ev := range queue {
		select {
		case <-t.stop:
			return false
		default:
		}
		t.settle(ev)
	}
	return true
}

func (t *Torrent) settle(ev event) {
	if ev.result == good {
		if t.ev.PieceDone != nil {
			t.ev.PieceDone(ev.piece)
		}
		return
	}
	if ev.result == moot {
		// Unless it got another sum meanwhile, and is wanted for that.
		if _, known := t.blob.Sum(ev.piece); !known {
			t.Unwant(ev.piece)
		}
		return
	}
	t.e.met.bad.Inc()
	log := t.e.cfg.Log.With().Stringer("digest", t.id.Digest).Int("piece", ev.piece).Logger()
	if ev.result == wrong {
		log.Warn().Strs("peers", t.names(ev.verdict.senders)).Msg("piece from peers contradicts its published digest, discarded")
	} else {
		log.Error().Msg("piece from peers cannot be verified, discarded")
	}
	if ev.verdict.giveUp {
		t.Unwant(ev.piece)
		if t.ev.PieceBad != nil {
			t.ev.PieceBad(ev.piece, t.names(ev.verdict.all))
		}
	}
	if ev.verdict.blame {
		t.leaveOut(ev.verdict.culprit, "lied")
	}
}

// leaveOut closes a peer's connections and turns it away for a while.
func (t *Torrent) leaveOut(id torrent.PeerID, reason string) {
	t.mu.Lock()
	t.roster.cut(id, time.Now())
	var pcs []*torrent.PeerConn
	for l := range t.links {
		if l.id == id {
			l.refused = true
			pcs = append(pcs, l.pc)
		}
	}
	name := t.roster.name(id)
	t.mu.Unlock()
	if len(pcs) == 0 {
		return // left, or was left out for its last piece
	}
	t.e.met.cut.WithLabelValues(reason).Inc()
	t.e.cfg.Log.Warn().Str("peer", name).Str("reason", reason).Stringer("digest", t.id.Digest).
		Msg("leaving a peer out of the blob's swarm for a while")
	for _, pc := range pcs {
		_ = pc.Close() // always nil
	}
}

// pick keeps the library's choice of pieces up to date, and says when to look
// again at the latest.
func (t *Torrent) pick(now time.Time) (next time.Time) {
	if !t.enter() {
		return next
	}
	defer t.leave()
	t.steer.Lock()
	defer t.steer.Unlock()
	t.mu.Lock()
	next = t.picker.age(now)
	show, hide := t.picker.pick(now)
	if len(show) > 0 {
		for l := range t.links {
			l.stir(now)
		}
	}
	raise := t.picker.raise()
	t.mu.Unlock()
	runs(hide, t.t.CancelPieces)
	runs(show, t.t.DownloadPieces)
	for _, i := range raise {
		t.t.Piece(i).SetPriority(torrent.PiecePriorityHigh)
	}
	return next
}

func (t *Torrent) dial(now time.Time) {
	t.mu.Lock()
	var addrs []string
	if t.active {
		addrs = t.roster.due(now)
	}
	t.mu.Unlock()
	if len(addrs) == 0 {
		return
	}
	infos := make([]torrent.PeerInfo, 0, len(addrs))
	for _, a := range addrs {
		infos = append(infos, torrent.PeerInfo{Addr: outgoing(a)})
	}
	t.t.AddPeers(infos)
}

// closeSilent ends connections to peers that owe chunks for too long.
func (t *Torrent) closeSilent(now time.Time) {
	t.mu.Lock()
	var ids []torrent.PeerID
	for l := range t.links {
		if l.owed > 0 && !l.refused && now.Sub(l.heard) >= t.e.tune.answer {
			ids = append(ids, l.id)
		}
	}
	t.mu.Unlock()
	for _, id := range ids {
		t.leaveOut(id, "silent")
	}
}

// nudge wakes the writers of connections on which something happened.
func (t *Torrent) nudge(now time.Time) {
	t.mu.Lock()
	var pcs []*torrent.PeerConn
	for l := range t.links {
		if l.nudgeDue(now) {
			pcs = append(pcs, l.pc)
		}
	}
	t.mu.Unlock()
	for _, pc := range pcs {
		// It fails before the peer has said hello: then there is nothing to
		// wake up for.
		_ = pc.WriteExtendedMessage(nudgeName, nil)
	}
}

// freshen settles pieces that changed while they were being hashed.
func (t *Torrent) freshen() {
	if !t.enter() {
		return
	}
	defer t.leave()
	t.mu.Lock()
	stale := t.stale
	t.stale = nil
	t.mu.Unlock()
	for _, i := range stale {
		t.update(i)
	}
}

// cannotWrite hears of a failed write into the blob. The library would go on
// asking for the same chunk.
func (t *Torrent) cannotWrite(err error) {
	if errors.Is(err, errDropped) {
		return
	}
	t.e.cfg.Log.Error().Err(err).Stringer("digest", t.id.Digest).Msg("cannot write a chunk from a peer, taking no more of this blob from peers")
	t.t.DisallowDataDownload()
}
