package engine

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/shoal-dev/shoal/chunker"
)

// TestPiecesAreTradedAsTheyCome lets every node bring in different pieces.
func TestPiecesAreTradedAsTheyCome(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			c := newContent(t, 12<<20+5)
			p := plain()
			p.tls = secure
			var done sync.Map
			var ms []*member
			for i := range 4 {
				m := newNode(t, fmt.Sprint("n", i), p).join(t, c, Events{PieceDone: func(p int) {
					if _, twice := done.LoadOrStore([2]int{i, p}, true); twice {
						t.Errorf("node %d: PieceDone(%d) twice", i, p)
					}
				}})
				m.meet(ms...)
				for _, o := range ms {
					o.meet(m)
				}
				ms = append(ms, m)
			}
			for i := range c.pieces() {
				owner := ms[i%len(ms)]
				sum := owner.bring(t, i, c.piece(i))
				for _, m := range ms {
					if m != owner {
						m.want(t, i, sum)
					}
				}
			}
			for i, m := range ms {
				m.awaitAll(t)
				got := make([]byte, len(c.data))
				if _, err := m.blob.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, c.data) {
					t.Errorf("node %d has wrong bytes: %v", i, err)
				}
				s := m.Stats()
				if s.BytesFromPeers == 0 || s.BytesToPeers == 0 {
					t.Errorf("node %d did not trade both ways: %+v", i, s)
				}
				for p := range c.pieces() {
					if own := p%len(ms) == i; !own {
						m.await(t, "PieceDone", func() bool { _, ok := done.Load([2]int{i, p}); return ok })
					} else if _, ok := done.Load([2]int{i, p}); ok {
						t.Errorf("node %d: PieceDone(%d) for a piece of its own", i, p)
					}
				}
			}
		})
	}
}

// TestNothingIsWantedWithoutSum: a piece whose sum is unknown is not
// downloaded, however available.
func TestNothingIsWantedWithoutSum(t *testing.T) {
	c := newContent(t, 1<<20)
	seed := newNode(t, "seed", plain()).join(t, c, Events{})
	leech := newNode(t, "leech", plain()).join(t, c, Events{})
	leech.meet(seed)
	for i := range c.pieces() {
		seed.bring(t, i, c.piece(i))
	}
	leech.want(t, 2, chunker.SumOf(c.piece(2)))
	leech.awaitPiece(t, 2)
	if got := leech.Stats().BytesFromPeers; got != chunker.MinPieceLength {
		t.Errorf("%d bytes came, one piece was wanted", got)
	}
}

// TestCompletePiecesAreOffered: a blob that was there before the torrent.
func TestCompletePiecesAreOffered(t *testing.T) {
	c := newContent(t, 3<<20)
	n := newNode(t, "old", plain())
	first := n.join(t, c, Events{})
	sum := first.bring(t, 1, c.piece(1))
	first.Drop()
	old := n.join(t, c, Events{})
	leech := newNode(t, "leech", plain()).join(t, c, Events{})
	leech.meet(old)
	leech.want(t, 1, sum)
	leech.awaitPiece(t, 1)
}

// TestWithdrawnPiece: a piece whose sum turned out wrong is neither offered
// nor wanted any more, and can be had again under another sum.
func TestWithdrawnPiece(t *testing.T) {
	c := newContent(t, 1<<20)
	a := newNode(t, "a", plain()).join(t, c, Events{})
	b := newNode(t, "b", plain()).join(t, c, Events{})
	a.meet(b)
	b.meet(a)
	junk := bytes.Repeat([]byte("junk"), chunker.MinPieceLength/4)
	b.want(t, 0, a.bring(t, 0, junk))
	b.awaitPiece(t, 0)
	for _, m := range []*member{a, b} {
		m.blob.Reject(0)
		m.Have(0)
	}
	before := b.Stats().BytesFromPeers
	// Something else in between, so that there is time for a wrong request.
	b.want(t, 1, a.bring(t, 1, c.piece(1)))
	b.awaitPiece(t, 1)
	if got := b.Stats().BytesFromPeers - before; got != chunker.MinPieceLength {
		t.Errorf("%d bytes came, one piece was wanted", got)
	}
	b.want(t, 0, a.bring(t, 0, c.piece(0)))
	b.awaitPiece(t, 0)
	got := make([]byte, chunker.MinPieceLength)
	if _, err := b.blob.ReadAt(got, 0); err != nil || !bytes.Equal(got, c.piece(0)) {
		t.Errorf("wrong bytes: %v", err)
	}
}

