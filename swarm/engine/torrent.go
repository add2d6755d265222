package engine

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/anacrolix/torrent"
	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
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
	t    *torrent.Torrent
	id   chunker.Identity
	blob *chunker.Blob
	ev   Events

	wake chan struct{} // there may be something to do
	stop chan struct{}
	done chan struct{}
	drop sync.Once

	// access is held shared while the library works on the blob, and closed
	// to it by Drop.
	access  sync.RWMutex
	dropped bool

	// steer is held from a decision of the picker until the library knows of
	// it. It comes before all other locks, and no callback takes it.
	steer sync.Mutex

	mu     sync.Mutex
	depth  int  // chunks to request of one peer at a time
	active bool // has or wants something; before, the library does not dial
	roster *roster
	ledger *ledger
	picker *picker
	links  map[*link]struct{}
	queue  []event
	stale  []int // pieces that the library is to ask about again
}

// event is work for the torrent's goroutine.
type event struct {
	piece   int
	result  result
	verdict verdict
}

// Add joins the swarm of a blob, which must stay pinned until Drop has
// returned. Pieces that are complete are offered at once; none is wanted yet.
// A blob can be added once at a time.
func (e *Engine) Add(id chunker.Identity, b *chunker.Blob, ev Events) (*Torrent, error) {
	t := &Torrent{
		e: e, id: id, blob: b, ev: ev,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
		roster: newRoster(e.id), ledger: newLedger(), picker: newPicker(id.Geometry), links: map[*link]struct{}{},
	}
	t.resize()
	hash := id.InfoHash()
	// First here, then in the library, since peers may already be waiting.
	e.mu.Lock()
	switch {
	case e.closed:
		e.mu.Unlock()
		return nil, fmt.Errorf("add torrent of %s: engine closed", id.Digest)
	case e.torrents[hash] != nil:
		e.mu.Unlock()
		return nil, fmt.Errorf("add torrent of %s: already there", id.Digest)
	}
	e.torrents[hash] = t
	e.mu.Unlock()
	e.met.torrents.Inc()

	t.t, _ = e.cl.AddTorrentOpt(torrent.AddTorrentOpts{
		InfoHash:                 hash,
		Storage:                  blobStorage{t},
		ChunkSize:                pp.Integer(e.tune.chunk),
		InfoBytes:                id.InfoBytes(),
		DisableInitialPieceCheck: true,
	})
	t.t.SetOnWriteChunkError(t.cannotWrite)
	have := b.Have()
	t.active = have.Count() > 0
	go t.run()
	if t.t.Info() == nil {
		t.Drop()
		return nil, fmt.Errorf("add torrent of %s: the engine does not accept its info", id.Digest)
	}
	return t, nil
}

// Drop leaves the swarm. After it returns the blob is not touched and no event
// is called any more. It waits for events that are being called.
func (t *Torrent) Drop() {
	t.drop.Do(func() {
		t.t.Drop()
		t.access.Lock()
		t.dropped = true
		t.access.Unlock()
		close(t.stop)
		<-t.done
		t.e.mu.Lock()
		delete(t.e.torrents, t.id.InfoHash())
		t.e.mu.Unlock()
		t.e.met.torrents.Dec()
	})
}

// enter is asked before the blob is touched; leave follows if it is true.
func (t *Torrent) enter() bool {
	t.access.RLock()
	if t.dropped {
		t.access.RUnlock()
		return false
	}
	return true
}

func (t *Torrent) leave() { t.access.RUnlock() }

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
	if !t.enter() {
		return
	}
	defer t.leave()
	is = slices.DeleteFunc(t.valid(is), t.blob.Has)
	t.mu.Lock()
	for _, i := range is {
		t.ledger.fresh(i)
		t.picker.want(i)
	}
	t.active = t.active || len(is) > 0
	t.mu.Unlock()
	t.poke()
}

