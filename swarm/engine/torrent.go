package engine

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/picker"
)

// Peer is another node that is pulling the same blob.
type Peer struct {
	// ID is the node's name, Addr its wire address host:port.
	ID, Addr string
}

// Events tell a torrent's owner what happens to it. They are called one at a
// time, in order, without any lock held, and must not block; they may call the
// torrent's methods, but for Drop.
type Events struct {
	// PieceDone: piece i came through the swarm and is verified.
	PieceDone func(i int)
	// PieceBad: piece i failed again and again, with data from these nodes;
	// it is not wanted any more. No nodes are named if this node's disk
	// failed.
	PieceBad func(i int, peers []string)
}

// Torrent is one blob being traded. Its methods are safe for concurrent use,
// and harmless after Drop.
type Torrent struct {
	e    *Engine
	id   chunker.Identity
	blob *chunker.Blob
	ev   Events

	wake   chan struct{}   // there may be something to do
	life   context.Context // ends with Drop
	cancel context.CancelFunc
	done   chan struct{} // closed when run has returned
	drop   sync.Once
	work   sync.WaitGroup // links and dials; added to before dropped is set

	received, served, wasted atomic.Int64

	mu       sync.Mutex
	dropped  bool
	active   bool // has or wants something; before, nobody is dialled
	roster   *roster
	picker   *picker.Picker
	failures map[int]*failure // of pieces that are wanted
	links    map[*link]struct{}
	line     []*link // that wait for their turn
	tries    uint64
	untold   int         // pieces that were announced since news went out last
	news     *time.Timer // when they go out next, if untold is not zero
	queue    []func()    // events, see callOwner

	calling sync.Mutex // held while the owner is called; taken before mu
}

// failure is what is known of a piece that does not verify.
type failure struct {
	tries   int
	senders []peerID
}

// stuckAfter is how long a peer may take to answer before it is asked for nothing
// more: it would serve a request within milliseconds if nothing was wrong.
const stuckAfter = time.Second

// maxFailures is how often a piece may fail before it is not wanted any more.
// The first failure ends the connection to its sender, and the second try goes
// to another; a third means that its sum is wrong, or that nobody honest has
// it.
const maxFailures = 3

// Add joins the swarm of a blob, which must stay pinned until Drop has
// returned. Pieces that are complete are offered at once; none is wanted yet.
// A blob can be added once at a time.
func (e *Engine) Add(id chunker.Identity, b *chunker.Blob, ev Events) (*Torrent, error) {
	have := b.Have()
	t := &Torrent{
		e: e, id: id, blob: b, ev: ev,
		wake: make(chan struct{}, 1), done: make(chan struct{}),
		active: have.Count() > 0, roster: newRoster(e.id), failures: map[int]*failure{}, links: map[*link]struct{}{},
		picker: picker.New(e.tune.picker, id.Geometry, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))),
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	hash := infoHash(id.InfoHash())
	switch {
	case e.closed:
		return nil, fmt.Errorf("add torrent of %s: engine closed", id.Digest)
	case e.torrents[hash] != nil:
		return nil, fmt.Errorf("add torrent of %s: already there", id.Digest)
	}
	e.torrents[hash] = t
	e.met.torrents.Inc()
	t.life, t.cancel = context.WithCancel(e.life)
	t.news = time.AfterFunc(time.Hour, t.sendNews)
	t.news.Stop()
	go t.run()
	return t, nil
}

// Drop leaves the swarm. After it returns the blob is not touched and no event
// is called any more. It waits for events that are being called.
func (t *Torrent) Drop() {
	t.drop.Do(func() {
		t.e.mu.Lock()
		delete(t.e.torrents, infoHash(t.id.InfoHash()))
		t.e.mu.Unlock()
		t.mu.Lock()
		t.dropped = true
		t.news.Stop()
		for l := range t.links {
			l.end()
		}
		t.mu.Unlock()
		t.cancel()
		<-t.done
		t.work.Wait()
		t.e.met.torrents.Dec()
	})
}

// AddPeers connects to peers. Those that are connected already, or are being
// tried, are left alone.
func (t *Torrent) AddPeers(ps []Peer) {
	t.mu.Lock()
	now := time.Now()
	for _, p := range ps {
		t.roster.add(p, now)
	}
	t.mu.Unlock()
	t.poke()
}

