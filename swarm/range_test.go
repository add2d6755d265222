package swarm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shoal-dev/shoal/swarm/tracker"
)

// part reads a range of a blob on a node and compares every byte.
func (n *testNode) part(ctx context.Context, d digest.Digest, want []byte, off, length int64, o Origin) (Stats, error) {
	dl, err := n.Range(ctx, Request{Digest: d, Size: int64(len(want)), Origin: o}, off, length)
	if err != nil {
		return Stats{}, fmt.Errorf("%s: %w", n.id, err)
	}
	defer dl.Close()
	r := dl.NewReader(ctx, off, length)
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		return dl.Stats(), fmt.Errorf("%s: after %d bytes: %w", n.id, len(got), err)
	}
	if !bytes.Equal(got, want[off:off+length]) {
		return dl.Stats(), fmt.Errorf("%s: wrong bytes", n.id)
	}
	return dl.Stats(), nil
}

// TestRangeIsTakenOnce: however many nodes read a part at one time, its spans leave
// the registry once, and nothing else does.
func TestRangeIsTakenOnce(t *testing.T) {
	c := newCluster(t, 6)
	data, d := randomBlob(t, 20<<20+1)
	o := &fakeOrigin{data: data, rate: 16 << 20}
	const off, length = 3*SpanLength + 1000, 4*SpanLength + 5000 // of 6 spans
	var wg sync.WaitGroup
	stats, errs := make([]Stats, len(c.nodes)), make([]error, len(c.nodes))
	for i, n := range c.nodes {
		wg.Go(func() { stats[i], errs[i] = n.part(t.Context(), d, data, off, length, o) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got := o.sent.Load(); got != 5*SpanLength {
		t.Errorf("%d bytes left the registry, want 5 spans of %d", got, SpanLength)
	}
	var origin, all int64
	for _, s := range stats {
		origin += s.Origin
		all += s.Origin + s.Peers + s.Local
	}
	if origin != length || all != length*int64(len(c.nodes)) {
		t.Errorf("%d bytes were accounted to the registry and %d to all sources, want %d and %d", origin, all, length, length*len(c.nodes))
	}
	// What is here is read without anybody. The end of the blob is in two spans, of
	// which the last has one byte.
	if s, err := c.nodes[2].part(t.Context(), d, data, off, length, nil); err != nil || s != (Stats{Local: length}) {
		t.Errorf("the second read came from %+v, %v", s, err)
	}
	end := int64(len(data))
	if s, err := c.nodes[0].part(t.Context(), d, data, end-51, 51, o); err != nil || s != (Stats{Origin: 51}) {
		t.Errorf("the end of the blob came from %+v, %v", s, err)
	}
	if s, err := c.nodes[5].part(t.Context(), d, data, end-51, 51, nil); err != nil || s != (Stats{Peers: 51}) {
		t.Errorf("the end of the blob came from %+v, %v, want a peer", s, err)
	}
	if got := o.sent.Load(); got != 6*SpanLength+1 {
		t.Errorf("%d bytes left the registry in the end, want 6 spans and one byte", got)
	}
}

// TestRangeFromHolder: a node that has the whole blob gives a part of it, exactly.
// One that dies leaves the rest to the registry.
func TestRangeFromHolder(t *testing.T) {
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 0)
			if secure {
				c = newTLSCluster(t, 0)
			}
			for range 3 {
				c.add()
			}
			data, d := randomBlob(t, 12<<20)
			o := &fakeOrigin{data: data}
			readAll(t, c.nodes[:1], d, data, o)
			o.sent.Store(0)
			until(t, "the cluster to know the holder", func() bool {
				_, n, err := c.nodes[1].Locate(t.Context(), d)
				return err == nil && n == 1
			})
			if s, err := c.nodes[1].part(t.Context(), d, data, 1_000_001, 5_000_000, o); err != nil || s != (Stats{Peers: 5_000_000}) {
				t.Errorf("5,000,000 bytes came from %+v, %v", s, err)
			}
			if got := o.sent.Load(); got != 0 {
				t.Errorf("%d bytes left the registry although a node has the blob", got)
			}
			if u := c.nodes[1].store.Usage(); u != 0 {
				t.Errorf("%d bytes were kept of what another node has whole", u)
			}

			dl, err := c.nodes[2].Range(t.Context(), Request{Digest: d, Size: int64(len(data)), Origin: o}, 100, 10<<20)
			if err != nil {
				t.Fatal(err)
			}
			defer dl.Close()
			r := dl.NewReader(t.Context(), 100, 10<<20)
			defer r.Close()
			got := make([]byte, 10<<20)
			if _, err := io.ReadFull(r, got[:1<<20]); err != nil {
				t.Fatal(err)
			}
			c.nodes[0].kill()
			if _, err := io.ReadFull(r, got[1<<20:]); err != nil || !bytes.Equal(got, data[100:100+10<<20]) {
				t.Fatalf("after the holder's death: %v", err)
			}
			if s := dl.Stats(); s.Origin == 0 || s.Peers < 1<<20 || s.Origin+s.Peers != 10<<20 {
				t.Errorf("the range came from %+v", s)
			}
		})
	}
}

