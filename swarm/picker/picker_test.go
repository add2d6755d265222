package picker

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/shoal-dev/shoal/chunker"
)

const piece = chunker.MinPieceLength

func geometry(pieces int) chunker.Geometry {
	return chunker.Geometry{Size: int64(pieces) * piece, PieceLength: piece}
}

// strict takes pieces in order and asks for one at a time.
func strict(pieces int) *Picker {
	return New(Tuning{Rare: -1, MinAhead: 1, MaxAhead: 1}, geometry(pieces), rand.New(rand.NewPCG(1, 2)))
}

func gain(q *Peer, is ...int) {
	for _, i := range is {
		q.Gain(i)
	}
}

func want(p *Picker, is ...int) {
	for _, i := range is {
		p.Want(i)
	}
}

// next fails the test unless Next answers so; -1: nothing.
func next(t *testing.T, q *Peer, now time.Time, want int) {
	t.Helper()
	i, ok := q.Next(now)
	if !ok {
		i = -1
	}
	if i != want {
		t.Fatalf("asked for %d, want %d", i, want)
	}
}

func TestFirstOfWhatThePeerHas(t *testing.T) {
	now := time.Unix(1000, 0)
	p := strict(100)
	a, b := p.Join(), p.Join()
	next(t, a, now, -1) // nothing is wanted
	want(p, 5, 70, 99)
	next(t, a, now, -1) // it has nothing
	gain(a, 70, 99)
	gain(b, 5, 70, 99)
	next(t, a, now, 70)
	next(t, a, now, -1) // enough was asked
	next(t, b, now, 5)
	a.Came(70, piece, now)
	if a.Owed() != 0 || !a.Asked(70) {
		t.Errorf("owes %d", a.Owed())
	}
	a.Return(70)
	if got := p.Unwant(70); len(got) != 0 {
		t.Errorf("%d peers are still asked", len(got))
	}
	next(t, a, now, 99)
	b.Came(5, piece, now)
	next(t, b, now, -1) // 99 is being asked of the other one, who is not late
}

// TestGivenBack: what a peer does not deliver is asked of others.
func TestGivenBack(t *testing.T) {
	now := time.Unix(1000, 0)
	for name, f := range map[string]func(q *Peer){
		"leaves": (*Peer).Leave, "drops": func(q *Peer) { q.Drop() },
		"loses": func(q *Peer) { q.Lose(3) }, "refuses": func(q *Peer) { q.Return(3) },
	} {
		t.Run(name, func(t *testing.T) {
			p := strict(10)
			a, b := p.Join(), p.Join()
			want(p, 3)
			gain(a, 3)
			gain(b, 3)
			next(t, a, now, 3)
			next(t, b, now, -1)
			f(a)
			if a.Owed() != 0 || a.Asked(3) {
				t.Errorf("still owes %d", a.Owed())
			}
			next(t, b, now, 3)
		})
	}
}

// TestRarest: one that few have goes first if it is its turn.
func TestRarest(t *testing.T) {
	p := New(Tuning{Rare: 1, Window: 4}, geometry(20), rand.New(rand.NewPCG(1, 2)))
	a, b := p.Join(), p.Join()
	for i := range 20 {
		p.Want(i)
		a.Gain(i)
		if i != 2 && i != 3 && i != 10 {
			b.Gain(i)
		}
	}
	// 10 is as rare, but outside of the window.
	if i, ok := a.Next(time.Unix(1000, 0)); !ok || i != 2 && i != 3 {
		t.Errorf("asked for %d, want 2 or 3", i)
	}
}

// TestAlone: of what only one of several peers has, all who ask do not ask for the
// same piece.
func TestAlone(t *testing.T) {
	for _, tc := range []struct {
		name   string
		others int  // peers beside it
		shared bool // they have it all, too
		spread bool
	}{
		{"nobody else has it", 2, false, true},
		{"others have it", 2, true, false},
		{"there is nobody else", 0, false, false},
	} {
		asked := map[int]bool{}
		for seed := range uint64(20) { // who asks
			p := New(Tuning{Rare: 1e-9}, geometry(20), rand.New(rand.NewPCG(1, seed)))
			q := p.Join()
			have := []*Peer{q}
			for range tc.others {
				o := p.Join()
				if tc.shared {
					have = append(have, o)
				}
			}
			for i := range 20 {
				p.Want(i)
				for _, h := range have {
					h.Gain(i)
				}
			}
			i, _ := q.Next(time.Unix(1000, 0))
			asked[i] = true
		}
		if spread := len(asked) > 10; spread != tc.spread || !spread && len(asked) != 1 {
			t.Errorf("%s: 20 nodes ask for %d different pieces", tc.name, len(asked))
		}
	}
}

