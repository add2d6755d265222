package swarm

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// However many small blobs a client asks for at once, few are under way at a time.
func TestSmallFlightsAreBounded(t *testing.T) {
	n := newCluster(t, 1).nodes[0]
	var open, most atomic.Int64
	var g errgroup.Group
	for i := range 3 * smallFlights {
		data := fmt.Appendf(nil, "layer %d", i)
		g.Go(func() error {
			_, _, err := n.Small(t.Context(), digest.FromBytes(data), 100, func(context.Context) ([]byte, error) {
				most.Store(max(most.Load(), open.Add(1)))
				time.Sleep(50 * time.Millisecond)
				open.Add(-1)
				return data, nil
			})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if m := most.Load(); m > smallFlights || m < smallFlights/2 {
		t.Errorf("%d were under way at a time, want %d", m, smallFlights)
	}
}
