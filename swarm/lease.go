package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

const (
	// progressEvery is how often a lease tells the tracker that it moves; a
	// tenth of the time after which it would be revoked.
	progressEvery = 500 * time.Millisecond
	// helpRun is how much a download fetches by itself at a time, in bytes,
	// before it looks again whether the swarm moves.
	helpRun = 4 << 20
	// renewalWait is how long a lease waits for other credentials when the
	// registry refuses those at hand: a client's request for a new token and
	// its next one here, and less than a lease may stand still
	// (tracker.Params.LeaseTimeout; near the end another may get it sooner).
	renewalWait = 1500 * time.Millisecond
)

// lease is one that is being worked off.
type lease struct {
	tracker.Lease
	stop context.CancelFunc
}

// pieces of a lease.
func pieces(l tracker.Lease) []int {
	is := make([]int, l.Count)
	for k := range is {
		is[k] = l.First + k
	}
	return is
}

// leased says whether piece i is to come by a lease and not from the swarm: all
// that is leased, but for what a registry without ranges sends along. download.mu
// is held.
func (d *download) leased(i int) bool {
	for _, l := range d.leases {
		if !l.Whole && i >= l.First && i < l.First+l.Count {
			return true
		}
	}
	return false
}

// wantAgain asks the swarm for what a failed lease has not brought and others
// have published.
func (d *download) wantAgain(l tracker.Lease) {
	tor := d.torrent()
	if tor == nil {
		return
	}
	tor.Want(slices.DeleteFunc(pieces(l), func(i int) bool {
		_, known := d.blob.Sum(i)
		return !known
	})...)
}

// fulfil works a lease off and tells the tracker how it ended.
func (d *download) fulfil(ctx context.Context, cancel context.CancelFunc, l tracker.Lease) {
	defer cancel()
	kind := "origin"
	if l.Source != "" {
		kind = "holder"
	}
	ctx, span := d.leaseSpan(ctx, l.Source, l.First, l.Count)
	err := d.work(ctx, l)
	EndSpan(span, err)
	d.mu.Lock()
	_, mine := d.leases[l.ID]
	delete(d.leases, l.ID)
	d.mu.Unlock()
	if err != nil {
		d.wantAgain(l)
	}
	switch {
	case err == nil:
		d.n.met.leases.WithLabelValues(kind, "done").Inc()
		return
	case !mine:
		// Revoked, or the session is gone: the tracker knows.
		d.n.met.leases.WithLabelValues(kind, "revoked").Inc()
		return
	}
	d.n.met.leases.WithLabelValues(kind, "failed").Inc()
	reason := tracker.FailSource
	var conflict *chunker.ConflictError
	switch {
	case errors.Is(err, ErrNoRange):
		reason = tracker.FailNoRange
	case errors.Is(err, ErrNotFound):
		reason = tracker.FailNotFound
	case errors.As(err, &conflict):
		reason = tracker.FailCorrupt
		d.n.met.corrupt.WithLabelValues(corruptPiece).Inc()
	}
	if d.ctx.Err() == nil {
		d.log.Warn().Err(err).Str("source", l.Source).Int("first", l.First).Int("count", l.Count).
			Msg("lease failed, the tracker gives it to another")
	}
	d.out.Put(tracker.Up{Failed: []tracker.Failure{{Lease: l.ID, Reason: reason}}})
}

// work brings in the pieces of a lease that are still missing.
func (d *download) work(ctx context.Context, l tracker.Lease) error {
	open, err := d.opener(l.Source)
	if err != nil {
		return err
	}
	g := d.id.Geometry
	end := l.First + l.Count
	rd := &leaseReader{d: d, id: l.ID, source: l.Source}
	if l.Whole {
		body, err := open(ctx, 0, g.Size)
		if err != nil {
			return err
		}
		defer body.Close()
		rd.ReadCloser = body
		return d.readPieces(rd, 0, g.NumPieces())
	}
	for i := l.First; i < end; {
		if d.blob.Has(i) {
			i++
			continue
		}
		to := i + 1
		for to < end && !d.blob.Has(to) {
			to++
		}
		off, _ := g.Piece(i)
		last, n := g.Piece(to - 1)
		body, err := open(ctx, off, last+n-off)
		if err != nil {
			return err
		}
		rd.ReadCloser = body
		err = d.readPieces(rd, i, to)
		body.Close()
		if err != nil {
			return err
		}
		i = to
	}
	return nil
}