// TestAhead: a peer is asked ahead for what it sends in the given time.
func TestAhead(t *testing.T) {
	now := time.Unix(1000, 0)
	p := New(Tuning{Rare: -1, Ahead: time.Second, MinAhead: piece, MaxAhead: 8 * piece}, geometry(1000), rand.New(rand.NewPCG(1, 2)))
	q := p.Join()
	for i := range 1000 {
		p.Want(i)
		q.Gain(i)
	}
	ask := func() (n int) {
		for {
			if _, ok := q.Next(now); !ok {
				return n
			}
			n++
		}
	}
	if n := ask(); n != 1 {
		t.Fatalf("%d pieces of an unknown peer", n)
	}
	i := 0
	deliver := func(every time.Duration) {
		for range 100 {
			now = now.Add(every)
			q.Came(i, piece, now)
			q.Return(i)
			p.Unwant(i)
			i++
			ask()
		}
	}
	deliver(250 * time.Millisecond)
	if got := q.Owed() / piece; got < 4 || got > 5 {
		t.Errorf("4 pieces per second: %d ahead", got)
	}
	deliver(10 * time.Millisecond)
	if got := q.Owed() / piece; got != 8 {
		t.Errorf("100 pieces per second: %d ahead, want the limit of 8", got)
	}
	deliver(2 * time.Second)
	if got := q.Owed() / piece; got > 2 {
		t.Errorf("a piece every two seconds: %d ahead", got)
	}
}

// TestLate: the piece of a peer that has become slow is asked of another one,
// which has nothing else to give, but of no third one; whoever is first wins.
func TestLate(t *testing.T) {
	start := time.Unix(1000, 0)
	p := strict(10)
	a, b, c := p.Join(), p.Join(), p.Join()
	want(p, 0, 1)
	gain(a, 0)
	gain(b, 0, 1)
	gain(c, 0)
	next(t, a, start, 0)
	next(t, b, start, 1)
	next(t, b, start, -1)
	now := start.Add(time.Second)
	b.Came(1, piece, now)
	b.Return(1)
	p.Unwant(1)
	next(t, b, now, 0) // a has sent nothing for a second
	next(t, c, now, -1)
	b.Came(0, piece, now)
	b.Return(0)
	if got := p.Unwant(0); !slices.Equal(got, []*Peer{a}) {
		t.Errorf("to cancel: %d peers", len(got))
	}
	if a.Owed() != 0 {
		t.Errorf("a still owes %d", a.Owed())
	}
}

// TestSteadyPeersAreNotLate: peers that are as fast as each other do each
// other's work neither at the beginning nor at the end.
func TestSteadyPeersAreNotLate(t *testing.T) {
	now := time.Unix(1000, 0)
	p := New(Tuning{}, geometry(40), rand.New(rand.NewPCG(1, 2)))
	var peers []*Peer
	for range 4 {
		q := p.Join()
		for i := range 40 {
			q.Gain(i)
		}
		peers = append(peers, q)
	}
	for i := range 40 {
		p.Want(i)
	}
	asked := 0
	for done := 0; done < 40; {
		now = now.Add(25 * time.Millisecond)
		for _, q := range peers {
			if len(q.asks) > 0 {
				a := q.asks[0]
				q.Came(a.piece, piece/8, now)
				if q.Asked(a.piece) && q.asks[0].left == 0 {
					q.Return(a.piece)
					p.Unwant(a.piece)
					done++
				}
			}
			for {
				if _, ok := q.Next(now); !ok {
					break
				}
				asked++
			}
		}
	}
	if asked != 40 {
		t.Errorf("asked %d times for 40 pieces", asked)
	}
}

// model drives a picker at random; whatever happens its accounts are right.
type model struct {
	p      *Picker
	peers  []*Peer
	wanted map[int]bool
	now    time.Time
}

func (m *model) peer(t *rapid.T) *Peer {
	if len(m.peers) == 0 {
		t.Skip("no peers")
	}
	return m.peers[rapid.IntRange(0, len(m.peers)-1).Draw(t, "peer")]
}

