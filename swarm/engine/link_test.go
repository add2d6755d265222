package engine

import (
	"slices"
	"testing"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
)

// newTestLink is a link of a torrent that the library does not know.
func newTestLink(g chunker.Geometry) *link {
	t := &Torrent{
		e: &Engine{tune: defaultTuning}, id: chunker.Identity{Geometry: g}, wake: make(chan struct{}, 1),
		roster: newRoster(peerID("self")), ledger: newLedger(), picker: newPicker(g), links: map[*link]struct{}{},
	}
	t.resize()
	return newLink(t, &torrent.PeerConn{})
}

// TestHold: news of pieces waits while much is requested of the peer, and none
// of it is lost.
func TestHold(t *testing.T) {
	g, err := chunker.GeometryOf(10 * chunker.MinPieceLength)
	if err != nil {
		t.Fatal(err)
	}
	l := newTestLink(g)
	take := func(m pp.Message) pp.Message {
		t.Helper()
		if err := l.take(&m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	have := func(i int) pp.Message { return pp.Message{Type: pp.Have, Index: pp.Integer(i)} }
	nudge := pp.Message{Type: pp.Extended, ExtendedID: nudgeID}
	many, few := l.t.depth, l.t.depth/2

	take(pp.Message{Type: pp.HaveNone})
	if m := take(have(0)); m.Type != pp.Have || m.Index != 0 {
		t.Errorf("news to an idle connection became %v", m)
	}
	l.owed = many
	for _, i := range []int{3, 5} {
		if m := take(have(i)); !m.Keepalive {
			t.Errorf("news to a busy connection became %v", m)
		}
	}
	if !l.has.Has(3) || l.t.picker.avail[5] != 1 {
		t.Error("what is kept from the library is not known here")
	}
	if m := take(have(0)); m.Keepalive || m.Type != pp.Have {
		t.Errorf("old news became %v", m)
	}
	if m := take(nudge); m.Type != pp.Extended {
		t.Errorf("a nudge to a busy connection became %v", m)
	}
	l.owed = few
	if m := take(pp.Message{Type: pp.Unchoke}); m.Type != pp.Unchoke {
		t.Errorf("a message that says something became %v", m)
	}
	for name, m := range map[string]pp.Message{"nudge": nudge, "keep-alive": {Keepalive: true}, "news": have(3 + 4)} {
		l.held = true
		got := take(m)
		if got.Keepalive || got.Type != pp.Bitfield || len(got.Bitfield)%8 != 0 {
			t.Errorf("%s became %v", name, got)
			continue
		}
		var is []int
		for i, set := range got.Bitfield {
			if set {
				is = append(is, i)
			}
		}
		if want := slices.Collect(l.has.All()); !slices.Equal(is, want) {
			t.Errorf("%s brought %v, the peer has %v", name, is, want)
		}
		if again := take(nudge); again.Type != pp.Extended {
			t.Errorf("after %s nothing is left, but a nudge became %v", name, again)
		}
	}
}
