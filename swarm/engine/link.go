package engine

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	pp "github.com/anacrolix/torrent/peer_protocol"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/picker"
)

const (
	// readBuffer is what is read of a connection at a time, but for chunks,
	// which go straight to where they belong.
	readBuffer = 4 << 10
	// maxServe is how many chunks a peer may have requested and not been sent:
	// twice what a node of ours asks for.
	maxServe = 2 * (16<<20 + chunker.MaxPieceLength) / chunker.ChunkLength
	// maxOut is how many bytes of messages may wait for a peer that asks for more
	// and more; those to one that behaves have a few hundred.
	maxOut = 64 << 10
)

var (
	errDisk    = errors.New("disk")
	errTooMany = fmt.Errorf("more than %d chunks requested at a time", maxServe)
)

// link is one connection to a peer, on which both sides ask and serve.
type link struct {
	t      *Torrent
	c      net.Conn
	doze   *doze // nil if c is not TCP
	id     peerID
	dialer peerID // who dialled
	gate   gate   // only the reader's

	// Guarded by Torrent.mu.
	peer    *picker.Peer
	refused bool      // the peer is left out
	choked  bool      // the peer does not serve for now
	asked   []request // sent and not answered yet, in order
	heard   time.Time // when the last chunk came, or the first one was asked

	mu    sync.Mutex
	out   []byte  // messages to send
	news  []byte  // those that can wait until something else is sent, or due is set
	due   bool    // meaningless without news
	serve []chunk // to send, in order, when it is our turn
	turn  turn
	ended bool
	wake  chan struct{}
	gone  chan struct{} // closed at the end
}

// request is a chunk that the peer was asked for. Void ones were cancelled, but
// may still come.
type request struct {
	chunk
	try  uint64 // tells the times apart that a piece is asked for
	void bool
}

