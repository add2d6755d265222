package engine

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/picker"
)

// lineUp makes an engine with torrents whose links have one chunk each to send.
func lineUp(t *testing.T, links ...int) (*Engine, [][]*link) {
	t.Helper()
	g, err := chunker.GeometryOf(64 << 20)
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{}
	all := make([][]*link, len(links))
	for k, n := range links {
		tor := &Torrent{e: e, picker: picker.New(picker.Tuning{}, g, rand.New(rand.NewPCG(1, 2)))}
		for range n {
			l := newLink(tor, nil, nil, peerID{}, peerID{})
			l.peer = tor.picker.Join()
			l.serve = []chunk{{}}
			all[k] = append(all[k], l)
			e.turns.request(l)
		}
	}
	return e, all
}

func senders(links []*link) (is []int) {
	for i, l := range links {
		if l.turn == sending {
			is = append(is, i)
		}
	}
	return is
}

// TestTurnsAreLimited: over all blobs, which take turns; who is done makes room.
func TestTurnsAreLimited(t *testing.T) {
	e, links := lineUp(t, picker.Slots+3, 4)
	if n := len(senders(links[0])); n != picker.Slots {
		t.Fatalf("%d send at a time, want %d", n, picker.Slots)
	}
	done := func(i int) {
		links[0][i].serve = nil
		e.turns.yield(links[0][i])
	}
	done(0)
	done(1)
	if a, b := len(senders(links[0])), len(senders(links[1])); a+b != picker.Slots || b != 1 {
		t.Errorf("%d and %d of two blobs send, want %d with one of the second", a, b, picker.Slots)
	}
	for i := 2; i < picker.Slots; i++ {
		done(i)
	}
	if a, b := len(senders(links[0])), len(senders(links[1])); a != 3 || b != 4 {
		t.Errorf("%d and %d send, want all that are left, 3 and 4", a, b)
	}
}

// TestTurnGoesToTheSlowest: to who gains least, not to who has waited longest.
func TestTurnGoesToTheSlowest(t *testing.T) {
	e, links := lineUp(t, picker.Slots+3)
	all := links[0]
	now := time.Now()
	for _, l := range all { // the first look begins the count
		l.peer.Pace(now.Add(-time.Second))
	}
	for i := range 5 {
		all[picker.Slots].peer.Gain(i)
		all[picker.Slots+2].peer.Gain(i)
	}
	all[picker.Slots+1].peer.Gain(0)
	e.turns.yield(all[0]) // it has more to send
	if got := all[0].turn; got != sending {
		t.Errorf("who gains nothing has turn %d, want to send on", got)
	}
	all[0].serve = nil
	e.turns.yield(all[0])
	if got := all[picker.Slots+1].turn; got != sending {
		t.Errorf("who gained least of those that wait has turn %d, want to send", got)
	}
}

// TestTurnIsGivenBack by who left, or was cancelled, whether it waited or sent.
func TestTurnIsGivenBack(t *testing.T) {
	e, links := lineUp(t, picker.Slots+2, 1)
	all := links[0]
	gone := func(l *link) {
		l.ended = true
		l.t.mu.Lock()
		e.turns.drop(l)
		l.t.mu.Unlock()
		e.turns.pass()
	}
	gone(all[picker.Slots]) // waits
	all[0].cancelled(chunk{})
	gone(all[1])
	gone(all[picker.Slots+1])
	gone(links[1][0])
	for _, l := range all[2:picker.Slots] {
		gone(l)
	}
	if e.turns.taken != 0 {
		t.Errorf("%d slots are taken by nobody", e.turns.taken)
	}
	if n := len(all[0].t.line) + len(links[1][0].t.line); n != 0 {
		t.Errorf("%d who are gone wait", n)
	}
	e.turns.request(all[1]) // too late
	if all[1].turn != noTurn {
		t.Error("who is gone stands in line")
	}
}
