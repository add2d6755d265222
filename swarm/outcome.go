package swarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

// failed says that the download is over without the blob.
func (d *download) failed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err != nil
}

// finish settles the outcome for everybody who waits; only the first call
// counts.
func (d *download) finish(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-d.whole:
		return
	default:
	}
	d.err = err
	d.origin = nil // somebody's credentials, of no use any more
	close(d.whole)
	d.endSpan(err)
	switch {
	case err == nil:
		d.n.met.whole.WithLabelValues("whole").Inc()
	case errors.Is(err, errAbandoned):
		d.n.met.whole.WithLabelValues("abandoned").Inc()
	default:
		d.n.met.whole.WithLabelValues("failed").Inc()
		d.log.Warn().Err(err).Msg("download failed, containerd goes to the upstream")
	}
	if err != nil {
		d.blob.Fail(err)
	}
}

// reportDoubts names the sums that the verified blob has proved wrong.
func (d *download) reportDoubts() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var up tracker.Up
	for i, s := range d.doubted {
		if s.By == "" || s.By == d.n.self() {
			continue
		}
		up.Disputes = append(up.Disputes, tracker.Dispute{Index: i, By: s.By})
		d.n.met.corrupt.WithLabelValues(corruptPiece).Inc()
		d.log.Warn().Int("piece", i).Str("voucher", s.By).Msg("a node vouched for a wrong piece digest")
		d.n.addSuspect(s.By)
	}
	if !up.Empty() {
		d.out.Put(up)
	}
}

// refetch deals with a blob whose pieces were right by their published sums
// and wrong as a whole: some node vouched for wrong bytes. Everything is
// thrown away and taken from the origin alone, which also shows who lied.
func (d *download) refetch(wrong *chunker.DigestError) error {
	n := d.id.Geometry.NumPieces()
	old := make([]chunker.Sum, n)
	for i := range n {
		old[i], _ = d.blob.Sum(i)
	}
	d.mu.Lock()
	vouchers, origin := maps.Clone(d.vouchers), d.origin
	d.mu.Unlock()
	names := map[string]bool{}
	for _, by := range vouchers {
		names[by] = true
	}
	d.n.met.corrupt.WithLabelValues(corruptBlob).Inc()
	d.log.Error().Err(wrong).Strs("vouchers", sortedKeys(names)).
		Msg("blob does not match its digest: discarded, nothing of its end was delivered; fetching it from the registry alone")
	d.blob.Discard()
	if origin == nil {
		return fmt.Errorf("refetch: no origin: %w", wrong)
	}
	verified := make(chan error, 1)
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	go func() { verified <- d.blob.VerifyWhole(ctx) }()
	if err := d.fetchAll(ctx, origin); err != nil {
		cancel()
		_ = <-verified
		return fmt.Errorf("refetch from the registry: %w", err)
	}
	if err := <-verified; err != nil {
		d.blob.Discard()
		return fmt.Errorf("the registry itself sent wrong bytes: %w", err)
	}
	for i := range n {
		by := vouchers[i]
		switch s, _ := d.blob.Sum(i); {
		case s == old[i] || d.n.suspect(by):
		case by == "" || by == d.n.self():
			d.log.Error().Int("piece", i).
				Msg("the registry sent wrong bytes once, or this node's disk or memory is bad")
		default:
			d.log.Error().Int("piece", i).Str("voucher", by).Dur("for", suspectFor).
				Msg("this node vouched for wrong bytes, and is not believed for a while: check its disk and memory")
			d.n.addSuspect(by)
		}
	}
	return nil
}

func sortedKeys(m map[string]bool) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (d *download) take(o Origin) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refs++
	select {
	case <-d.whole:
	default:
		if o != nil {
			// The newest caller's credentials are the likeliest to be valid.
			d.origin = o
			close(d.renewed)
			d.renewed = make(chan struct{})
		}
	}
}

// give returns a hold; the last one, which is not run's unless nobody reads
// any more, lets go of the blob.
func (d *download) give() {
	d.n.mu.Lock()
	defer d.n.mu.Unlock()
	d.mu.Lock()
	d.refs--
	if d.refs == 1 {
		d.idleFrom = time.Now()
	}
	last := d.refs == 0
	d.mu.Unlock()
	if last {
		d.blob.Release()
		delete(d.n.downloads, d.id.Digest)
		d.n.met.downloads.Set(float64(len(d.n.downloads)))
		close(d.gone)
	}
}

// abandoned says that nobody has read for Linger.
func (d *download) abandoned(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.refs == 1 && !d.idleFrom.IsZero() && now.Sub(d.idleFrom) >= d.n.cfg.Linger
}

// handle is one caller's hold on a download.
type handle struct {
	d    *download
	once sync.Once
}

// localDownload is a blob that was here all the time.
type localDownload struct{ r Reader }

func (h *handle) NewReader(ctx context.Context, off, n int64) io.ReadCloser {
	return h.d.blob.NewReader(ctx, off, n, false)
}

func (h *handle) Wait(ctx context.Context) error {
	select {
	case <-h.d.whole:
		h.d.mu.Lock()
		defer h.d.mu.Unlock()
		return h.d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *handle) Stats() Stats {
	return Stats{Origin: h.d.fromOrigin.Load(), Peers: h.d.fromLease.Load() + h.d.fromSwarm.Load()}
}

func (h *handle) Close() { h.once.Do(h.d.give) }

func (l localDownload) NewReader(_ context.Context, off, n int64) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(l.r, off, n))
}

func (l localDownload) Wait(context.Context) error { return nil }

func (l localDownload) Stats() Stats { return Stats{Local: l.r.Size()} }

func (l localDownload) Close() { _ = l.r.Close() }