// TestRangeFromPuller: so does a node that is still pulling, of what it has.
func TestRangeFromPuller(t *testing.T) {
	c := newCluster(t, 3)
	data, d := randomBlob(t, 6<<20)
	o := &fakeOrigin{data: data, rate: 3 << 20}
	wait := pull(t, c.nodes[:1], d, data, o)
	until(t, "the beginning of the blob", func() bool {
		return len(c.nodes[1].rangeHolders(t.Context(), d, 0, SpanLength)) == 1
	})
	if s, err := c.nodes[1].part(t.Context(), d, data, 100, SpanLength-100, nil); err != nil || s != (Stats{Peers: SpanLength - 100}) {
		t.Errorf("the beginning came from %+v, %v", s, err)
	}
	// It has not come to the end, and is not asked for it.
	end := int64(len(data))
	if got := c.nodes[1].rangeHolders(t.Context(), d, end-100, 100); len(got) > 0 {
		t.Errorf("%v should have the end of the blob", got)
	}
	// Even so, it gives only what it has.
	body, err := c.nodes[1].peers.blob(t.Context(), c.roster.live[0], d, end-100, 100)
	if err == nil {
		_, err = io.ReadAll(body)
		_ = body.Close()
	}
	if err == nil {
		t.Error("a puller sent what it does not have")
	}
	wait(c.nodes[0])
}

// TestSpansOutliveTheRegistry: what the cluster has of a blob is served while the
// registry is away, also when nobody has confirmed it for long.
func TestSpansOutliveTheRegistry(t *testing.T) {
	c := newCluster(t, 3)
	data, d := randomBlob(t, 4<<20)
	o := &fakeOrigin{data: data}
	if _, err := c.nodes[0].part(t.Context(), d, data, 0, 100, o); err != nil {
		t.Fatal(err)
	}
	o.fail.Store(true)
	for _, origin := range []Origin{o, nil} {
		if s, err := c.nodes[1].part(t.Context(), d, data, 0, 100, origin); err != nil || s.Origin != 0 {
			t.Errorf("an agreed span came from %+v, %v", s, err)
		}
	}
	if _, err := c.nodes[1].part(t.Context(), d, data, 2<<20, 100, o); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a span that nobody has: %v, want unavailable", err)
	}

	second := data[SpanLength : 2*SpanLength]
	sum := digest.FromBytes(second)
	if _, _, err := c.nodes[0].Small(t.Context(), sum, SpanLength, func(context.Context) ([]byte, error) { return second, nil }); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.tracker.Publish(tracker.SpanRef(d, 1), "node0", &tracker.Resolution{Digest: sum, Size: SpanLength, Age: spanTTL + time.Second})
	}
	if s, err := c.nodes[2].part(t.Context(), d, data, SpanLength, 100, o); err != nil || s != (Stats{Peers: 100}) {
		t.Errorf("a span agreed upon long ago came from %+v, %v", s, err)
	}
	if got := testutil.ToFloat64(c.nodes[2].met.fallbacks.WithLabelValues(staleSpan)); got != 1 {
		t.Errorf("%v stale spans counted, want 1", got)
	}
}

