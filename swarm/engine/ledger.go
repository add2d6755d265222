package engine

import (
	"slices"
	"strings"

	"github.com/anacrolix/torrent"
)

// maxFailures is how often a piece may fail before it is not wanted any more.
// The first failure points out the sender, and the second try goes to others;
// a third means that its sum is wrong, or that nobody honest has it.
const maxFailures = 3

// result of a piece's verification.
type result int

const (
	good   result = iota
	wrong         // the bytes contradict the sum
	broken        // the bytes cannot be read
	moot          // nobody knows any more what they should be
)

// ledger remembers who sent what, to tell who sent wrong bytes. It is not safe
// for concurrent use.
type ledger struct {
	from   map[int][]torrent.PeerID // senders of the current try, by piece
	failed map[int]*failure
	given  map[int]bool // not wanted any more
	record map[torrent.PeerID]*record
}

// failure of one piece, over all tries since it was last wanted.
type failure struct {
	tries   int
	senders []torrent.PeerID
}

// record of one node: pieces to which it contributed.
type record struct{ good, wrong int }

func newLedger() *ledger {
	return &ledger{
		from: map[int][]torrent.PeerID{}, failed: map[int]*failure{},
		given: map[int]bool{}, record: map[torrent.PeerID]*record{},
	}
}

// sent notes that a node contributed to a piece.
func (l *ledger) sent(i int, id torrent.PeerID) {
	if !slices.Contains(l.from[i], id) {
		l.from[i] = append(l.from[i], id)
	}
}

// fresh forgets the failures of a piece that is wanted anew.
func (l *ledger) fresh(i int) {
	delete(l.failed, i)
	delete(l.given, i)
}

// verdict says what follows from a verification.
type verdict struct {
	// senders of the try that was judged.
	senders []torrent.PeerID
	// culprit is to be left out, if blame is true.
	culprit torrent.PeerID
	blame   bool
	// giveUp: the piece has failed too often, with data from these nodes.
	giveUp bool
	all    []torrent.PeerID
}

// judge settles a try.
func (l *ledger) judge(i int, r result) verdict {
	v := verdict{senders: l.from[i]}
	delete(l.from, i)
	switch r {
	case good:
		for _, id := range v.senders {
			l.of(id).good++
		}
		l.fresh(i)
		return v
	case moot:
		v.senders = nil
		l.fresh(i)
		return v
	case wrong:
		for _, id := range v.senders {
			l.of(id).wrong++
		}
		v.culprit, v.blame = l.worst(v.senders)
	}
	if l.given[i] {
		return v
	}
	f := l.failed[i]
	if f == nil {
		f = &failure{}
		l.failed[i] = f
	}
	f.tries++
	for _, id := range v.senders {
		if r == wrong && !slices.Contains(f.senders, id) {
			f.senders = append(f.senders, id)
		}
	}
	if f.tries >= maxFailures {
		v.giveUp, v.all = true, f.senders
		delete(l.failed, i)
		l.given[i] = true
	}
	return v
}

func (l *ledger) of(id torrent.PeerID) *record {
	r := l.record[id]
	if r == nil {
		r = &record{}
		l.record[id] = r
	}
	return r
}

// worst returns the node with the most wrong pieces per good one. A liar among
// honest nodes stands out at once: it is in every wrong piece and in no good
// one.
func (l *ledger) worst(ids []torrent.PeerID) (torrent.PeerID, bool) {
	if len(ids) == 0 {
		return torrent.PeerID{}, false
	}
	return slices.MaxFunc(ids, func(a, b torrent.PeerID) int {
		x, y := l.of(a), l.of(b)
		if d := x.wrong*(y.good+1) - y.wrong*(x.good+1); d != 0 {
			return d
		}
		return strings.Compare(string(b[:]), string(a[:]))
	}), true
}
