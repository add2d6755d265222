package swarm

import (
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// skewMemory is how long the worst clock is remembered: longer than scrapes are
// apart, short enough that a clock that was set right is soon forgotten.
const skewMemory = 10 * time.Minute

// clocks compares this node's clock with those of others, which date their
// answers to the second. Certificates, tokens and leases of consent go by the
// clock.
type clocks struct {
	gauge prometheus.Gauge

	mu    sync.Mutex
	worst time.Duration
	at    time.Time
}

// compare takes in the Date of an answer that arrived just now. A date leaves out
// what is below a second, so the skew is the least that explains it: a clock that is
// right has none. The way here makes a clock look slow by as long as it took, which
// callTimeout bounds.
func (c *clocks) compare(date string, now time.Time) {
	there, err := http.ParseTime(date)
	if err != nil {
		return
	}
	var skew time.Duration
	switch first, last := there.Sub(now), there.Add(time.Second).Sub(now); {
	case first > 0:
		skew = first
	case last < 0:
		skew = last
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if skew.Abs() < c.worst.Abs() && now.Sub(c.at) < skewMemory {
		return
	}
	c.worst, c.at = skew, now
	c.gauge.Set(skew.Seconds())
}
