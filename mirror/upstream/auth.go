package upstream

import (
	"context"
	"encoding/base64"
	"errors"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

const (
	// maxGrants bounds the memory of authorizations, one per repository.
	maxGrants = 1024
	// basicLife is how long credentials for Basic are used before they are
	// looked up again, so that a changed file is noticed and a credential
	// helper is not run for each request.
	basicLife = 5 * time.Minute
	// defaultTokenLife holds where a token service does not say: the token
	// specification of the distribution project.
	defaultTokenLife = time.Minute
	// maxTokenLife bounds what a token service may claim.
	maxTokenLife = 24 * time.Hour
)

// authorizer knows in whose name requests are sent.
type authorizer interface {
	// known returns the header to send before any challenge, or "".
	known(ctx context.Context, repo Repository) (string, error)
	// answer returns the header that answers the registry's challenges, after
	// the registry refused the header used. It returns "" when there is
	// nothing to answer with.
	answer(ctx context.Context, repo Repository, cs []challenge, used string) (string, error)
	// forget drops a header that the registry refused although it was fresh.
	forget(repo Repository, used string)
}

// forwarded is the authorizer of somebody else's header, which goes to one
// registry as it is.
type forwarded struct{ registry, header string }

func (f forwarded) known(_ context.Context, repo Repository) (string, error) {
	if repo.Registry != f.registry {
		return "", nil
	}
	return f.header, nil
}

func (forwarded) answer(context.Context, Repository, []challenge, string) (string, error) {
	return "", nil
}

func (forwarded) forget(Repository, string) {}

// String keeps the header out of any text.
func (forwarded) String() string { return "authorization (redacted)" }

// GoString keeps %#v from showing it.
func (f forwarded) GoString() string { return f.String() }

// tokens is the authorizer of this node: it answers challenges with what a
// credentialSource has for the registry, or as nobody in particular. What it
// knows of one repository is never used for another.
type tokens struct {
	c *Client
	// creds may be nil: anonymous.
	creds credentialSource

	mu     sync.Mutex
	grants *lru.Cache[Repository, *grant]
}

// grant is the authorization for one repository.
type grant struct {
	// lock is a mutex that can be waited for under a context. Held while a
	// token is fetched, so that a crowd fetches one.
	lock chan struct{}
	// header is the Authorization header; empty before the first challenge.
	header string
	// renewAt is when a new one is due, and end when this one is dead.
	renewAt, end time.Time
	// demand is the challenge that it answers.
	demand challenge
}

func newTokens(c *Client, creds credentialSource) *tokens {
	grants, err := lru.New[Repository, *grant](maxGrants)
	if err != nil {
		panic(err) // only for a size below one
	}
	return &tokens{c: c, creds: creds, grants: grants}
}

func (a *tokens) grant(repo Repository) *grant {
	a.mu.Lock()
	defer a.mu.Unlock()
	g, ok := a.grants.Get(repo)
	if !ok {
		g = &grant{lock: make(chan struct{}, 1)}
		a.grants.Add(repo, g)
	}
	return g
}

// hold locks g, unless ctx ends first.
func (g *grant) hold(ctx context.Context) error {
	select {
	case g.lock <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *grant) release() { <-g.lock }

// known renews the header when it is about to expire.
func (a *tokens) known(ctx context.Context, repo Repository) (string, error) {
	g := a.grant(repo)
	if err := g.hold(ctx); err != nil {
		return "", authTask(repo).broken(ctx, err)
	}
	defer g.release()
	now := a.c.cfg.Now()
	if g.header == "" || now.Before(g.renewAt) {
		return g.header, nil
	}
	if err := a.renew(ctx, repo, g); err != nil {
		if now.Before(g.end) && ctx.Err() == nil {
			return g.header, nil // it still holds; the next request tries again
		}
		g.header = ""
		return "", err
	}
	return g.header, nil
}

func (a *tokens) answer(ctx context.Context, repo Repository, cs []challenge, used string) (string, error) {
	g := a.grant(repo)
	if err := g.hold(ctx); err != nil {
		return "", authTask(repo).broken(ctx, err)
	}
	defer g.release()
	if g.header != used && g.header != "" && a.c.cfg.Now().Before(g.end) {
		return g.header, nil // another request has answered meanwhile
	}
	g.header = ""
	demand, ok := find(cs, "bearer")
	if !ok {
		if demand, ok = find(cs, "basic"); !ok {
			return "", nil
		}
	}
	g.demand = demand
	if err := a.renew(ctx, repo, g); err != nil {
		return "", err
	}
	return g.header, nil
}

func (a *tokens) forget(repo Repository, used string) {
	g := a.grant(repo)
	select {
	case g.lock <- struct{}{}:
		defer g.release()
		if g.header == used {
			g.header = ""
		}
	default: // someone is at it
	}
}

// renew answers g.demand anew. The caller holds g.
func (a *tokens) renew(ctx context.Context, repo Repository, g *grant) error {
	cred, err := a.credential(ctx, repo)
	if err != nil {
		return authTask(repo).broken(ctx, err)
	}
	life := basicLife
	switch {
	case cred.registryToken != "":
		g.header = "Bearer " + cred.registryToken
	case g.demand.scheme == "basic":
		if cred.username == "" && cred.password == "" {
			g.header = ""
			return nil
		}
		g.header = cred.basic()
	default:
		var token string
		if token, life, err = a.c.token(ctx, repo, g.demand, cred); err != nil {
			return err
		}
		g.header = "Bearer " + token
	}
	now := a.c.cfg.Now()
	g.end = now.Add(life)
	g.renewAt = now.Add(renewAfter(life))
	return nil
}

// renewAfter leaves a fifth of a token's life, at most a minute, for requests
// on their way and for clocks that differ.
func renewAfter(life time.Duration) time.Duration { return life - min(life/5, time.Minute) }

// credential looks this node's credentials up. Those that cannot be had are
// logged and done without: most images are public.
func (a *tokens) credential(ctx context.Context, repo Repository) (credential, error) {
	if a.creds == nil {
		return credential{}, nil
	}
	cred, err := a.creds.lookup(ctx, repo)
	if err != nil {
		if ctx.Err() != nil {
			return credential{}, ctx.Err()
		}
		a.c.cfg.Log.Warn().Err(err).Str("registry", repo.Registry).Msg("credentials cannot be read, going on without")
		return credential{}, nil
	}
	return cred, nil
}

// credential is what this node may show to one registry. It formats as
// nothing, should it ever get into a log.
type credential struct {
	username, password string
	// identityToken is exchanged for access tokens (OAuth2 refresh token).
	identityToken string
	// registryToken is sent as it is.
	registryToken string
}

func (credential) String() string { return "credential (redacted)" }

// GoString keeps %#v from showing the fields.
func (c credential) GoString() string { return c.String() }

func (c credential) basic() string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.username+":"+c.password))
}

// usable refuses what cannot stand in a header.
func (c credential) usable() error {
	for _, s := range []string{c.registryToken, c.identityToken} {
		if s != "" && !validToken(s) {
			return errors.New("token with characters that no token has")
		}
	}
	return nil
}

// maxToken bounds tokens, in bytes: those of large clouds take up to 4 KiB,
// and servers commonly refuse headers beyond 16 KiB.
const maxToken = 16 << 10

// validToken accepts printable ASCII without blanks, which is more than
// RFC 6750 allows and safe in a header.
func validToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// credentialSource looks credentials up; the zero credential means that there
// are none.
type credentialSource interface {
	lookup(ctx context.Context, repo Repository) (credential, error)
}

// authTask is the task of getting an authorization.
func authTask(repo Repository) task {
	return task{op: "authorize pull of", repo: repo, token: true}
}
