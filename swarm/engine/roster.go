package engine

import (
	"time"
)

const (
	// dialRetryMin is the time between the first attempts, doubling up to
	// dialRetryMax. The other side often needs a moment before it knows the
	// blob; later on, who does not answer is gone.
	dialRetryMin = 100 * time.Millisecond
	dialRetryMax = 5 * time.Second
	// maxDials is how often a peer is dialled in vain: within 16 s.
	maxDials = 8
	// cutMin is how long a node that sent wrong bytes is left out of the
	// blob's swarm the first time, doubling up to cutMax.
	cutMin = 10 * time.Second
	cutMax = 5 * time.Minute
)

// roster decides whom to dial and when, for one torrent. It is not safe for
// concurrent use.
type roster struct {
	self  peerID
	peers map[peerID]*acquaintance
}

// acquaintance is what is known of a peer.
type acquaintance struct {
	name  string // empty: it came by itself
	addr  string // empty: it came by itself
	conns int
	// dialling: an attempt is under way. There is no other one meanwhile: a busy
	// machine takes its time for a handshake, and takes longer for two. Of
	// two connections that succeed, too, each side may keep another one.
	dialling bool

	tries int       // attempts since it last traded with us for a while
	met   time.Time // since when it trades with us; zero: it does not
	next  time.Time // when to dial; zero: not at all
	cuts  int
	until time.Time // left out until then
}

func newRoster(self peerID) *roster {
	return &roster{self: self, peers: map[peerID]*acquaintance{}}
}

func (r *roster) get(id peerID) *acquaintance {
	a := r.peers[id]
	if a == nil {
		a = &acquaintance{}
		r.peers[id] = a
	}
	return a
}

// add takes in a peer that somebody named.
func (r *roster) add(p Peer, now time.Time) {
	id := nodeID(p.ID)
	if id == r.self || p.Addr == "" {
		return
	}
	a := r.get(id)
	moved := a.addr != p.Addr
	a.name, a.addr = p.ID, p.Addr
	if a.conns > 0 || a.dialling || !a.next.IsZero() && !moved {
		return // connected, or about to be
	}
	a.tries = 0
	a.next = later(now, a.until)
}

// due returns the peers to dial now; dialled has to be called of each.
func (r *roster) due(now time.Time) (peers []Peer) {
	for _, a := range r.peers {
		if a.next.IsZero() || a.next.After(now) || a.dialling {
			continue
		}
		if a.tries >= maxDials {
			a.next = time.Time{}
			continue
		}
		peers = append(peers, Peer{a.name, a.addr})
		a.tries++
		a.next, a.dialling = time.Time{}, true
	}
	return peers
}

// dialled notes the end of an attempt, after connected if it was successful.
func (r *roster) dialled(p Peer, now time.Time) {
	a := r.get(nodeID(p.ID))
	a.dialling = false
	if a.conns == 0 && a.next.IsZero() {
		a.next = later(now.Add(backoff(a.tries)), a.until)
	}
}

// backoff is how long to wait after a number of attempts.
func backoff(tries int) time.Duration {
	return min(dialRetryMin<<max(tries-1, 0), dialRetryMax)
}

// wake is when due has something to say; zero: never.
func (r *roster) wake() (at time.Time) {
	for _, a := range r.peers {
		if !a.next.IsZero() && (at.IsZero() || a.next.Before(at)) {
			at = a.next
		}
	}
	return at
}

// connected notes a connection, and says whether the peer is welcome. It may
// still turn out that the peer does not trade this blob.
func (r *roster) connected(id peerID, now time.Time) bool {
	a := r.get(id)
	a.conns++
	a.next = time.Time{}
	return !now.Before(a.until)
}

// trades notes that a connected peer does trade this blob.
func (r *roster) trades(id peerID, now time.Time) { r.get(id).met = now }

// gone notes the end of a connection. One that did not last counts as a
// failed attempt: the peer leaves us out, or has lost the blob.
func (r *roster) gone(id peerID, now time.Time) {
	a := r.get(id)
	a.conns--
	if a.conns > 0 {
		return
	}
	if !a.met.IsZero() && now.Sub(a.met) >= dialRetryMax {
		a.tries = 0
	}
	a.met = time.Time{}
	switch {
	case a.addr != "":
		a.next = later(now.Add(backoff(a.tries)), a.until)
	case !now.Before(a.until):
		delete(r.peers, id)
	}
}

// cut leaves a peer out for a while, if it is not already.
func (r *roster) cut(id peerID, now time.Time) {
	a := r.get(id)
	if now.Before(a.until) {
		return
	}
	a.until = now.Add(min(cutMin<<min(a.cuts, 8), cutMax))
	a.cuts++
	if !a.next.IsZero() {
		a.next = later(a.next, a.until)
	}
}

// name is how a peer was named; empty: it came by itself.
func (r *roster) name(id peerID) string {
	if a := r.peers[id]; a != nil {
		return a.name
	}
	return ""
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