// Want asks peers for pieces whose expected sums the blob knows. Those that it
// has are left alone.
func (t *Torrent) Want(is ...int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped {
		return
	}
	some := false
	for _, i := range is {
		if t.exists(i) && !t.blob.Has(i) {
			delete(t.failures, i)
			t.picker.Want(i)
			some = true
		}
	}
	if !some {
		return
	}
	if !t.active {
		t.active = true
		t.poke()
	}
	t.askAll(time.Now())
}

// Unwant stops asking peers for pieces.
func (t *Torrent) Unwant(is ...int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unwant(is)
}

// Have tells the swarm that pieces changed in the blob by another way: they
// came from a source and are offered now, or they were rejected and are no
// longer offered, nor wanted until Want is called again.
func (t *Torrent) Have(is ...int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dropped {
		return
	}
	t.unwant(is)
	for _, i := range is {
		if t.exists(i) && t.blob.Has(i) {
			t.announce(i)
			if !t.active {
				t.active = true
				t.poke()
			}
		}
	}
}

func (t *Torrent) exists(i int) bool { return i >= 0 && i < t.id.Geometry.NumPieces() }

// unwant is Unwant. Torrent.mu is held, as for the following.
func (t *Torrent) unwant(is []int) {
	some := false
	for _, i := range is {
		if t.exists(i) {
			t.over(i)
			some = true
		}
	}
	if some && !t.dropped {
		t.askAll(time.Now()) // who was asked has room now
	}
}

// over stops the search for a piece.
func (t *Torrent) over(i int) {
	delete(t.failures, i)
	for _, q := range t.picker.Unwant(i) {
		for l := range t.links {
			if l.peer == q {
				l.cancel(i)
			}
		}
	}
}

// askAll asks all peers for what they should be asked for now.
func (t *Torrent) askAll(now time.Time) {
	for l := range t.links {
		l.ask(now)
	}
}

// ask asks the peer for what it should be asked for now.
func (l *link) ask(now time.Time) {
	if l.choked || l.refused || l.stuck(now) {
		return
	}
	idle := len(l.asked) == 0
	if idle {
		l.heard = now
	}
	for {
		i, ok := l.peer.Next(now)
		if !ok {
			if idle && len(l.asked) > 0 {
				l.t.poke() // there is something to watch now
			}
			return
		}
		l.t.tries++
		begin := len(l.asked)
		for c := range l.t.chunks(i) {
			l.asked = append(l.asked, request{chunk: c, try: l.t.tries})
		}
		l.say(func(b []byte) []byte {
			for _, r := range l.asked[begin:] {
				b = appendRequest(b, pp.Request, r.chunk)
			}
			return b
		})
	}
}

// stuck says that the peer has not even answered what was cancelled since: what
// it is asked now would wait, too.
func (l *link) stuck(now time.Time) bool {
	return len(l.asked) > 0 && l.asked[0].void && now.Sub(l.heard) > stuckAfter
}

// chunks of a piece, in order.
func (t *Torrent) chunks(i int) func(yield func(chunk) bool) {
	_, n := t.id.Geometry.Piece(i)
	return func(yield func(chunk) bool) {
		for at := int64(0); at < n; at += chunker.ChunkLength {
			if !yield(chunk{i, at, min(chunker.ChunkLength, n-at)}) {
				return
			}
		}
	}
}

// expected finds the request that a chunk answers. It stays in the list until
// the chunk has arrived.
func (t *Torrent) expected(l *link, c chunk) (try uint64, known, live bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := l.find(c)
	if k < 0 {
		return 0, false, false
	}
	return l.asked[k].try, true, !l.asked[k].void
}

// awaits says whether chunks of a piece are still to come of a try.
func (t *Torrent) awaits(l *link, i int, try uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(l.asked, func(r request) bool { return r.piece == i && r.try == try && !r.void })
}

// arrived notes that a chunk has been read, and asks for more.
func (t *Torrent) arrived(l *link, c chunk, useful bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.answered(c)
	now := time.Now()
	l.heard = now
	if useful {
		l.peer.Came(c.piece, c.n, now)
		t.received.Add(c.n)
		t.e.met.received.Add(float64(c.n))
	} else {
		t.waste(c.n)
	}
	l.ask(now)
}

