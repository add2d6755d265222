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
	// knownRepositories bounds the memory of what upstream said of
	// repositories, about 200 bytes each.
	knownRepositories = 2048
	// deniedFor is how long a refusal is believed without asking again: long
	// enough for all objects of one pull, short enough for somebody who is
	// waiting for credentials to take effect.
	deniedFor = 30 * time.Second
)

// standing is what is known of this node's right to pull from a repository.
type standing int

const (
	unknown   standing = iota
	granted            // upstream said yes within GrantTTL
	wasGiven           // its last word was yes, longer ago
	denied             // upstream said no within deniedFor
	wasDenied          // its last word was no, longer ago
)

// grants remembers upstream's last word on each repository.
type grants struct {
	ttl time.Duration
	mu  sync.Mutex
	c   *simplelru.LRU[Repository, verdict]
}

type verdict struct {
	allowed bool
	at      time.Time
}

func newGrants(ttl time.Duration) *grants {
	return &grants{ttl: ttl, c: newLRU[Repository, verdict](knownRepositories)}
}

func (g *grants) set(r Repository, allowed bool, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.c.Add(r, verdict{allowed, now})
}

func (g *grants) standing(r Repository, now time.Time) standing {
	g.mu.Lock()
	v, ok := g.c.Get(r)
	g.mu.Unlock()
	age := now.Sub(v.at)
	switch {
	case !ok:
		return unknown
	case v.allowed && age < g.ttl:
		return granted
	case v.allowed:
		return wasGiven
	case age < deniedFor:
		return denied
	default:
		return wasDenied
	}
}

// permit lets one request have one digest.
type permit struct {
	// offline: upstream was not able to say; what the cluster has already is
	// served.
	offline bool
	// origin: upstream may be asked for the content. Without it, peers only.
	origin bool
	// known is what the catalog has on the digest.
	known entry
}

// heard takes in what upstream said, for later requests.
func (m *Mirror) heard(q question, d swarm.Descriptor, err error) {
	switch {
	case err == nil:
		m.grants.set(q.repo, true, time.Now())
		m.catalog.add(q.repo, d.Digest, entry{size: d.Size, confirmed: true})
	case errors.Is(err, upstream.ErrDenied):
		m.grants.set(q.repo, false, time.Now())
	}
}

// authorise decides whether a digest of a repository is served: if upstream
// lets this node pull from the repository, and the digest belongs to it. A
// grant alone is not enough, or any public repository would open the private
// content of all others to those who know its digests.
func (m *Mirror) authorise(ctx context.Context, q question) (permit, error) {
	now := m.grants.standing(q.repo, time.Now())
	e, _ := m.catalog.get(q.repo, q.ref.digest)
	switch {
	case now == denied:
		return permit{}, fmt.Errorf("authorise %s: %w", q, upstream.ErrDenied)
	case now == granted && e.confirmed:
		return permit{origin: true, known: e}, nil
	}
	d, err := m.oracle.ask(ctx, q)
	if err == nil {
		if e, _ = m.catalog.get(q.repo, q.ref.digest); e.size <= 0 {
			e.size = d.Size
		}
		return permit{origin: true, known: e}, nil
	}
	return m.withoutAnswer(now, e, err)
}

// withoutAnswer decides what to do after upstream's no, or silence.
func (m *Mirror) withoutAnswer(last standing, e entry, err error) (permit, error) {
	switch {
	case !errors.Is(err, swarm.ErrUnavailable):
		return permit{}, err
	case last == wasDenied:
		// Upstream's last word stands; an outage opens nothing.
		return permit{}, fmt.Errorf("%w: %w", upstream.ErrDenied, err)
	}
	return permit{offline: true, origin: mayAsk(last, e), known: e}, nil
}

// mayAsk says whether a silent upstream may still be asked for content: if it
// has once shown that it gives this digest of this repository to this node.
func mayAsk(last standing, e entry) bool {
	return (last == granted || last == wasGiven) && e.confirmed
}

// explain tells "upstream does not have it" from "upstream was not asked".
func (p permit) explain(err error) error {
	if !p.origin && errors.Is(err, swarm.ErrNotFound) {
		return &unasked{err}
	}
	return err
}

// unasked hides that content was not found where not everybody was asked.
type unasked struct{ err error }

func (e *unasked) Error() string { return "no node has it: " + e.err.Error() }

// Is makes it an outage, not an absence: there is no Unwrap.
func (e *unasked) Is(target error) bool { return target == swarm.ErrUnavailable }
