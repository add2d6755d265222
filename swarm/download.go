package swarm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/engine"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// smallBlob is the size below which a blob goes node to node in one request. A
// torrent would cost more than it brings.
const smallBlob = 512 << 10

// Fetch brings a blob to this node, or joins the download that already does.
// It returns at once; reading waits. A small blob is fetched before Fetch
// returns.
func (n *Node) Fetch(ctx context.Context, r Request) (Download, error) {
	if !validDigest(r.Digest) || r.Size < 0 {
		return nil, fmt.Errorf("fetch %.80q of %d bytes: malformed request", r.Digest, r.Size)
	}
	if l, err := n.Open(ctx, r.Digest); err == nil {
		return localDownload{l}, nil
	}
	if r.Size < smallBlob {
		return n.fetchSmall(ctx, r)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.downloads[r.Digest]
	for d != nil && d.failed() {
		// Its readers are on their way out; the next attempt starts clean.
		n.mu.Unlock()
		select {
		case <-d.gone:
		case <-ctx.Done():
		}
		n.mu.Lock()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("fetch %s: %w", r.Digest, ctx.Err())
		}
		d = n.downloads[r.Digest]
	}
	if n.closing {
		return nil, fmt.Errorf("fetch %s: node is shutting down: %w", r.Digest, ErrUnavailable)
	}
	if d == nil {
		var err error
		if d, err = n.newDownload(ctx, r); err != nil {
			return nil, err
		}
		n.downloads[r.Digest] = d
		n.queue()
		n.met.downloads.Set(float64(len(n.downloads)))
		n.work.Go(d.run)
	} else if d.id.Geometry.Size != r.Size {
		return nil, fmt.Errorf("fetch %s: asked for %d bytes, but it is in flight with %d", r.Digest, r.Size, d.id.Geometry.Size)
	}
	d.take(r.Origin)
	return &handle{d: d}, nil
}

// download is one large blob in flight on this node. It ends when the blob is
// whole and nobody needs its pieces any more, when it fails, or when its
// readers are gone for Linger.
type download struct {
	n    *Node
	id   chunker.Identity
	log  zerolog.Logger
	blob *chunker.Blob
	out  *tracker.Outbox[tracker.Up, *tracker.Up]
	// after are the blobs that go before this one; see Request.
	after []digest.Digest

	ctx    context.Context
	cancel context.CancelCauseFunc
	whole  chan struct{} // closed when whole and verified, or failed; see err
	gone   chan struct{} // closed when the last hold is given back after the end
	// starved carries the tracker's word that it knows no source.
	starved chan struct{}

	fromOrigin, fromLease, fromSwarm atomic.Int64

	span      trace.Span   // ended by finish
	lastPiece atomic.Int64 // when the last one came, in Unix nanoseconds

	mu       sync.Mutex
	origin   Origin
	renewed  chan struct{} // closed when origin is replaced
	refs     int           // handles, and one for run
	idleFrom time.Time
	err      error
	tor      *engine.Torrent
	leases   map[uint64]lease
	leaseRun sync.WaitGroup
	vouchers map[int]string           // who vouches for a piece: its publisher, or the holder we had it from
	doubted  map[int]tracker.PieceSum // published sums that contradict a piece from a source
	beat     tracker.Beat
	dealt    bool // the tracker has said last that no piece is left to lease
	later    bool // as the tracker was told; see Node.queue
	vit      vitals
}

var errAbandoned = errors.New("nobody reads this blob any more")

// newDownload opens one; it outlives ctx.
func (n *Node) newDownload(ctx context.Context, r Request) (*download, error) {
	g, err := chunker.GeometryOf(r.Size)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", r.Digest, err)
	}
	blob, err := n.cfg.Store.Acquire(r.Digest, r.Size)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", r.Digest, err)
	}
	d := &download{
		n: n, blob: blob, after: r.After,
		id:       chunker.Identity{Cluster: n.cfg.Cluster, Digest: r.Digest, Geometry: g},
		log:      n.cfg.Log.With().Str("digest", r.Digest.String()).Str("registry", r.Registry).Str("repository", r.Repository).Logger(),
		out:      tracker.NewOutbox[tracker.Up](),
		whole:    make(chan struct{}),
		gone:     make(chan struct{}),
		starved:  make(chan struct{}, 1),
		renewed:  make(chan struct{}),
		leases:   map[uint64]lease{},
		vouchers: map[int]string{},
		doubted:  map[int]tracker.PieceSum{},
	}
	d.startSpan(ctx, r)
	now := time.Now()
	d.lastPiece.Store(now.UnixNano())
	d.vit = vitals{lastByte: now, lastSwarm: now, trackedSince: now}
	d.refs = 1
	return d, nil
}