// TestPeersMeetOnce: however often peers are named and whoever dials, a pair
// has one connection.
func TestPeersMeetOnce(t *testing.T) {
	c := newContent(t, 1<<20)
	p := plain()
	var ms []*member
	for i := range 4 {
		m := newNode(t, fmt.Sprint("n", i), p).join(t, c, Events{})
		m.bring(t, i, c.piece(i))
		ms = append(ms, m)
	}
	for range 20 {
		for _, m := range ms {
			m.meet(ms...)
		}
		time.Sleep(time.Millisecond)
	}
	for i, m := range ms {
		m.await(t, "mesh", func() bool { return m.Stats().Peers == len(ms)-1 })
		m.mu.Lock()
		for l := range m.links {
			if n := m.roster.peers[l.id].conns; n != 1 {
				t.Errorf("node %d has %d connections to %s", i, n, m.name(l.id))
			}
		}
		m.mu.Unlock()
	}
}

// TestEitherSideConnects: it is enough that one of two nodes hears of the
// other, and it may be before the other knows the blob.
func TestEitherSideConnects(t *testing.T) {
	c := newContent(t, 1<<20)
	for _, names := range [][2]string{{"x", "y"}, {"y", "x"}} {
		early := newNode(t, names[0], plain()).join(t, c, Events{})
		late := newNode(t, names[1], plain())
		early.bring(t, 0, c.piece(0))
		early.AddPeers([]Peer{late.peer()})
		early.await(t, "a dial in vain", func() bool {
			early.mu.Lock()
			defer early.mu.Unlock()
			return early.roster.peers[nodeID(late.id)].tries > 1
		})
		m := late.join(t, c, Events{})
		m.want(t, 0, chunker.SumOf(c.piece(0)))
		m.awaitPiece(t, 0)
		m.Drop()
		early.Drop()
	}
}

// TestReconnect: a lost connection comes back by itself.
func TestReconnect(t *testing.T) {
	c := newContent(t, 1<<20)
	a := newNode(t, "a", plain()).join(t, c, Events{})
	b := newNode(t, "b", plain()).join(t, c, Events{})
	b.meet(a)
	b.want(t, 0, a.bring(t, 0, c.piece(0)))
	b.awaitPiece(t, 0)
	b.mu.Lock()
	for l := range b.links {
		l.end()
	}
	b.mu.Unlock()
	b.await(t, "the loss", func() bool { return b.Stats().Peers == 0 })
	b.want(t, 1, a.bring(t, 1, c.piece(1)))
	b.awaitPiece(t, 1)
}

