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

// compare takes in the Date of an answer that arrived just now. The way here
// makes a clock look slow by as long as it took, which callTimeout bounds.
func (c *clocks) compare(date string, now time.Time) {
	there, err := http.ParseTime(date)
	if err != nil {
		return
	}
	skew := there.Sub(now.Truncate(time.Second))
	c.mu.Lock()
	defer c.mu.Unlock()
	if skew.Abs() < c.worst.Abs() && now.Sub(c.at) < skewMemory {
		return
	}
	c.worst, c.at = skew, now
	c.gauge.Set(skew.Seconds())
}
