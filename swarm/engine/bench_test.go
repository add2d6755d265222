package engine

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/chunker"
)

// cpu is what the process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSwarm is a cold pull without the control plane: pieces come from a
// source at rate B, round robin over all nodes, each of which uploads at most
// at rate B; the last node's time is given over S/B, which no schedule beats.
// CPU is that of all nodes and the source together, per GiB delivered.
func BenchmarkSwarm(b *testing.B) {
	const rateB = 12.5e6
	for _, secure := range []bool{false, true} {
		for _, n := range []int{2, 4, 8, 16} {
			b.Run(fmt.Sprintf("tls=%v/nodes=%d", secure, n), func(b *testing.B) {
				p := plain()
				p.tls, p.upload = secure, rateB
				swarm(b, p, n, 64<<20, rateB)
			})
		}
	}
}

// BenchmarkBacklog has a source that is faster than the nodes' links, so that
// they choose among many pieces: what counts is how far the readable beginning
// lags behind.
func BenchmarkBacklog(b *testing.B) {
	const rateB = 12.5e6
	p := plain()
	p.tls, p.upload = true, rateB
	swarm(b, p, 8, 256<<20, 1.25*rateB)
}

// BenchmarkSwarmUncapped has no caps: the CPU is the limit.
func BenchmarkSwarmUncapped(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v/nodes=8", secure), func(b *testing.B) {
			p := plain()
			p.tls = secure
			swarm(b, p, 8, 256<<20, 0)
		})
	}
}

// BenchmarkAlone is one node that has everything and one that wants it.
func BenchmarkAlone(b *testing.B) {
	for _, secure := range []bool{false, true} {
		for _, mib := range []int{64, 1024} {
			b.Run(fmt.Sprintf("tls=%v/MiB=%d", secure, mib), func(b *testing.B) {
				p := plain()
				p.tls = secure
				alone(b, p, mib<<20)
			})
		}
	}
}

func swarm(b *testing.B, p plan, n, size int, source float64) {
	c := newContent(b, size)
	sums := make([]chunker.Sum, c.pieces())
	for i := range sums {
		sums[i] = chunker.SumOf(c.piece(i))
	}
	b.SetBytes(int64(n * size))
	var ratio, used, wasted, gaps float64
	for b.Loop() {
		b.StopTimer()
		var ms []*member
		for i := range n {
			m := newNode(b, fmt.Sprint("node", i), p).join(b, c, Events{})
			m.meet(ms...)
			for _, o := range ms {
				o.meet(m)
			}
			ms = append(ms, m)
		}
		runtime.GC()
		b.StartTimer()
		start, before := time.Now(), cpu()
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range c.pieces() {
				if source > 0 {
					off, l := c.id.Geometry.Piece(i)
					time.Sleep(time.Until(start.Add(time.Duration(float64(off+l) / source * 1e9))))
				}
				owner := ms[i%n]
				for _, m := range ms {
					if m != owner {
						m.want(b, i, sums[i])
					}
				}
				owner.bring(b, i, c.piece(i))
			}
		})
		var mu sync.Mutex
		for _, m := range ms {
			wg.Go(func() {
				f := full(m)
				mu.Lock()
				gaps += f / float64(n)
				mu.Unlock()
			})
		}
		wg.Wait()
		took := time.Since(start)
		used += (cpu() - before).Seconds()
		b.StopTimer()
		ratio += took.Seconds() * source / float64(size)
		for _, m := range ms {
			wasted += finish(m)
		}
		b.StartTimer()
	}
	report(b, float64(n*size), used, wasted)
	b.ReportMetric(100*gaps/float64(b.N), "%behind")
	if source > 0 {
		b.ReportMetric(ratio/float64(b.N), "S/B")
	}
}

func alone(b *testing.B, p plan, size int) {
	c := newContent(b, size)
	b.SetBytes(int64(size))
	seed := newNode(b, "seed", p).join(b, c, Events{})
	sums := make([]chunker.Sum, c.pieces())
	all := make([]int, c.pieces())
	for i := range sums {
		sums[i], all[i] = seed.bring(b, i, c.piece(i)), i
	}
	var used, wasted float64
	for b.Loop() {
		b.StopTimer()
		m := newNode(b, "node", p).join(b, c, Events{})
		m.meet(seed)
		seed.meet(m)
		m.await(b, "peer", func() bool { return m.Stats().Peers == 1 })
		for i, s := range sums {
			if err := m.blob.Expect(i, s); err != nil {
				b.Fatal(err)
			}
		}
		runtime.GC()
		b.StartTimer()
		before := cpu()
		m.Want(all...)
		full(m)
		used += (cpu() - before).Seconds()
		b.StopTimer()
		wasted += finish(m)
		b.StartTimer()
	}
	report(b, float64(size), used, wasted)
}

// finish ends a member and its node, and says how many bytes it wasted.
func finish(m *member) (wasted float64) {
	wasted = float64(m.Stats().WastedBytes)
	m.Drop()
	m.blob.Release()
	m.node.store.Drop(m.id.Digest)
	_ = m.node.Close()
	return wasted
}

// full waits for all pieces. behind is which share of the blob was there but
// not readable in order, on average as the pieces came.
func full(m *member) (behind float64) {
	sum, n := 0, 0
	for {
		changed := m.blob.Changed()
		prefix := int(m.blob.Prefix() / m.id.Geometry.PieceLength)
		have := m.blob.Have()
		if have.Full() {
			return float64(sum) / float64(max(n, 1)*have.Len())
		}
		sum += have.Count() - prefix
		n++
		<-changed
	}
}

func report(b *testing.B, bytes, used, wasted float64) {
	n := float64(b.N)
	b.ReportMetric(used/n/(bytes/(1<<30)), "cpu-s/GiB")
	b.ReportMetric(100*wasted/n/bytes, "%wasted")
	b.ReportMetric(0, "ns/op")
}