// Unwant stops asking peers for pieces.
func (t *Torrent) Unwant(is ...int) {
	if !t.enter() {
		return
	}
	defer t.leave()
	is = t.valid(is)
	t.steer.Lock()
	defer t.steer.Unlock()
	t.forget(is)
	runs(is, t.t.CancelPieces)
}

// Have tells the swarm that pieces changed in the blob by another way: they
// came from a source and are offered now, or they were rejected and are no
// longer offered, nor wanted until Want is called again.
func (t *Torrent) Have(is ...int) {
	if !t.enter() {
		return
	}
	defer t.leave()
	is = t.valid(is)
	t.steer.Lock()
	defer t.steer.Unlock()
	t.forget(is)
	for _, i := range is {
		if !t.blob.Has(i) {
			t.t.CancelPieces(i, i+1)
		}
		t.update(i)
	}
	t.mu.Lock()
	t.active = t.active || len(is) > 0
	t.mu.Unlock()
	t.poke()
}

// update has the library ask the blob whether it has piece i. While the
// library is hashing the piece it will set what comes of that, without asking
// again, so it has to be told once more then.
func (t *Torrent) update(i int) {
	t.t.Piece(i).UpdateCompletion()
	if s := t.t.PieceState(i); s.Hashing || s.Marking || s.QueuedForHash {
		t.mu.Lock()
		t.stale = append(t.stale, i)
		t.mu.Unlock()
	}
}

func (t *Torrent) forget(is []int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range is {
		t.picker.unwant(i)
	}
}

// valid returns those piece numbers that exist, sorted.
func (t *Torrent) valid(is []int) []int {
	n := t.id.Geometry.NumPieces()
	is = slices.DeleteFunc(slices.Clone(is), func(i int) bool { return i < 0 || i >= n })
	slices.Sort(is)
	return slices.Compact(is)
}

// runs calls f for each run of consecutive numbers in is, which is sorted: the
// library locks and looks around once per call.
func runs(is []int, f func(begin, end int)) {
	for len(is) > 0 {
		n := 1
		for n < len(is) && is[n] == is[0]+n {
			n++
		}
		f(is[0], is[0]+n)
		is = is[n:]
	}
}

// Stats of a torrent, in bytes of pieces since it was added.
type Stats struct {
	BytesFromPeers, BytesToPeers, WastedBytes int64
	// Peers is how many nodes it is connected to.
	Peers int
}

// Stats may be called at any time, also after Drop.
func (t *Torrent) Stats() Stats {
	s := t.t.Stats()
	read, useful := s.BytesReadData.Int64(), s.BytesReadUsefulData.Int64()
	return Stats{BytesFromPeers: useful, BytesToPeers: s.BytesWrittenData.Int64(), WastedBytes: read - useful, Peers: s.ActivePeers}
}

// judge takes a hasher's result. It does not block.
func (t *Torrent) judge(i int, r result) {
	t.mu.Lock()
	t.queue = append(t.queue, event{i, r, t.ledger.judge(i, r)})
	if r == good {
		t.picker.unwant(i)
	}
	t.mu.Unlock()
	t.poke()
}

func (t *Torrent) linked(l *link) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.refused = !t.roster.connected(l.id, time.Now())
	t.links[l] = struct{}{}
	t.resize()
}

// resize follows the number of peers. Torrent.mu is held.
func (t *Torrent) resize() {
	n := len(t.links)
	t.depth = t.e.tune.depth(n)
	t.picker.resize(n * t.depth * t.e.tune.chunk)
}

func (t *Torrent) unlinked(l *link) {
	t.mu.Lock()
	delete(t.links, l)
	t.resize()
	t.roster.gone(l.id, time.Now())
	for i := range l.has.All() {
		t.picker.dropped(i)
	}
	t.mu.Unlock()
	t.poke()
}

func (t *Torrent) introduced(id torrent.PeerID, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.roster.introduce(id, name)
}

func (t *Torrent) name(id torrent.PeerID) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.roster.name(id)
}

func (t *Torrent) names(ids []torrent.PeerID) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for _, id := range ids {
		names = append(names, t.roster.name(id))
	}
	return names
}
