package mirror

import (
	"net/http"
	"strings"
	"sync"
	"time"
)

// burstPause is how long nothing may be pulled within a burst, at most: a kubelet
// that pulls the images of a pod one after the other unpacks one before it asks for
// the next.
const burstPause = 30 * time.Second

// burst is a time in which this node pulls, without a long pause: an image, or all
// that a rollout brings to it. Together the nodes' bursts tell how long a rollout
// took: from when the first one began until the last one ended.
type burst struct {
	mu    sync.Mutex
	pulls int // under way
	began time.Time
	// ended is when the last pull did that is not under way any more.
	ended time.Time
}

// partOfBurst tells the requests by which images are pulled. A kubelet asks for
// the digest of a tag for each pod, also where nothing is to be pulled; and lazy
// snapshotters, which name the end of a range, read for as long as a container runs.
func partOfBurst(r *http.Request) bool {
	rg := r.Header.Get("Range")
	return r.Method == http.MethodGet && (rg == "" || strings.HasSuffix(rg, "-"))
}

// start and stop are the beginning and the end of one pull.
func (b *burst) start(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pulls == 0 && now.Sub(b.ended) > burstPause {
		b.began = now
	}
	b.pulls++
}

func (b *burst) stop(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pulls--
	b.ended = now
}

// beginning of the last burst; zero before the first.
func (b *burst) beginning() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.began
}

// end of the last burst so far: now, while something is pulled; zero before the
// first.
func (b *burst) end(now time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.pulls > 0 {
		return now
	}
	return b.ended
}

// unixSeconds is how Prometheus has times; 0 is none.
func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1e3
}