func newLink(t *Torrent, c net.Conn, d *doze, id, dialer peerID) *link {
	return &link{
		t: t, c: c, doze: d, id: id, dialer: dialer, gate: gate{geo: t.id.Geometry}, choked: true,
		wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
}

// cancel takes back what was asked of the peer of a piece.
func (l *link) cancel(i int) {
	l.say(func(b []byte) []byte {
		for _, c := range l.void(i) {
			b = appendRequest(b, pp.Cancel, c)
		}
		return b
	})
}

// void notes that nothing of a piece is awaited of the peer any more, and returns
// what was.
func (l *link) void(i int) (chunks []chunk) {
	for k := range l.asked {
		if r := &l.asked[k]; r.piece == i && !r.void {
			r.void = true
			chunks = append(chunks, r.chunk)
		}
	}
	return chunks
}

// voidAll notes that whatever was asked of the peer is asked of others.
func (l *link) voidAll() {
	l.peer.Drop()
	for k := range l.asked {
		l.asked[k].void = true
	}
}

// find returns where in l.asked the request for a chunk is; -1: nowhere.
func (l *link) find(c chunk) int {
	return slices.IndexFunc(l.asked, func(r request) bool { return r.chunk == c })
}

// end closes the connection, without waiting for anything.
func (l *link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	close(l.gone)
	hangUp(l.c)
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// say queues messages that build appends.
func (l *link) say(build func(b []byte) []byte) {
	l.mu.Lock()
	l.out = build(l.out)
	l.mu.Unlock()
	l.poke()
}

// write sends what is queued until the connection ends.
func (l *link) write() error {
	impatience := time.AfterFunc(time.Hour, func() { l.t.e.turns.yield(l) })
	defer impatience.Stop()
	buf := make([]byte, 0, pieceHeader+chunker.ChunkLength)
	for {
		b, c := l.next(buf[:0])
		if len(b) == 0 && c.n == 0 {
			select {
			case <-l.wake:
			case <-l.gone:
				return nil
			}
			continue
		}
		if c.n > 0 {
			var err error
			if b, err = l.t.load(b, c); err != nil {
				return err
			}
		}
		if cap(b) <= 2*cap(buf) {
			buf = b
		}
		if err := l.c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		if c.n == 0 {
			if _, err := l.c.Write(b); err != nil {
				return err
			}
			continue
		}
		impatience.Reset(patientWrite)
		_, err := l.c.Write(b)
		impatience.Stop()
		if err != nil {
			return err
		}
		l.t.sent(c.n)
		if !l.continues(c.piece) {
			l.t.e.turns.yield(l)
		}
	}
}

// next takes what is to be sent: messages, appended to b, and then a chunk, if
// its length is not zero.
func (l *link) next(b []byte) ([]byte, chunk) {
	l.mu.Lock()
	defer l.mu.Unlock()
	serve := l.turn == sending && len(l.serve) > 0
	if len(l.out) == 0 && !serve && !l.due {
		return b, chunk{}
	}
	b = append(append(b, l.out...), l.news...)
	l.out, l.news, l.due = l.out[:0], l.news[:0], false
	if !serve {
		return b, chunk{}
	}
	c := l.serve[0]
	l.serve = l.serve[1:]
	return b, c
}

// continues says whether more of a piece is to be sent next.
func (l *link) continues(piece int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.serve) > 0 && l.serve[0].piece == piece
}

// load appends a chunk for a peer, or its rejection.
func (t *Torrent) load(b []byte, c chunk) ([]byte, error) {
	if !t.blob.Has(c.piece) {
		return appendRequest(b, pp.Reject, c), nil // withdrawn since it was requested
	}
	off, _ := t.id.Geometry.Piece(c.piece)
	b = appendPiece(b, c)
	at := len(b)
	b = slices.Grow(b, int(c.n))[:at+int(c.n)]
	if _, err := t.blob.ReadAt(b[at:], off+c.begin); err != nil {
		return nil, fmt.Errorf("read piece %d: %w: %w", c.piece, errDisk, err)
	}
	return b, nil
}

// read takes in what the peer says until the connection ends.
func (l *link) read() error {
	r := bufio.NewReaderSize(l.c, readBuffer)
	partial := map[int]*coming{}
	defer func() {
		for _, c := range partial {
			l.t.e.buffers.Put(c.buf)
		}
	}()
	for {
		m, err := readMessage(r, l.t.id.Geometry.NumPieces())
		if err != nil {
			return err
		}
		if err := l.gate.admit(m); err != nil {
			return err
		}
		if m.keepalive {
			continue
		}
		switch m.kind {
		case pp.Piece:
			err = l.receive(r, m.chunk(), partial)
		case pp.Request:
			err = l.requested(m.chunk())
		case pp.Cancel:
			l.cancelled(m.chunk())
		default:
			err = l.t.hear(l, m)
		}
		if err != nil {
			return err
		}
	}
}

// coming is a piece that is on its way from a peer.
type coming struct {
	buf  []byte
	left int64
	try  uint64
}

// receive reads the payload of a chunk, which was asked for, and settles its
// piece when that is complete.
func (l *link) receive(r *bufio.Reader, c chunk, all map[int]*coming) error {
	t := l.t
	try, known, live := t.expected(l, c)
	if !known {
		return fmt.Errorf("chunk at %d of piece %d that nobody asked for", c.begin, c.piece)
	}
	if !live {
		_, err := r.Discard(int(c.n))
		t.arrived(l, c, false)
		return err
	}
	_, n := t.id.Geometry.Piece(c.piece)
	p := all[c.piece]
	if p == nil || p.try != try {
		l.prune(all)
		p = &coming{buf: t.e.buffers.Get(n), left: n, try: try}
		all[c.piece] = p
	}
	if err := l.fill(r, p.buf[c.begin:c.begin+c.n]); err != nil {
		return err
	}
	p.left -= c.n
	t.arrived(l, c, true)
	if p.left > 0 {
		return nil
	}
	delete(all, c.piece)
	t.settle(l, c.piece, p.buf)
	t.e.buffers.Put(p.buf)
	return nil
}

// fill reads len(b) bytes of a chunk that has begun to come.
func (l *link) fill(r *bufio.Reader, b []byte) error {
	defer l.doze.expect(0)
	for len(b) > 0 {
		l.doze.expect(len(b) - r.Buffered())
		n, err := r.Read(b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// prune drops what came of pieces that were cancelled since.
func (l *link) prune(all map[int]*coming) {
	for i, p := range all {
		if !l.t.awaits(l, i, p.try) {
			delete(all, i)
			l.t.e.buffers.Put(p.buf)
		}
	}
}

// requested queues a chunk for the peer.
func (l *link) requested(c chunk) error {
	if !l.t.blob.Has(c.piece) {
		return l.reject(c)
	}
	l.mu.Lock()
	full := l.full()
	if !full {
		l.serve = append(l.serve, c)
	}
	idle := l.turn == noTurn
	l.mu.Unlock()
	switch {
	case full:
		return errTooMany
	case idle:
		l.t.e.turns.request(l)
	default:
		l.poke()
	}
	return nil
}

func (l *link) reject(c chunk) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.full() {
		return errTooMany
	}
	l.out = appendRequest(l.out, pp.Reject, c)
	l.poke()
	return nil
}

// full says that the peer has to wait with more requests.
func (l *link) full() bool { return len(l.serve) >= maxServe || len(l.out) > maxOut }

// cancelled forgets a chunk that was not sent yet.
func (l *link) cancelled(c chunk) {
	l.mu.Lock()
	k := slices.Index(l.serve, c)
	if k >= 0 {
		l.serve = slices.Delete(l.serve, k, k+1)
		l.out = appendRequest(l.out, pp.Reject, c)
	}
	over := k >= 0 && len(l.serve) == 0
	l.mu.Unlock()
	if over {
		l.t.e.turns.yield(l)
	}
	l.poke()
}
