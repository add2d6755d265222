package tracker

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/chunker"
)

// BenchmarkLarge is one message of a puller and what follows from it: a piece
// brought in from the origin, with its sum and the next lease, or one that came
// through the swarm. 50 pullers take a blob of 2,000 pieces from nothing to whole.
func BenchmarkLarge(b *testing.B) {
	const pieces, nodes = 2000, 50
	g, err := chunker.GeometryOf(pieces * 512 << 10)
	if err != nil || g.NumPieces() != pieces {
		b.Fatal(g, err)
	}
	messages := 0
	for b.Loop() {
		now := time.Unix(1000, 0)
		l := NewLarge(Params{}, g, rand.New(rand.NewPCG(1, 2)))
		leases := map[string][]Lease{}
		var ids []string
		take := func(out []Out) {
			for _, o := range out {
				leases[o.To] = append(leases[o.To], o.Down.Grants...)
			}
		}
		for i := range nodes {
			id := fmt.Sprint("node", i)
			ids = append(ids, id)
			take(l.Join(&Hello{Version: Version, Node: id, Digest: digest.FromString("x"), Size: g.Size, Origin: true}, now))
		}
		for brought := 0; brought < pieces; {
			for _, id := range ids {
				mine := leases[id]
				leases[id] = nil
				for _, ls := range mine {
					for i := ls.First; i < ls.First+ls.Count; i++ {
						now = now.Add(time.Millisecond)
						take(l.Handle(id, Up{Have: []PieceSum{{Index: i}}}, now))
						brought++
						messages++
						for _, other := range ids {
							if other != id {
								take(l.Handle(other, Up{Got: []int{i}}, now))
								messages++
							}
						}
					}
				}
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(messages), "ns/message")
	b.ReportMetric(0, "ns/op")
}