const modelPieces = 70

func (m *model) piece(t *rapid.T) int { return rapid.IntRange(0, modelPieces-1).Draw(t, "piece") }

func (m *model) check(t *rapid.T) {
	avail, askers := make([]int, modelPieces), make([]int, modelPieces)
	for _, q := range m.peers {
		var owed int64
		for _, a := range q.asks {
			owed += a.left
			askers[a.piece]++
			if !slices.Contains(m.p.askers[a.piece], q) {
				t.Fatalf("piece %d does not know who was asked for it", a.piece)
			}
			if !m.wanted[a.piece] {
				t.Fatalf("piece %d is asked for and not wanted", a.piece)
			}
		}
		if owed != q.Owed() || owed < 0 {
			t.Fatalf("owes %d, accounts say %d", owed, q.Owed())
		}
		for i := range modelPieces {
			if q.Has(i) {
				avail[i]++
			}
		}
	}
	for i := range modelPieces {
		if m.p.Available(i) != avail[i] {
			t.Fatalf("piece %d: available %d, counted %d", i, m.p.Available(i), avail[i])
		}
		if askers[i] != len(m.p.askers[i]) || askers[i] > 2 {
			t.Fatalf("piece %d: asked of %d, accounts say %d", i, askers[i], len(m.p.askers[i]))
		}
		if m.p.open.has(i) != (m.wanted[i] && askers[i] == 0) {
			t.Fatalf("piece %d: wanted %v, asked of %d, open %v", i, m.wanted[i], askers[i], m.p.open.has(i))
		}
	}
}

func TestModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{p: New(Tuning{}, geometry(modelPieces), rand.New(rand.NewPCG(1, 2))), wanted: map[int]bool{}, now: time.Unix(1000, 0)}
		rt.Repeat(map[string]func(*rapid.T){
			"join": func(*rapid.T) { m.peers = append(m.peers, m.p.Join()) },
			"leave": func(t *rapid.T) {
				q := m.peer(t)
				q.Leave()
				q.Leave()
				m.peers = slices.DeleteFunc(m.peers, func(o *Peer) bool { return o == q })
			},
			"gain": func(t *rapid.T) { m.peer(t).Gain(m.piece(t)) },
			"lose": func(t *rapid.T) { m.peer(t).Lose(m.piece(t)) },
			"want": func(t *rapid.T) { i := m.piece(t); m.p.Want(i); m.wanted[i] = true },
			"come": func(t *rapid.T) { i := m.piece(t); m.p.Unwant(i); delete(m.wanted, i) },
			"next": func(t *rapid.T) {
				q := m.peer(t)
				before := q.Owed()
				i, ok := q.Next(m.now)
				if ok && (!q.Has(i) || !q.Asked(i) || q.Owed() != before+piece) {
					t.Fatalf("asked for piece %d: has %v, owes %d", i, q.Has(i), q.Owed())
				}
			},
			"data":   func(t *rapid.T) { m.peer(t).Came(m.piece(t), rapid.Int64Range(1, piece).Draw(t, "n"), m.now) },
			"return": func(t *rapid.T) { m.peer(t).Return(m.piece(t)) },
			"drop":   func(t *rapid.T) { m.peer(t).Drop() },
			"wait": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(0, 3000).Draw(t, "ms")) * time.Millisecond)
			},
			"": m.check,
		})
	})
}

// BenchmarkNext is one choice among 2,000 pieces and 50 peers, and what has to
// be noted when the piece comes.
func BenchmarkNext(b *testing.B) {
	const pieces, peers = 2000, 50
	rng := rand.New(rand.NewPCG(1, 2))
	now := time.Unix(1000, 0)
	p := New(Tuning{}, geometry(pieces), rng)
	var qs []*Peer
	for range peers {
		q := p.Join()
		for i := range pieces {
			if rng.IntN(4) > 0 {
				q.Gain(i)
			}
		}
		qs = append(qs, q)
	}
	for i := range pieces {
		p.Want(i)
	}
	k := 0
	for b.Loop() {
		q := qs[k%peers]
		k++
		now = now.Add(100 * time.Microsecond)
		i, ok := q.Next(now)
		if !ok {
			if len(q.asks) == 0 {
				continue
			}
			i = q.asks[0].piece
		}
		q.Came(i, piece, now)
		q.Return(i)
		p.Unwant(i)
		p.Want(i)
	}
}
