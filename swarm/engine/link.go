package engine

import (
	"errors"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// The library's writer of a connection can miss its wake-up: in
// peerConnMsgWriter.run of v1.61.0, what becomes ready to be sent after
// fillWriteBuffer has looked and before writeCond.Signaled is called is left
// until something else wakes the writer, be it the last chunk that a peer
// waits for, or our next requests. That happens once in some hundred small
// downloads between two nodes; more peers wake each other and hide it. Only a
// message that is written always wakes the writer. So after each sign of life
// on a connection an empty message of an extension of ours is written, which
// the peer ignores: after nudgeAfter, and while nothing happens in doubling
// intervals up to 13 s, then no more. At most 20 of 6 bytes per second.
const (
	nudgeName  pp.ExtensionName   = "sh_nudge"
	nudgeID    pp.ExtensionNumber = 1 // its place in extensions
	nudgeAfter                    = 50 * time.Millisecond
	maxNudges                     = 8
)

var errRefused = errors.New("peer is left out")

// link is one connection to a peer.
type link struct {
	t  *Torrent
	pc *torrent.PeerConn
	id torrent.PeerID

	// Guarded by Torrent.mu.
	refused bool
	gate    gate
	has     chunker.Bitfield // what the peer has
	held    bool             // some of that was not passed on to the library yet
	owed    int              // chunks requested and not yet received
	heard   time.Time        // when the last one came, or the first one was requested
	nudge   time.Time        // when to nudge; zero: not at all
	nudges  int              // since something happened
}

func newLink(t *Torrent, pc *torrent.PeerConn) *link {
	return &link{t: t, pc: pc, id: pc.PeerID, gate: newGate(t.id.Geometry, t.e.tune.chunk), has: chunker.NewBitfield(t.id.Geometry.NumPieces())}
}

// take judges a message of the peer and takes note of what it says. The
// library's lock is held.
func (l *link) take(m *pp.Message) error {
	t := l.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.refused {
		return errRefused
	}
	if err := l.gate.admit(m); err != nil {
		return err
	}
	l.pc.PeerMaxRequests = t.depth
	fresh := !m.Keepalive && m.Type == pp.Have && !l.has.Has(int(m.Index))
	defer l.hold(m, fresh)
	if m.Keepalive || m.Type == pp.Extended {
		return nil
	}
	switch m.Type {
	case pp.HaveAll:
		for i := range l.has.Len() {
			l.gains(i)
		}
	case pp.Bitfield:
		for i, set := range m.Bitfield[:l.has.Len()] {
			if set {
				l.gains(i)
			}
		}
	case pp.Have:
		l.gains(int(m.Index))
	}
	now := time.Now()
	switch m.Type {
	case pp.HaveAll, pp.HaveNone, pp.Bitfield:
		t.roster.trades(l.id, now)
	}
	if l.stir(now) || t.picker.stirred() {
		t.poke()
	}
	return nil
}

// hold keeps news of pieces from the library while it waits for most of what it
// requested of the peer. It would look for more to request at once, and then
// take what that adds, mostly nothing, for what the peer can bear: in
// applyRequestState of v1.61.0 peakRequests is the number of new requests, and
// twice that is the limit from then on. In a swarm, with news all the time,
// that left connections idle between one chunk and the next. News that was kept
// goes to the library with the next message that makes room for it, as a
// bitfield. m was admitted, and fresh says that it is news.
func (l *link) hold(m *pp.Message, fresh bool) {
	switch few := l.owed <= l.t.depth/2; {
	case fresh && !few:
		*m = pp.Message{Keepalive: true}
		l.held = true
	case l.held && few && (fresh || m.Keepalive || m.Type == pp.Extended && m.ExtendedID == nudgeID):
		bits := make([]bool, (l.has.Len()+7)/8*8)
		for i := range l.has.All() {
			bits[i] = true
		}
		*m = pp.Message{Type: pp.Bitfield, Bitfield: bits}
		l.held = false
	}
}

func (l *link) gains(i int) {
	if !l.has.Has(i) {
		l.has.Set(i)
		l.t.picker.gained(i)
	}
}

// stir notes that something happened for which the library may have to write,
// and says whether the next nudge is sooner than before. Torrent.mu is held.
func (l *link) stir(now time.Time) bool {
	l.nudges = 0
	at := now.Add(nudgeAfter)
	if !l.nudge.IsZero() && !l.nudge.After(at) {
		return false
	}
	l.nudge = at
	return true
}

// nudgeDue says whether to nudge now. Torrent.mu is held.
func (l *link) nudgeDue(now time.Time) bool {
	// A few together rather than one by one.
	if l.nudge.IsZero() || l.nudge.After(now.Add(nudgeAfter/5)) {
		return false
	}
	l.nudges++
	l.nudge = now.Add(nudgeAfter << l.nudges)
	if l.nudges >= maxNudges {
		l.nudge = time.Time{}
	}
	return true
}

// owe notes that a chunk was requested of the peer, or no longer is.
func (l *link) owe(n int) {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	idle := l.owed == 0
	l.owed += n
	if idle {
		l.heard = time.Now()
		l.t.poke()
	}
}

// gave notes that the peer sent a chunk of piece i.
func (l *link) gave(i int) {
	l.t.mu.Lock()
	defer l.t.mu.Unlock()
	l.heard = time.Now()
	l.t.ledger.sent(i, l.id)
}