// queue tells the trackers of the node's downloads which of them have another one
// to let go first. Node.mu is held.
//
// Each layer of an image has a tracker of its own, and each would fill the
// sources' links with its blob alone: all layers would become whole at the same
// time, at the end, with all of the unpacking still to do. In the image's order,
// which is that of unpacking, all nodes unpack one while they fetch the next.
func (n *Node) queue() {
	for _, d := range n.downloads {
		later := slices.ContainsFunc(d.after, func(b digest.Digest) bool {
			o := n.downloads[b]
			return o != nil && o.taking()
		})
		d.mu.Lock()
		if later != d.later {
			d.later = later
			d.out.Put(tracker.Up{Later: &later})
		}
		d.mu.Unlock()
	}
}

// requeue is queue for those who do not hold Node.mu.
func (n *Node) requeue() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queue()
}

// taking says whether sources still have something to do for the blob.
func (d *download) taking() bool {
	select {
	case <-d.whole:
		return false
	default:
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.dealt
}

// run is the download's life. It owns everything that it starts.
func (d *download) run() {
	err := d.swarm()
	var wrong *chunker.DigestError
	if errors.As(err, &wrong) {
		err = d.refetch(wrong)
	}
	d.finish(err)
	d.n.requeue()
	d.cancel(nil)
	d.give()
}

// swarm runs the download in the swarm until the blob is whole and no puller
// needs this node, or there is an error. A *chunker.DigestError means that
// the pieces were all there and the whole was wrong.
func (d *download) swarm() error {
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	tor, err := d.n.cfg.Engine.Add(d.id, d.blob, engine.Events{PieceDone: d.pieceDone, PieceBad: d.pieceBad})
	if err != nil {
		return fmt.Errorf("join swarm: %w", err)
	}
	d.mu.Lock()
	d.tor = tor
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.tor = nil
		d.mu.Unlock()
		tor.Drop()
		d.leaseRun.Wait()
	}()

	tracked := make(chan struct{})
	go func() {
		defer close(tracked)
		d.n.track(ctx, d.id.Digest, d.id.Geometry.NumPieces(), d, d.out)
	}()
	verified := make(chan error, 1)
	go func() { verified <- d.blob.VerifyWhole(ctx) }()
	patience := make(chan error, 1)
	go func() { patience <- d.patience(ctx) }()
	// Everything that was started is over when this returns.
	settle := func(err error, open ...chan error) error {
		cancel()
		for _, c := range open {
			_ = <-c
		}
		<-tracked
		return err
	}

	select {
	case err := <-verified:
		if err != nil && ctx.Err() != nil {
			return settle(context.Cause(d.ctx), patience)
		}
		d.verifiedSpan(ctx, err)
		if err != nil {
			return settle(err, patience)
		}
	case err := <-patience:
		return settle(err, verified)
	}
	// Whole. Readers get the tail; the swarm may still need the pieces.
	d.reportDoubts()
	d.finish(nil)
	d.n.requeue()
	d.out.Put(tracker.Up{Whole: true, WholeSize: d.id.Geometry.Size})
	d.linger(ctx, tracked)
	return settle(nil, patience)
}

// linger keeps a whole blob's torrent until the tracker says that no puller
// is left, or nothing was uploaded for Linger.
func (d *download) linger(ctx context.Context, tracked <-chan struct{}) {
	tick := time.NewTicker(d.n.cfg.Linger / 4)
	defer tick.Stop()
	sent, last := int64(-1), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tracked:
			return
		case now := <-tick.C:
			if up := d.torrent().Stats().BytesToPeers; up != sent {
				sent, last = up, now
			} else if now.Sub(last) >= d.n.cfg.Linger {
				return
			}
		}
	}
}

func (d *download) torrent() *engine.Torrent {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tor
}

// hello implements puller.
func (d *download) hello() tracker.Up {
	have := d.blob.Have()
	up := tracker.Up{Hello: &tracker.Hello{
		Version: tracker.Version, Node: d.n.self(), Digest: d.id.Digest, Size: d.id.Geometry.Size, Have: have.Bytes(),
	}}
	for i := range have.All() {
		if s, ok := d.blob.Sum(i); ok {
			up.Have = append(up.Have, tracker.PieceSum{Index: i, Sum: s})
		}
	}
	up.Whole = d.blob.Complete()
	if up.Whole {
		up.WholeSize = d.id.Geometry.Size
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	up.Hello.Origin = d.origin != nil
	up.Hello.Later = d.later
	return up
}

// lost implements puller: without the tracker's word nobody knows what we are
// fetching, so another may be told to fetch it too. What was read of a piece
// is lost, what was completed is not.
func (d *download) lost() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, l := range d.leases {
		l.stop()
		delete(d.leases, id)
	}
	if d.vit.tracked {
		d.vit.tracked, d.vit.trackedSince = false, time.Now()
	}
}

