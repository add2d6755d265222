package tracker

import (
	"fmt"
	"testing"
	"time"
)

// TestABurstSaysLittleOfSpeed: a lease that is over at once, since its bytes were in
// some buffer, does not get its puller the rest of a small blob.
func TestABurstSaysLittleOfSpeed(t *testing.T) {
	const size = 10e6
	l := newLarge(t, size, Params{})
	out := []Out{}
	for i := range 8 {
		out = append(out, l.Join(hello(fmt.Sprint(i), size, true), epoch)...)
	}
	now := epoch.Add(5 * time.Millisecond)
	var longest int
	for range 3 { // all that a puller gets is over after 5 ms
		mine := grants(out)["7"]
		out = nil
		for _, ls := range mine {
			longest = max(longest, ls.Count)
			out = append(out, l.Handle("7", Up{Have: fulfilled(ls)}, now)...)
		}
		now = now.Add(5 * time.Millisecond)
	}
	if longest == 0 || longest > l.Pieces()/8 {
		t.Errorf("the longest lease had %d of %d pieces", longest, l.Pieces())
	}
}
