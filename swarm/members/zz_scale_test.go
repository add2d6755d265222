package members

import (
	"fmt"
	"github.com/hashicorp/memberlist"
	"github.com/rs/zerolog"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

func cpu() time.Duration {
	var r syscall.Rusage
	syscall.Getrusage(0, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func TestZZScale(t *testing.T) {
	const size = 300
	var seeds []string
	cnt := &counter{m: map[string]int{}}
	defer func() {
		for k, v := range cnt.m {
			if v > 5 {
				t.Log(v, k)
			}
		}
	}()
	n0 := size
	if v := os.Getenv("ZZN"); v != "" {
		n0, _ = strconv.Atoi(v)
	}
	n := n0
	var nodes []*node
	_ = memberlist.Config{}
	for i := range n {
		c := config(fmt.Sprintf("node-%03d", i), seeds...)
		_ = zerolog.New(cnt)
		nd := create(t, c)
		if len(seeds) < 40 {
			seeds = append(seeds, nd.Addr())
		}
		nodes = append(nodes, nd)
	}
	begin, c0 := time.Now(), cpu()
	for _, nd := range nodes {
		go nd.Run(t.Context())
	}
	for time.Since(begin) < 100*time.Second {
		time.Sleep(time.Second)
		low, sum := n, 0
		for _, nd := range nodes {
			l := len(nd.Live())
			low = min(low, l)
			sum += l
		}
		t.Logf("%5.1f s: lowest %d, mean %.1f, cpu %s", time.Since(begin).Seconds(), low, float64(sum)/float64(n), cpu()-c0)
		if low == n {
			break
		}
	}
	t.Logf("%d converged after %s, cpu %s", n, time.Since(begin), cpu()-c0)
	begin, c0 = time.Now(), cpu()
	time.Sleep(20 * time.Second)
	t.Logf("cpu in %s idle: %s", time.Since(begin), cpu()-c0)
	runtime.GC()
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	t.Logf("heap %d MiB total, goroutines %d", ms.HeapAlloc>>20, runtime.NumGoroutine())
	begin = time.Now()
	nodes[n-1].Close()
	for _, nd := range nodes[:n-1] {
		nd.until("kill", func(l []Member) bool { return len(l) == n-1 })
	}
	t.Logf("kill noticed by all after %s", time.Since(begin))
}

type counter struct {
	mu sync.Mutex
	m  map[string]int
}

var digits = regexp.MustCompile("[0-9a-f]*[0-9]+[0-9a-f]*")

func (c *counter) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := digits.ReplaceAllString(string(p), "#")
	if len(k) > 150 {
		k = k[:150]
	}
	c.m[k]++
	return len(p), nil
}