func TestTorrentComesAndGoes(t *testing.T) {
	c := newContent(t, 1<<20)
	n := newNode(t, "n", plain())
	for range 3 {
		m := n.join(t, c, Events{})
		if _, err := n.Add(c.id, m.blob, Events{}); err == nil {
			t.Error("the same blob was added twice")
		}
		m.bring(t, 0, c.piece(0))
		m.Drop()
		m.Drop()
		// All of this is too late, and harmless.
		m.Want(0, 1)
		m.Unwant(0)
		m.Have(0)
		m.meet(m)
		if got := m.Stats(); got != (Stats{}) {
			t.Errorf("stats of an unused torrent: %+v", got)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := n.store.Acquire(c.id.Digest, c.id.Geometry.Size)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	if _, err := n.Add(c.id, b, Events{}); err == nil {
		t.Error("a closed engine took a torrent")
	}
	if err := n.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestPieceNumbersAreChecked(t *testing.T) {
	c := newContent(t, 1<<20)
	m := newNode(t, "n", plain()).join(t, c, Events{})
	m.Want(-1, c.pieces(), 1<<40)
	m.Unwant(-1, c.pieces())
	m.Have(-1, c.pieces())
}

// TestDropDuringTraffic: once Drop has returned the blob is left alone.
func TestDropDuringTraffic(t *testing.T) {
	c := newContent(t, 16<<20)
	seed := newNode(t, "seed", plain()).join(t, c, Events{})
	for i := range c.pieces() {
		seed.bring(t, i, c.piece(i))
	}
	for range 5 {
		n := newNode(t, "leech", plain())
		var late atomic.Bool
		m := n.join(t, c, Events{PieceDone: func(int) {
			if late.Load() {
				t.Error("event after Drop")
			}
		}})
		m.meet(seed)
		for i := range c.pieces() {
			m.want(t, i, chunker.SumOf(c.piece(i)))
		}
		m.await(t, "some pieces", func() bool { have := m.blob.Have(); return have.Count() > 3 })
		m.Drop()
		late.Store(true)
		have := m.blob.Have()
		time.Sleep(10 * time.Millisecond)
		_ = n.Close()
		if diff := cmp.Diff(have.Bytes(), m.blob.Have().Bytes()); diff != "" {
			t.Errorf("blob changed after Drop: %s", diff)
		}
	}
}

// TestCloseDuringTraffic: closing an engine in the middle hurts nobody else.
func TestCloseDuringTraffic(t *testing.T) {
	c := newContent(t, 16<<20)
	p := plain()
	p.tls = true
	var ms []*member
	for i := range 3 {
		m := newNode(t, fmt.Sprint("n", i), p).join(t, c, Events{})
		m.meet(ms...)
		ms = append(ms, m)
	}
	for i := range c.pieces() {
		sum := ms[0].bring(t, i, c.piece(i))
		ms[1].want(t, i, sum)
		ms[2].want(t, i, sum)
	}
	ms[1].await(t, "some pieces", func() bool { have := ms[1].blob.Have(); return have.Count() > 3 })
	if err := ms[1].node.Close(); err != nil {
		t.Error(err)
	}
	ms[2].awaitAll(t)
}

// TestIdleEngine: without torrents an engine is next to nothing.
func TestIdleEngine(t *testing.T) {
	const n = 20
	var before, after runtime.MemStats
	measure := func(m *runtime.MemStats) int {
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(m)
		return runtime.NumGoroutine()
	}
	newNode(t, "warm", plain())
	g0 := measure(&before)
	for i := range n {
		newNode(t, fmt.Sprint("n", i), plain())
	}
	g1 := measure(&after)
	if per := (g1 - g0) / n; per > 3 {
		t.Errorf("%d goroutines per idle engine", per)
	}
	if per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; per > 100<<10 {
		t.Errorf("%d bytes of heap per idle engine", per)
	}
}

func TestMetrics(t *testing.T) {
	c := newContent(t, 1<<20)
	reg := prometheus.NewRegistry()
	p := plain()
	p.reg = reg
	a := newNode(t, "a", plain()).join(t, c, Events{})
	b := newNode(t, "b", p).join(t, c, Events{})
	b.meet(a)
	b.want(t, 0, a.bring(t, 0, c.piece(0)))
	b.awaitPiece(t, 0)
	want := map[string]float64{
		"shoal_wire_torrents": 1, "shoal_wire_peers": 1, "shoal_wire_received_bytes_total": chunker.MinPieceLength,
		"shoal_wire_sent_bytes_total": 0, "shoal_wire_wasted_bytes_total": 0, "shoal_wire_bad_pieces_total": 0, "shoal_wire_cut_peers_total": 0,
	}
	if diff := cmp.Diff(want, gather(t, reg)); diff != "" {
		t.Error(diff)
	}
	if _, err := newMetrics(reg); err == nil {
		t.Error("the same metrics were registered twice")
	}
	b.Drop()
	if got := gather(t, reg)["shoal_wire_torrents"]; got != 0 {
		t.Errorf("%v torrents after Drop", got)
	}
}

// gather returns the values of all metrics, summed over labels.
func gather(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return got
}

func TestNewChecksConfig(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("an empty config was accepted")
	}
}
