package picker

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	now := time.Unix(1000, 0)
	p := strict(100)
	q := p.Join()
	gain(q, 0, 1, 2, 3, 4) // what it had when we met does not count
	pace := func(want float64) {
		t.Helper()
		if got := q.Pace(now); got != want {
			t.Errorf("%v pieces a second, want %v", got, want)
		}
	}
	pace(0)
	now = now.Add(2 * time.Second)
	pace(0)
	gain(q, 10, 11, 11, 12, 13)
	pace(2)
	q.Lose(13)
	q.Lose(50)
	pace(1.5)
}