// opener returns how to open a range at a source: a node, or "" for the
// origin.
func (d *download) opener(source string) (func(ctx context.Context, off, n int64) (io.ReadCloser, error), error) {
	if source == "" {
		return d.openOrigin, nil
	}
	m, ok := d.n.member(source)
	if !ok || d.n.suspect(source) {
		return nil, fmt.Errorf("open node %s: not a live, trusted member: %w", source, ErrUnavailable)
	}
	return func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
		return d.n.peers.blob(ctx, m, d.id.Digest, off, n)
	}, nil
}

// openOrigin opens a range at the origin, in the name of the newest caller. If
// that one's credentials are refused, which is how tokens end, it waits for the
// next.
func (d *download) openOrigin(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	late := time.NewTimer(renewalWait)
	defer late.Stop()
	for {
		d.mu.Lock()
		o, renewed := d.origin, d.renewed
		d.mu.Unlock()
		if o == nil {
			return nil, fmt.Errorf("open origin: none known: %w", ErrUnavailable)
		}
		body, err := o.Open(ctx, off, n)
		if !errors.Is(err, ErrDenied) {
			return body, err
		}
		select {
		case <-renewed:
		case <-late.C:
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// readPieces reads pieces [from, to) off r and stores and announces each that
// is still missing.
func (d *download) readPieces(r *leaseReader, from, to int) error {
	g := d.id.Geometry
	buf := d.n.buffers.Get(g.PieceLength)
	defer func() { d.n.buffers.Put(buf) }()
	for i := from; i < to; i++ {
		off, n := g.Piece(i)
		p := buf[:n]
		if _, err := io.ReadFull(r, p); err != nil {
			return fmt.Errorf("read piece %d at byte %d: %w", i, off, err)
		}
		if d.blob.Has(i) {
			continue // it came through the swarm meanwhile
		}
		sum, err := d.blob.WritePiece(i, p)
		if err != nil {
			return fmt.Errorf("store piece %d: %w", i, err)
		}
		d.lastPiece.Store(time.Now().UnixNano())
		d.mu.Lock()
		d.vouchers[i] = r.source
		d.mu.Unlock()
		// The sum goes out before the announcement to peers does: a piece is
		// wanted only once its sum is known.
		d.out.Put(tracker.Up{Have: []tracker.PieceSum{{Index: i, Sum: sum}}})
		if tor := d.torrent(); tor != nil {
			tor.Have(i)
		}
	}
	return nil
}

// leaseReader counts what a lease brings in.
type leaseReader struct {
	io.ReadCloser
	d      *download
	id     uint64
	source string // a holder, or "" for the origin
	bytes  int64
	told   time.Time
}

func (r *leaseReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if n == 0 {
		return n, err
	}
	d := r.d
	r.bytes += int64(n)
	if r.source != "" {
		d.fromLease.Add(int64(n))
		d.n.met.received.WithLabelValues("lease").Add(float64(n))
	} else {
		d.fromOrigin.Add(int64(n))
		d.n.met.received.WithLabelValues("origin").Add(float64(n))
	}
	if now := time.Now(); now.Sub(r.told) >= progressEvery {
		r.told = now
		d.touch()
		if r.id != 0 {
			d.out.Put(tracker.Up{Progress: []tracker.Progress{{Lease: r.id, Bytes: r.bytes}}})
		}
	}
	return n, err
}

// patience watches over the download: it ends it when nobody reads, and helps
// itself from the origin when the swarm does not deliver.
func (d *download) patience(ctx context.Context) error {
	looks := tracker.Looks{Every: min(d.n.cfg.Patience/5, time.Second)}
	tick := time.NewTicker(looks.Every)
	defer tick.Stop()
	var morePeers time.Time
	var swarmBytes int64
	stuck := 0
	for {
		var reason string
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.starved:
			reason = helpStarved
		case <-tick.C:
			now := time.Now() // the tick's own time is when it was due
			if d.abandoned(now) && !d.blob.Complete() {
				return errAbandoned
			}
			if b := d.torrent().Stats().BytesFromPeers; b != swarmBytes {
				swarmBytes = b
				d.touch()
			}
			if now.Sub(morePeers) >= 5*time.Second && d.lonely() {
				morePeers = now
				d.out.Put(tracker.Up{MorePeers: true})
			}
			if !looks.Skip(now) {
				reason, _ = impatient(d.vitals(), d.n.cfg.Patience, now)
			}
		}
		if reason == "" || d.blob.Complete() {
			continue
		}
		d.n.met.fallbacks.WithLabelValues(reason).Inc()
		d.span.AddEvent("help from the registry: " + reason)
		d.log.Warn().Str("reason", reason).Dur("patience", d.n.cfg.Patience).
			Msg("the swarm does not deliver, fetching from the registry directly")
		moved, err := d.helpOut(ctx, swarmBytes)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case moved:
			stuck = 0
		case err != nil:
			// Neither the swarm nor the origin. One more round of patience,
			// then the client had better go elsewhere.
			if stuck++; stuck >= 2 || reason == helpStarved {
				return fmt.Errorf("no source for the rest of the blob (%s): %w", reason, err)
			}
			d.touch()
		}
	}
}

// helpOut fetches run after run until the swarm sends again, nothing is
// missing, or there is an error. moved says that something came.
func (d *download) helpOut(ctx context.Context, swarmBytes int64) (moved bool, err error) {
	for ctx.Err() == nil && d.torrent().Stats().BytesFromPeers == swarmBytes {
		more, err := d.help(ctx)
		if err != nil || !more {
			return moved, err
		}
		moved = true
	}
	return moved, ctx.Err()
}

// lonely says that the node is connected to few of the other pullers.
func (d *download) lonely() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tor != nil && tracker.Lonely(d.tor.Stats().Peers, d.beat.Pullers)
}

