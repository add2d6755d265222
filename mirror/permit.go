package mirror

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/shoal-dev/shoal/mirror/upstream"
	"github.com/shoal-dev/shoal/swarm"
)

const (
	// knownDecisions bounds the memory of what upstream said of callers and
	// repositories, about 300 bytes each. A token serves one pull, so that on
	// a busy node there are some more than images.
	knownDecisions = 4096
	// deniedFor is how long a refusal is believed without asking again: long
	// enough for all objects of one pull, short enough for somebody who is
	// waiting for credentials to take effect.
	deniedFor = 30 * time.Second
)

// standing is what is known of a caller's right to pull from a repository.
type standing int

const (
	unknown   standing = iota
	granted            // upstream said yes within GrantTTL
	wasGiven           // its last word was yes, longer ago, within OutageGrace
	denied             // upstream said no within deniedFor
	wasDenied          // its last word was no, longer ago
)

// grants remembers upstream's last word on each caller and repository.
type grants struct {
	ttl, grace time.Duration
	mu         sync.Mutex
	c          *simplelru.LRU[grantKey, verdict]
}

type grantKey struct {
	repo   Repository
	caller string // its id
}

// verdict is upstream's word.
type verdict struct {
	denial error // nil: the caller may pull
	at     time.Time
}

func newGrants(ttl, grace time.Duration) *grants {
	return &grants{ttl: ttl, grace: grace, c: newLRU[grantKey, verdict](knownDecisions)}
}

func (g *grants) set(k grantKey, denial error, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.c.Add(k, verdict{denial, at})
}

// standing returns upstream's denial with the standings that have one.
func (g *grants) standing(k grantKey, now time.Time) (standing, error) {
	g.mu.Lock()
	v, ok := g.c.Get(k)
	g.mu.Unlock()
	age := now.Sub(v.at)
	switch {
	case !ok:
		return unknown, nil
	case v.denial != nil && age < deniedFor:
		return denied, v.denial
	case v.denial != nil:
		return wasDenied, v.denial
	case age < g.ttl:
		return granted, nil
	case age < g.grace:
		return wasGiven, nil
	default:
		return unknown, nil
	}
}

func (q question) grantKey() grantKey { return grantKey{q.repo, q.who.id} }

// standing is the caller's.
func (m *Mirror) standing(q question) (standing, error) {
	if q.who.auth == AuthorizeNone {
		return granted, nil
	}
	return m.grants.standing(q.grantKey(), time.Now())
}

// permit lets one request have one digest.
type permit struct {
	// offline: upstream was not able to say.
	offline bool
	// known is what the catalog has on the digest.
	known entry
}

// heard takes in what upstream said, for later requests.
func (m *Mirror) heard(q question, d swarm.Descriptor, err error) {
	switch {
	case err == nil:
		m.grants.set(q.grantKey(), nil, time.Now())
		m.catalog.add(q.repo, d.Digest, entry{size: d.Size})
	case errors.Is(err, upstream.ErrDenied):
		m.grants.set(q.grantKey(), err, time.Now())
	}
}

// authorise decides whether a digest of a repository is served: if upstream
// lets the caller pull from the repository, and the digest belongs to it. A
// grant alone is not enough, or any public repository would open the private
// content of all others to those who know its digests.
func (m *Mirror) authorise(ctx context.Context, q question) (permit, error) {
	last, denial := m.standing(q)
	e, belongs := m.catalog.get(q.repo, q.ref.digest)
	switch {
	case last == denied:
		return permit{}, fmt.Errorf("authorise %s: %w", q, denial)
	case last == granted && belongs:
		return permit{known: e}, nil
	}
	d, err := m.oracle.ask(ctx, q)
	if err == nil {
		if e, _ = m.catalog.get(q.repo, q.ref.digest); e.size <= 0 {
			e.size = d.Size
		}
		return permit{known: e}, nil
	}
	if err := m.withoutAnswer(last, denial, err); err != nil {
		return permit{}, err
	}
	switch {
	case belongs && last != unknown:
		return permit{offline: true, known: e}, nil
	case q.kind == kindManifest && q.who.id == "" && m.shared(ctx, q):
		e, _ = m.catalog.get(q.repo, q.ref.digest)
		return permit{offline: true, known: e}, nil
	}
	return permit{}, err
}

// withoutAnswer says why nothing can be served after upstream's no or, for
// want of an answer, its last word; nil leaves it to what else is known.
func (m *Mirror) withoutAnswer(last standing, denial, err error) error {
	switch {
	case !errors.Is(err, swarm.ErrUnavailable), m.cfg.Outage == OutageDeny:
		return err
	case last == wasDenied:
		// An outage opens nothing.
		return fmt.Errorf("%w, and no answer since: %w", denial, err)
	}
	return nil
}

// memory is the cluster's name for the fact that upstream gave a digest to callers
// without credentials.
func (q question) memory() string { return q.who.space + q.repo.String() + "@" + q.ref.digest.String() }

// share tells the cluster that upstream gave d to a caller without credentials. That
// is of use in an outage only, so that nothing depends on it.
func (m *Mirror) share(ctx context.Context, q question, d swarm.Descriptor) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	_, _, _ = m.cfg.Swarm.Resolve(ctx, q.memory(), func(context.Context) (swarm.Descriptor, error) { return d, nil })
}

// shared asks the cluster, when upstream does not answer, whether it gave this digest
// to another node's caller without credentials: what anybody may have can be had in an
// outage on a node that has never asked for it.
func (m *Mirror) shared(ctx context.Context, q question) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	d, last, err := m.cfg.Swarm.Recall(ctx, q.memory())
	if err != nil || d.Digest != q.ref.digest || time.Since(last) > m.cfg.OutageGrace {
		return false
	}
	m.inherit(q, d, last)
	return true
}

// inherit takes in a yes that upstream gave to another node of the cluster, at a time
// that is not known exactly, if it is zero: it counts as old. A yes does not become
// younger on its way through the cluster, and ends everywhere at the same time.
func (m *Mirror) inherit(q question, d swarm.Descriptor, at time.Time) {
	if old := time.Now().Add(-m.cfg.GrantTTL); at.IsZero() || at.After(old) {
		at = old
	}
	if last, _ := m.standing(q); last == unknown {
		m.grants.set(q.grantKey(), nil, at)
	}
	m.catalog.add(q.repo, d.Digest, entry{size: d.Size})
}
