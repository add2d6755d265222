package engine

import (
	"slices"
	"sync"
	"time"

	"github.com/shoal-dev/shoal/swarm/picker"
)

// patientWrite is how long a peer's connection may take no bytes before its turn
// goes to another: the peer's link is the slow one then, and ours would idle.
const patientWrite = 100 * time.Millisecond

// turns shares out the node's uplink: to [picker.Slots] peers at a time pieces are
// sent, one each, and then to others. Blobs take turns; of a blob's peers that
// wait the one that gains pieces most slowly is next. Messages, rejections among
// them, never wait.
//
// A link with chunks to send stands in its torrent's line, and the torrent in the
// ring. Torrent.mu may be held when turns.mu is taken, not the other way round.
type turns struct {
	mu    sync.Mutex
	taken int
	ring  []*Torrent // with links in line, each once
}

// turn is where a link stands. It is written with Torrent.mu and link.mu held.
type turn int

const (
	noTurn  turn = iota // nothing to send
	waiting             // in the line
	sending
)

// request has a link with chunks to send take its turn, or wait for it.
func (s *turns) request(l *link) {
	l.t.mu.Lock()
	l.stand()
	l.t.mu.Unlock()
	s.pass()
}

// yield ends a link's turn. If it has more to send it waits for the next one.
func (s *turns) yield(l *link) {
	l.t.mu.Lock()
	s.drop(l)
	l.stand()
	l.t.mu.Unlock()
	s.pass()
}

// drop takes a link out of the line, or its turn away. Torrent.mu is held; pass
// has to be called without it then.
func (s *turns) drop(l *link) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch l.turn {
	case waiting:
		l.t.line = slices.DeleteFunc(l.t.line, func(o *link) bool { return o == l })
	case sending:
		s.mu.Lock()
		s.taken--
		s.mu.Unlock()
	}
	l.turn = noTurn
}

// pass gives what slots are free to those that wait.
func (s *turns) pass() {
	for {
		s.mu.Lock()
		if s.taken >= picker.Slots || len(s.ring) == 0 {
			s.mu.Unlock()
			return
		}
		t := s.ring[0]
		s.ring = slices.Delete(s.ring, 0, 1)
		s.taken++
		s.mu.Unlock()
		t.mu.Lock()
		used := t.admit(time.Now())
		if len(t.line) > 0 {
			s.enlist(t)
		}
		t.mu.Unlock()
		if !used { // who waited has gone
			s.mu.Lock()
			s.taken--
			s.mu.Unlock()
		}
	}
}

// enlist puts a torrent into the ring, at the end.
func (s *turns) enlist(t *Torrent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.ring, t) {
		s.ring = append(s.ring, t)
	}
}

// stand puts a link into the line that has chunks to send and is not in it.
// Torrent.mu is held, as for admit.
func (l *link) stand() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn != noTurn || len(l.serve) == 0 || l.ended {
		return
	}
	l.turn = waiting
	l.t.line = append(l.t.line, l)
	l.t.e.turns.enlist(l.t)
}

// admit gives a slot to the link in line that should have it; false: nobody waits.
func (t *Torrent) admit(now time.Time) bool {
	if len(t.line) == 0 {
		return false
	}
	next, least := 0, t.line[0].peer.Pace(now)
	for k, l := range t.line[1:] {
		if pace := l.peer.Pace(now); pace < least {
			next, least = k+1, pace
		}
	}
	l := t.line[next]
	t.line = slices.Delete(t.line, next, next+1)
	l.mu.Lock()
	l.turn = sending
	l.mu.Unlock()
	l.poke()
	return true
}
