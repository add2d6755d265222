package engine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// orderedNames returns two node names, the one with the higher peer id first.
func orderedNames() (high, low string) {
	high, low = "a", "b"
	x, y := nodeID(high), nodeID(low)
	if string(x[:]) < string(y[:]) {
		high, low = low, high
	}
	return high, low
}

func TestRosterDialsAtOnce(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRoster(nodeID("me"))
	r.add(Peer{"other", "other:1"}, now)
	if diff := cmp.Diff([]Peer{{"other", "other:1"}}, r.due(now)); diff != "" {
		t.Error(diff)
	}
}

func TestRosterIgnoresNonsense(t *testing.T) {
	r := newRoster(nodeID("me"))
	r.add(Peer{"me", "me:1"}, time.Now())
	r.add(Peer{"x", ""}, time.Now())
	if len(r.peers) != 0 {
		t.Errorf("%d peers", len(r.peers))
	}
}

// TestRosterGivesUp dials with back-off, then forgets, until the peer is named
// again.
func TestRosterGivesUp(t *testing.T) {
	high, low := orderedNames()
	start := time.Unix(1000, 0)
	r := newRoster(nodeID(high))
	r.add(Peer{low, "x:1"}, start)
	var at []time.Duration
	for !r.wake().IsZero() {
		now := r.wake()
		if r.due(now) != nil {
			at = append(at, now.Sub(start))
			// Naming it again changes nothing.
			r.add(Peer{low, "x:1"}, now)
			// Somebody answers who does not know the blob, or does not
			// want us.
			r.connected(nodeID(low), now)
			if len(at)%2 == 0 {
				r.trades(nodeID(low), now)
			}
			r.gone(nodeID(low), now)
			r.dialled(Peer{low, "x:1"}, now)
		}
	}
	const ms = time.Millisecond
	if diff := cmp.Diff([]time.Duration{0, 100 * ms, 300 * ms, 700 * ms, 1500 * ms, 3100 * ms, 6300 * ms, 11300 * ms}, at); diff != "" {
		t.Error(diff)
	}
	r.add(Peer{low, "x:1"}, start)
	if diff := cmp.Diff([]Peer{{low, "x:1"}}, r.due(start)); diff != "" {
		t.Errorf("named again: %s", diff)
	}
}

// TestRosterDialsOnceAtATime: also when the attempt takes its time, and when a
// connection that the peer opened comes and goes meanwhile.
func TestRosterDialsOnceAtATime(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRoster(nodeID("me"))
	p := Peer{"other", "other:1"}
	r.add(p, now)
	r.due(now)
	r.add(p, now)
	r.connected(nodeID("other"), now)
	r.gone(nodeID("other"), now)
	later := now.Add(time.Minute)
	if again := r.due(later); again != nil {
		t.Errorf("dials %v while it dials", again)
	}
	r.dialled(p, later)
	if diff := cmp.Diff([]Peer{p}, r.due(later.Add(dialRetryMin))); diff != "" {
		t.Error(diff)
	}
}

func TestRosterReconnects(t *testing.T) {
	high, low := orderedNames()
	now := time.Unix(1000, 0)
	r := newRoster(nodeID(high))
	r.add(Peer{low, "x:1"}, now)
	r.due(now)
	if !r.connected(nodeID(low), now) {
		t.Error("not welcome")
	}
	r.dialled(Peer{low, "x:1"}, now)
	r.trades(nodeID(low), now)
	r.add(Peer{low, "x:1"}, now)
	if !r.wake().IsZero() {
		t.Error("dials a connected peer")
	}
	r.peers[nodeID(low)].tries = 5
	now = now.Add(time.Minute)
	r.gone(nodeID(low), now)
	if got := r.wake(); !got.Equal(now.Add(dialRetryMin)) {
		t.Errorf("wakes at %v", got)
	}
	// It came back under another address.
	r.add(Peer{low, "x:2"}, now)
	if diff := cmp.Diff([]Peer{{low, "x:2"}}, r.due(now)); diff != "" {
		t.Error(diff)
	}
}

func TestRosterLeavesOut(t *testing.T) {
	high, low := orderedNames()
	now := time.Unix(1000, 0)
	r := newRoster(nodeID(high))
	r.add(Peer{low, "x:1"}, now)
	r.connected(nodeID(low), now)
	r.cut(nodeID(low), now)
	r.cut(nodeID(low), now) // the same lie seen twice
	r.gone(nodeID(low), now)
	if got := r.wake(); !got.Equal(now.Add(cutMin)) {
		t.Errorf("dials it at %v", got)
	}
	if r.connected(nodeID(low), now.Add(cutMin-1)) {
		t.Error("let in")
	}
	r.gone(nodeID(low), now.Add(cutMin-1))
	now = now.Add(cutMin)
	if !r.connected(nodeID(low), now) {
		t.Error("not let in after its time")
	}
	for range 20 {
		r.cut(nodeID(low), now)
		now = r.peers[nodeID(low)].until
	}
	if got := r.peers[nodeID(low)]; !r.connected(nodeID(low), got.until) {
		t.Error("out for good")
	}
	r.cut(nodeID(low), now)
	if got := r.peers[nodeID(low)].until.Sub(now); got != cutMax {
		t.Errorf("out for %v", got)
	}
}

// TestRosterForgetsStrangers: a peer that nobody named is forgotten when it is
// gone, but for how long it is left out.
func TestRosterForgetsStrangers(t *testing.T) {
	now := time.Unix(1000, 0)
	r := newRoster(nodeID("me"))
	id := nodeID("stranger")
	r.connected(id, now)
	r.gone(id, now)
	if len(r.peers) != 0 {
		t.Error("still known")
	}
	r.connected(id, now)
	r.cut(id, now)
	r.gone(id, now)
	if len(r.peers) != 1 {
		t.Error("forgotten though left out")
	}
}
