package swarm

import (
	"context"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm/members"
	"github.com/shoal-dev/shoal/swarm/tracker"
)

const (
	// announceDelay collects changes into one batch per tracker. A pull of a
	// many-layered image finishes layers faster than that.
	announceDelay = 200 * time.Millisecond
	// refreshEvery re-announces everything, a third of what trackers
	// remember, so that two lost announcements do no harm.
	refreshEvery = tracker.InventoryTTL / 3
	// dropAfter is how long containerd must have had a blob that it keeps before
	// the piece store lets go of it. Where containerd discards layers once they
	// are unpacked, the piece store's copy is the only one left to share.
	dropAfter = 15 * time.Second
	// announceTo is how many of a digest's ranked members hear of it: the
	// tracker and its standby.
	announceTo = 2
)

// inventory keeps what this node holds and tells each digest's tracker and
// standby about it: on change, when their rank changes, and on a slow refresh.
type inventory struct {
	n    *Node
	wake chan struct{}

	mu   sync.Mutex
	held map[digest.Digest]*holding
	// gone are digests whose withdrawal is still to be sent, with the nodes
	// that were told of them.
	gone map[digest.Digest][]string
}

type holding struct {
	size          int64
	store, local  bool
	localSince    time.Time
	told          []string // the nodes that know
	toldAt        time.Time
	refreshJitter time.Duration
}

func newInventory(n *Node) *inventory {
	return &inventory{n: n, wake: make(chan struct{}, 1), held: map[digest.Digest]*holding{}, gone: map[digest.Digest][]string{}}
}

func (v *inventory) local(h Held, present bool) {
	v.update(h, func(x *holding) {
		if present && !x.local {
			x.localSince = time.Now()
		}
		x.local = present
	})
}

func (v *inventory) stored(h Held, present bool) {
	v.update(h, func(x *holding) { x.store = present })
}

func (v *inventory) update(h Held, change func(*holding)) {
	v.mu.Lock()
	x := v.held[h.Digest]
	if x == nil {
		x = &holding{told: v.gone[h.Digest]}
		delete(v.gone, h.Digest)
	}
	if h.Size > 0 {
		x.size = h.Size
	}
	change(x)
	if x.store || x.local {
		v.held[h.Digest] = x
	} else {
		delete(v.held, h.Digest)
		if len(x.told) > 0 {
			v.gone[h.Digest] = x.told
		}
	}
	v.n.met.held.Set(float64(len(v.held)))
	v.mu.Unlock()
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

func (v *inventory) run(ctx context.Context) error {
	refresh := time.NewTicker(refreshEvery / 10)
	defer refresh.Stop()
	drop := time.NewTicker(dropAfter / 3)
	defer drop.Stop()
	retry := time.Duration(0)
	for {
		changed := v.n.cfg.Members.Changed()
		var again <-chan time.Time
		if !v.flush(ctx) {
			retry = min(max(2*retry, 500*time.Millisecond), 30*time.Second)
			again = time.After(retry + rand.N(retry))
		} else {
			retry = 0
		}
		for due := false; !due; {
			select {
			case <-ctx.Done():
				return nil
			case <-v.wake:
				due = true
			case <-changed:
				due = true
			case <-refresh.C:
				due = true
			case <-again:
				due = true
			case now := <-drop.C:
				for _, d := range v.doubles(now) {
					v.n.cfg.Store.Drop(d)
				}
			}
		}
		select {
		case <-time.After(announceDelay):
		case <-ctx.Done():
			return nil
		}
	}
}

// doubles lists the blobs of the piece store that the local content has had for
// long enough, and keeps.
func (v *inventory) doubles(now time.Time) []digest.Digest {
	if v.n.cfg.Local == nil {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var ds []digest.Digest
	for d, x := range v.held {
		if x.store && x.local && now.Sub(x.localSince) >= dropAfter && v.n.cfg.Local.Keeps(d) {
			ds = append(ds, d)
		}
	}
	return ds
}

// batch is what one member has to be told.
type batch struct {
	m       members.Member
	added   []tracker.Item
	removed []digest.Digest
}

// flush tells every member what it does not know yet; false if one could not
// be told.
func (v *inventory) flush(ctx context.Context) bool {
	now := time.Now()
	live := v.n.cfg.Members.Live()
	byID := make(map[string]members.Member, len(live))
	for _, m := range live {
		byID[m.ID] = m
	}
	batches := map[string]*batch{}
	get := func(id string) *batch {
		b := batches[id]
		if b == nil {
			b = &batch{m: byID[id]}
			batches[id] = b
		}
		return b
	}
	v.mu.Lock()
	for d, x := range v.held {
		stale := now.Sub(x.toldAt) > refreshEvery+x.refreshJitter
		for _, m := range members.Top(d.String(), announceTo, live) {
			if stale || !slices.Contains(x.told, m.ID) {
				b := get(m.ID)
				b.added = append(b.added, tracker.Item{Digest: d, Size: x.size})
			}
		}
	}
	for d, told := range v.gone {
		for _, id := range told {
			if _, ok := byID[id]; ok {
				b := get(id)
				b.removed = append(b.removed, d)
			}
		}
	}
	v.gone = map[digest.Digest][]string{}
	v.mu.Unlock()

	ok := true
	for id, b := range batches {
		for len(b.added)+len(b.removed) > 0 {
			a := announcement{Added: first(b.added, maxBatch), Removed: first(b.removed, maxBatch)}
			b.added, b.removed = b.added[len(a.Added):], b.removed[len(a.Removed):]
			if err := v.send(ctx, b.m, a); err != nil {
				v.n.cfg.Log.Debug().Str("node", id).Err(err).Msg("announcement not delivered, will be sent again")
				ok = false
				v.undo(id, append(a.Removed, b.removed...))
				break
			}
			v.done(id, a, now)
		}
	}
	v.forgetDead(byID)
	return ok
}

func (v *inventory) send(ctx context.Context, m members.Member, a announcement) error {
	if m.ID == v.n.self() {
		v.n.tracker.Announce(m.ID, a.Added, a.Removed)
		return nil
	}
	return v.n.peers.call(ctx, m, http.MethodPost, pathAnnounce, a, nil)
}

func (v *inventory) done(id string, a announcement, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, i := range a.Added {
		x := v.held[i.Digest]
		if x == nil { // withdrawn meanwhile
			v.gone[i.Digest] = append(v.gone[i.Digest], id)
			continue
		}
		if !slices.Contains(x.told, id) {
			x.told = append(x.told, id)
		}
		x.toldAt, x.refreshJitter = now, rand.N(refreshEvery/5)
	}
}

// undo notes withdrawals that could not be sent.
func (v *inventory) undo(id string, removed []digest.Digest) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, d := range removed {
		if v.held[d] == nil {
			v.gone[d] = append(v.gone[d], id)
		}
	}
}

// forgetDead drops the nodes that left from what they were told, so that one
// that comes back, empty, is told again.
func (v *inventory) forgetDead(live map[string]members.Member) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, x := range v.held {
		kept := x.told[:0]
		for _, id := range x.told {
			if _, ok := live[id]; ok {
				kept = append(kept, id)
			}
		}
		x.told = kept
	}
	maps.DeleteFunc(v.gone, func(_ digest.Digest, told []string) bool {
		for _, id := range told {
			if _, ok := live[id]; ok {
				return false
			}
		}
		return true
	})
}