func (d *download) vitals() vitals {
	have := d.blob.Have()
	d.mu.Lock()
	defer d.mu.Unlock()
	v := d.vit
	v.leases = len(d.leases)
	for i := range have.Missing() {
		if _, known := d.blob.Sum(i); known {
			v.obtainable = true
			break
		}
	}
	return v
}

// help fetches the first run of missing pieces, at most helpRun bytes, from
// the origin, else from any node that holds the blob. moved is false when
// nothing was missing.
func (d *download) help(ctx context.Context) (moved bool, err error) {
	have := d.blob.Have()
	g := d.id.Geometry
	from, to := -1, 0
	for i := range have.Missing() {
		if from < 0 {
			from, to = i, i
		}
		if i != to || int64(to-from)*g.PieceLength >= helpRun {
			break
		}
		to++
	}
	if from < 0 {
		return false, nil
	}
	sources := []string{""}
	if _, nodes, err := d.n.holders(ctx, d.id.Digest); err == nil {
		sources = append(sources, first(nodes, 3)...)
	}
	for _, s := range sources {
		if s == d.n.self() {
			continue
		}
		serr := d.work(ctx, tracker.Lease{First: from, Count: to - from, Source: s})
		if errors.Is(serr, ErrNoRange) {
			serr = d.work(ctx, tracker.Lease{Source: s, Whole: true})
		}
		if serr == nil {
			return true, nil
		}
		err = errors.Join(err, serr)
	}
	return false, err
}

// fetchAll takes every missing piece from the origin, in order.
func (d *download) fetchAll(ctx context.Context, o Origin) error {
	body, err := o.Open(ctx, 0, d.id.Geometry.Size)
	if err != nil {
		return err
	}
	defer body.Close()
	return d.readPieces(&leaseReader{ReadCloser: body, d: d}, 0, d.id.Geometry.NumPieces())
}
