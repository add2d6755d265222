package tracker

import (
	"fmt"
	"testing"
	"time"
)

// TestTheEndIsImpatient: a lease that stands still is given up sooner when all
// wait for it.
func TestTheEndIsImpatient(t *testing.T) {
	const size = 8 << 20
	for _, all := range []bool{false, true} {
		l := newLarge(t, size, Params{LeaseMin: 1, OriginStreams: 40})
		for i := range 5 {
			l.Join(hello(fmt.Sprint(i), size, true), epoch)
		}
		now := epoch.Add(2 * time.Second)
		if all { // all pieces but those under lease have come in
			for i := range l.pieces {
				if l.free(i) {
					l.Handle("4", Up{Got: []int{i}}, now)
				}
			}
		}
		revoked := 0
		for _, o := range l.Tick(now) {
			revoked += len(o.Down.Revoke)
		}
		if (revoked > 0) != all {
			t.Errorf("nothing left to lease %v: %d leases revoked after 2 s", all, revoked)
		}
	}
}

// TestTheLastLeasesRotate: a registry that answers late to everybody near the end is
// asked by one after the other, and given more time at each try; nobody is told that
// nothing is left, which would send all of them to it.
func TestTheLastLeasesRotate(t *testing.T) {
	const size = 1 << 20 // eight pieces
	l := newLarge(t, size, Params{})
	take := func(out []Out) {
		t.Helper()
		for _, o := range out {
			if o.Down.Starved {
				t.Errorf("%s was told that there is no source", o.To)
			}
		}
	}
	const pullers = 12
	for i := range pullers {
		take(l.Join(hello(fmt.Sprint(i), size, true), epoch))
	}
	if l.frees != 0 {
		t.Fatalf("%d pieces are not leased", l.frees)
	}
	tries := []time.Duration{0}
	var last string
	for now := time.Duration(0); now < 4900*time.Millisecond; now += TickEvery {
		out := l.Tick(epoch.Add(now))
		take(out)
		for node, ls := range grants(out) {
			if len(ls) > 1 {
				t.Errorf("%s got %d leases at once, others none", node, len(ls))
			}
			if len(ls) == 0 || ls[0].First != 0 {
				continue
			}
			if node == last {
				t.Errorf("%s got the lease back at once that it did not fulfil", node)
			}
			last = node
			tries = append(tries, now)
		}
	}
	if got, want := fmt.Sprint(tries), "[0s 1s 3s]"; got != want {
		t.Errorf("the first piece was tried at %s, want %s", got, want)
	}
}
