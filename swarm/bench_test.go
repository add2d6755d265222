package swarm

import (
	"fmt"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// BenchmarkCold pulls a blob on N nodes at once, in one process on loopback
// with mutual TLS, and reports the CPU seconds per GiB delivered: hashing,
// encryption and disk of both ends, without containerd. Links are not shaped,
// so seconds say little; see benchmarks/ for those.
func BenchmarkCold(b *testing.B) {
	for _, n := range []int{1, 2, 8} {
		b.Run(fmt.Sprint("nodes=", n), func(b *testing.B) {
			const size = 256 << 20
			data, d := randomBlob(b, size)
			for b.Loop() {
				b.StopTimer()
				c := newTLSCluster(b, n)
				o := &fakeOrigin{data: data}
				before := cpu(b)
				b.StartTimer()
				drain(b, c.nodes, d, size, o)
				b.StopTimer()
				gib := float64(n) * size / (1 << 30)
				b.ReportMetric((cpu(b)-before).Seconds()/gib, "cpu-s/GiB")
				b.ReportMetric(o.copies(), "copies")
				for _, x := range c.nodes {
					x.kill()
				}
				b.StartTimer()
			}
		})
	}
}

// drain reads the blob on all nodes at once and keeps nothing.
func drain(b *testing.B, nodes []*testNode, d digest.Digest, size int64, o Origin) {
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error {
			dl, err := n.Fetch(b.Context(), Request{Digest: d, Size: size, Origin: o})
			if err != nil {
				return err
			}
			defer dl.Close()
			r := dl.NewReader(b.Context(), 0, size)
			defer r.Close()
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 256<<10))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
