package tracker

import (
	"testing"
	"time"
)

func TestLooks(t *testing.T) {
	l := Looks{Every: time.Second}
	now := time.Now()
	for i, c := range []struct {
		after time.Duration
		skip  bool
	}{
		{0, false}, // the first one, however long the process has run
		{time.Second, false},
		{1900 * time.Millisecond, false},
		{3 * time.Second, true},
		{100 * time.Millisecond, true}, // a ticker keeps its phase
		{time.Second, false},
		{3 * time.Second, true},
		{3 * time.Second, false}, // late again: somebody has to judge
		{time.Second, false},
		{time.Minute, true},
		{time.Second, false},
	} {
		now = now.Add(c.after)
		if got := l.Skip(now); got != c.skip {
			t.Errorf("look %d, %v after the last one: Skip = %v", i, c.after, got)
		}
	}
}