// waste notes that n bytes came for nothing.
func (t *Torrent) waste(n int64) {
	t.wasted.Add(n)
	t.e.met.wasted.Add(float64(n))
}

func (t *Torrent) sent(n int64) {
	t.served.Add(n)
	t.e.met.sent.Add(float64(n))
}

// answered notes that a chunk came, or was refused.
func (l *link) answered(c chunk) (known, live bool) {
	k := l.find(c)
	if k < 0 {
		return false, false
	}
	live = !l.asked[k].void
	l.asked = slices.Delete(l.asked, k, k+1)
	return true, live
}

// hear takes in what a peer says of itself.
func (t *Torrent) hear(l *link, m message) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	switch m.kind {
	case pp.Choke:
		l.choked = true
		l.voidAll()
		t.askAll(now)
		return nil
	case pp.Unchoke:
		l.choked = false
	case pp.Bitfield:
		bits, err := chunker.BitfieldFromBytes(t.id.Geometry.NumPieces(), m.bits)
		if err != nil {
			return err
		}
		for i := range bits.All() {
			l.peer.Gain(i)
		}
		t.roster.trades(l.id, now)
	case pp.HaveAll:
		for i := range t.id.Geometry.NumPieces() {
			l.peer.Gain(i)
		}
		t.roster.trades(l.id, now)
	case pp.HaveNone:
		t.roster.trades(l.id, now)
	case pp.Have:
		l.peer.Gain(int(m.index))
	case pp.Reject:
		known, live := l.answered(m.chunk())
		if !known {
			return fmt.Errorf("rejection at %d of piece %d that nobody asked for", m.begin, m.index)
		}
		if live { // it has lost the piece
			i := int(m.index)
			l.peer.Lose(i)
			l.void(i)
			t.askAll(now)
			return nil
		}
	default:
		return nil
	}
	l.ask(now)
	return nil
}

// settle takes in a piece that a peer has sent, and tells the owner.
func (t *Torrent) settle(l *link, i int, p []byte) {
	t.take(l, i, p)
	t.callOwner()
}

func (t *Torrent) take(l *link, i int, p []byte) {
	fresh, err := t.blob.TakePiece(i, p)
	t.mu.Lock()
	defer t.mu.Unlock()
	l.peer.Return(i)
	switch {
	case err == nil && fresh:
		t.over(i)
		t.announce(i)
		t.tellOwner(func() {
			if t.ev.PieceDone != nil {
				t.ev.PieceDone(i)
			}
		})
	case err == nil:
		t.over(i) // it came another way meanwhile
		t.waste(int64(len(p)))
	default:
		t.waste(int64(len(p)))
		t.failed(l, i, err)
	}
	l.ask(time.Now())
}

// Stats of a torrent, in bytes of pieces since it was added.
type Stats struct {
	BytesFromPeers, BytesToPeers int64
	// WastedBytes came twice, too late, or were wrong; only the last of these
	// are among BytesFromPeers, too.
	WastedBytes int64
	// Peers is how many nodes it is connected to.
	Peers int
}

// Stats may be called at any time, also after Drop.
func (t *Torrent) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		BytesFromPeers: t.received.Load(), BytesToPeers: t.served.Load(), WastedBytes: t.wasted.Load(), Peers: len(t.links),
	}
}

// name is how to call a peer. Who dialled has shown its id only.
func (t *Torrent) name(id peerID) string {
	if name := t.roster.name(id); name != "" {
		return name
	}
	if t.e.cfg.Nodes != nil {
		for _, node := range t.e.cfg.Nodes() {
			if nodeID(node) == id {
				return node
			}
		}
	}
	return fmt.Sprintf("unknown %x", id[8:])
}

// preferred says whether of two connections between the same nodes the new one
// is kept. Both sides have to come to the same answer: it is the one that the
// node with the higher id has dialled, and of two of these the later, since
// the other side would not have dialled again if it still had the earlier.
func preferred(old, fresh *link) bool {
	if old.dialer == fresh.dialer {
		return true
	}
	return bytes.Compare(fresh.dialer[:], old.dialer[:]) > 0
}