// connect introduces peers to the engine; addresses come from the membership,
// never from a message.
func (d *download) connect(tor *engine.Torrent, ids []string) {
	peers := make([]engine.Peer, 0, len(ids))
	for _, id := range ids {
		if m, ok := d.n.member(id); ok && id != d.n.self() && !d.n.suspect(id) {
			peers = append(peers, engine.Peer{ID: id, Addr: m.Wire})
		}
	}
	tor.AddPeers(peers)
}

// learn takes in published sums and wants their pieces.
func (d *download) learn(sums []tracker.PieceSum) {
	var want []int
	for _, s := range sums {
		if d.n.suspect(s.By) {
			continue
		}
		if d.blob.Expect(s.Index, s.Sum) != nil {
			// We have another sum from a source. Who is right shows when the
			// blob is whole.
			d.mu.Lock()
			d.doubted[s.Index] = s
			d.mu.Unlock()
			continue
		}
		d.mu.Lock()
		d.vouchers[s.Index] = s.By
		leased := d.leased(s.Index)
		d.mu.Unlock()
		if !leased {
			want = append(want, s.Index)
		}
	}
	if tor := d.torrent(); tor != nil && len(want) > 0 {
		tor.Want(want...)
	}
}

// pieceDone hears from the engine of a verified piece.
func (d *download) pieceDone(i int) {
	_, n := d.id.Geometry.Piece(i)
	d.lastPiece.Store(time.Now().UnixNano())
	d.fromSwarm.Add(n)
	d.n.met.received.WithLabelValues("swarm").Add(float64(n))
	d.touch()
	d.out.Put(tracker.Up{Got: []int{i}})
}

// pieceBad hears from the engine of a piece that kept failing.
func (d *download) pieceBad(i int, peers []string) {
	d.n.met.corrupt.WithLabelValues(corruptPiece).Inc()
	d.mu.Lock()
	by := d.vouchers[i]
	d.mu.Unlock()
	d.log.Warn().Int("piece", i).Strs("peers", peers).Str("voucher", by).
		Msg("piece from the swarm contradicts its digest again and again: not asking peers for it any more")
}

// touch notes that useful bytes arrived.
func (d *download) touch() {
	d.mu.Lock()
	d.vit.lastByte = time.Now()
	d.mu.Unlock()
}

// handle implements puller.
func (d *download) handle(m tracker.Down) {
	if m.Error != "" {
		d.log.Warn().Str("error", m.Error).Msg("tracker refused us")
	}
	tor := d.torrent()
	if tor == nil {
		return // over
	}
	d.learn(m.Sums)
	// They would come twice. A lease wants them again if it fails, so it begins later.
	for _, l := range m.Grants {
		if !l.Whole {
			tor.Unwant(pieces(l)...)
		}
	}
	turned := false
	d.mu.Lock()
	if !d.vit.tracked {
		d.vit.tracked, d.vit.trackedSince = true, time.Now()
	}
	for _, r := range m.Refused {
		d.doubted[r.Index] = r
	}
	for _, id := range m.Revoke {
		if l, ok := d.leases[id]; ok {
			l.stop()
			delete(d.leases, id)
		}
	}
	if m.Beat != nil {
		if m.Beat.Progress != d.beat.Progress {
			d.vit.lastSwarm = time.Now()
		}
		d.beat = *m.Beat
		turned = d.dealt != (m.Beat.Free == 0)
		d.dealt = m.Beat.Free == 0
		d.out.SetPace(tracker.PaceUp(m.Beat.Pullers))
	}
	for _, l := range m.Grants {
		ctx, cancel := context.WithCancel(d.ctx)
		d.leases[l.ID] = lease{l, cancel}
		d.leaseRun.Go(func() { d.fulfil(ctx, cancel, l) })
	}
	d.mu.Unlock()
	if turned {
		d.n.requeue()
	}
	for _, i := range m.Forget {
		d.blob.Reject(i)
		tor.Have(i) // the engine asks the blob, and finds it gone
	}
	if len(m.Peers) > 0 {
		d.connect(tor, m.Peers)
	}
	if m.Starved {
		select {
		case d.starved <- struct{}{}:
		default:
		}
	}
}