// TestWrongSpanIsReplaced: when the registry contradicts what a node has said, all
// others go by the registry.
func TestWrongSpanIsReplaced(t *testing.T) {
	for name, size := range map[string]int{"length of a span": SpanLength, "shorter": 1000} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3)
			data, d := randomBlob(t, 4<<20)
			o := &fakeOrigin{data: data}
			wrong, sum := randomBlob(t, size)
			if size < SpanLength {
				// It may even be there.
				if _, _, err := c.nodes[0].Small(t.Context(), sum, SpanLength, func(context.Context) ([]byte, error) { return wrong, nil }); err != nil {
					t.Fatal(err)
				}
			}
			for _, n := range c.nodes {
				n.tracker.Publish(tracker.SpanRef(d, 0), "node0", &tracker.Resolution{Digest: sum, Size: SpanLength})
			}
			if _, err := c.nodes[1].part(t.Context(), d, data, 0, 100, o); err != nil {
				t.Fatal(err)
			}
			if got := testutil.ToFloat64(c.nodes[1].met.corrupt.WithLabelValues(corruptSpan)); got != 1 {
				t.Errorf("%v wrong spans counted, want 1", got)
			}
			if !c.nodes[1].suspect("node0") {
				t.Error("the node that said so is believed as before")
			}
			until(t, "the next node to have it", func() bool {
				s, err := c.nodes[2].part(t.Context(), d, data, 0, 100, nil)
				return err == nil && s == (Stats{Peers: 100})
			})
		})
	}
}

// refusing is an origin that lets nobody in, once told.
type refusing struct{ asked, told chan struct{} }

func (o refusing) Open(context.Context, int64, int64) (io.ReadCloser, error) {
	close(o.asked)
	<-o.told
	return nil, ErrDenied
}

// TestRangeInOnesOwnName: that another caller was refused is nothing to this one.
func TestRangeInOnesOwnName(t *testing.T) {
	c := newCluster(t, 1)
	data, d := randomBlob(t, 4<<20)
	refused := refusing{make(chan struct{}), make(chan struct{})}
	bad, good := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := c.nodes[0].part(t.Context(), d, data, 0, 100, refused)
		bad <- err
	}()
	<-refused.asked
	go func() {
		_, err := c.nodes[0].part(t.Context(), d, data, 0, 100, &fakeOrigin{data: data})
		good <- err
	}()
	time.Sleep(100 * time.Millisecond) // the second one joins it
	close(refused.told)
	if err := <-bad; !errors.Is(err, ErrDenied) {
		t.Errorf("the caller without the right got %v", err)
	}
	if err := <-good; err != nil {
		t.Errorf("the caller with the right got %v", err)
	}
}

func TestRangeRefuses(t *testing.T) {
	c := newCluster(t, 1)
	data, d := randomBlob(t, 2<<20)
	n, size := c.nodes[0], int64(len(data))
	if _, err := n.part(t.Context(), d, data, 0, 100, &fakeOrigin{data: data, noRange: true}); !errors.Is(err, ErrNoRange) {
		t.Errorf("a registry without ranges: %v", err)
	}
	for _, r := range [][2]int64{{-1, 10}, {0, 0}, {0, -1}, {size, 1}, {1, size}, {1, 1<<63 - 1}} {
		if _, err := n.Range(t.Context(), Request{Digest: d, Size: size}, r[0], r[1]); err == nil {
			t.Errorf("%d bytes from byte %d of %d are served", r[1], r[0], size)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Range(ctx, Request{Digest: d, Size: size, Origin: &fakeOrigin{data: data}}, 0, 100); !errors.Is(err, context.Canceled) {
		t.Errorf("after the caller has gone: %v", err)
	}
}
