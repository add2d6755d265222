package engine

import (
	"fmt"
	"testing"

	"github.com/anacrolix/torrent"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func ids(names ...string) (ids []torrent.PeerID) {
	for _, n := range names {
		ids = append(ids, peerID(n))
	}
	return ids
}

func TestLedger(t *testing.T) {
	type step struct {
		piece  int
		from   []torrent.PeerID
		result result
		want   verdict
	}
	a, b, c := peerID("a"), peerID("b"), peerID("c")
	for name, steps := range map[string][]step{
		"good pieces blame nobody": {
			{1, ids("a", "b"), good, verdict{senders: ids("a", "b")}},
			{2, ids("a"), good, verdict{senders: ids("a")}},
		},
		"a lone sender is to blame": {
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
		},
		"the one with the worse record": {
			{1, ids("a"), good, verdict{senders: ids("a")}},
			{2, ids("a", "b"), wrong, verdict{senders: ids("a", "b"), culprit: b, blame: true}},
			{3, ids("b", "c"), wrong, verdict{senders: ids("b", "c"), culprit: b, blame: true}},
		},
		"given up after three, once": {
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
			{1, ids("b"), wrong, verdict{senders: ids("b"), culprit: b, blame: true}},
			{1, ids("c"), wrong, verdict{senders: ids("c"), culprit: c, blame: true, giveUp: true, all: ids("a", "b", "c")}},
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
		},
		"success starts the count again": {
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
			{1, ids("b"), good, verdict{senders: ids("b")}},
			{1, ids("a"), wrong, verdict{senders: ids("a"), culprit: a, blame: true}},
		},
		"our own disk is nobody's fault": {
			{1, ids("a"), broken, verdict{senders: ids("a")}},
			{1, ids("a"), broken, verdict{senders: ids("a")}},
			{1, ids("b"), broken, verdict{senders: ids("b"), giveUp: true}},
		},
		"a withdrawn sum neither": {
			{1, ids("a"), moot, verdict{}},
			{1, ids("a"), moot, verdict{}},
			{1, ids("a"), moot, verdict{}},
		},
		"wrong without a sender": {
			{1, nil, wrong, verdict{}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLedger()
			for i, s := range steps {
				for _, id := range s.from {
					l.sent(s.piece, id)
					l.sent(s.piece, id)
				}
				got := l.judge(s.piece, s.result)
				if diff := cmp.Diff(s.want, got, cmp.AllowUnexported(verdict{})); diff != "" {
					t.Errorf("step %d: %s", i, diff)
				}
			}
		})
	}
}

func TestLedgerFresh(t *testing.T) {
	l := newLedger()
	for range maxFailures {
		l.sent(1, peerID("a"))
		l.judge(1, wrong)
	}
	l.fresh(1)
	for i := range maxFailures {
		l.sent(1, peerID("a"))
		if got := l.judge(1, wrong).giveUp; got != (i == maxFailures-1) {
			t.Errorf("try %d: give up %v", i, got)
		}
	}
}

// TestLiarStandsOut: whatever the honest nodes have done before, a liar that
// shares wrong pieces with some of them is blamed by the second time, if the
// blamed are left out.
func TestLiarStandsOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger()
		honest := map[torrent.PeerID]bool{}
		for i := range rapid.IntRange(0, 6).Draw(t, "honest") {
			id := peerID(fmt.Sprint("honest", i))
			honest[id] = true
			for p := range rapid.IntRange(0, 20).Draw(t, "good pieces") {
				l.sent(p, id)
				l.judge(p, good)
			}
		}
		liar := peerID("liar")
		for try := 1; ; try++ {
			l.sent(99, liar)
			for id := range honest {
				if rapid.Bool().Draw(t, "shared") {
					l.sent(99, id)
				}
			}
			v := l.judge(99, wrong)
			if !v.blame {
				t.Fatal("nobody blamed")
			}
			if v.culprit == liar {
				return
			}
			if try == 2 {
				t.Fatalf("an honest node was blamed twice before the liar")
			}
			delete(honest, v.culprit)
		}
	})
}
