package engine

import (
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/swarm/picker"
)

// announce tells the peers of a piece: also those that have said that they have
// it, which may have had to withdraw it since. Torrent.mu is held.
func (t *Torrent) announce(i int) {
	if t.dropped {
		return
	}
	for l := range t.links {
		l.tell(i)
	}
	switch t.untold++; t.untold {
	case 1:
		t.news.Reset(picker.Linger(t.id.Geometry))
	case picker.MaxNews:
		t.news.Reset(0)
	}
}

// sendNews has news go out that wait, to all peers at once: one wake-up of the
// process instead of one for each.
func (t *Torrent) sendNews() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.untold = 0
	for l := range t.links {
		l.hurry()
	}
}

// tell queues news of a piece, for the next message or for hurry.
func (l *link) tell(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.news = appendMessage(l.news, pp.Have, uint32(i))
}

// hurry has news go out now that wait.
func (l *link) hurry() {
	l.mu.Lock()
	l.due = len(l.news) > 0
	due := l.due
	l.mu.Unlock()
	if due {
		l.poke()
	}
}
