package mirror

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/shoal-dev/shoal/mirror/upstream"
)

// Authorization says whose right to pull counts for a registry.
type Authorization string

// The kinds of authorization; see "Who may have what".
const (
	// AuthorizeUpstream asks upstream about each caller, by the credential
	// that it brings, or by none.
	AuthorizeUpstream Authorization = "upstream"
	// AuthorizeNode lets every caller have what this node may have.
	AuthorizeNode Authorization = "node"
	// AuthorizeNone lets every caller have whatever belongs to the repository.
	AuthorizeNone Authorization = "none"
)

// Outage says what is served while a registry does not answer.
type Outage string

// The policies for outages.
const (
	// OutageAllowRecent serves whom the registry let in within
	// Config.OutageGrace.
	OutageAllowRecent Outage = "allow-recent"
	// OutageDeny serves nothing that a decision within Config.GrantTTL does
	// not cover.
	OutageDeny Outage = "deny"
)

// caller is in whose name upstream is asked.
type caller struct {
	// id tells callers with credentials apart without telling anything about
	// the credential; empty for all others.
	id string
	// space is the part of the cluster's memory of tags that the caller's
	// answers belong to: what somebody may pull says nothing of what anybody
	// may.
	space string
	auth  Authorization
	// up shows the caller's credential to upstream. Nothing else holds it.
	up Upstream
}

// callers tells who asks.
type callers struct {
	up        Upstreams
	node      caller
	free      caller // of AuthorizeNone
	anonymous caller
	rules     *rules
	// key of the hash that ids are made by. It lives as long as the process,
	// so that an id that gets out is of no use for guessing a credential.
	key [32]byte
}

func newCallers(up Upstreams, modes map[string]Authorization) (*callers, error) {
	r, err := newRules(modes)
	if err != nil {
		return nil, err
	}
	c := &callers{
		up: up, rules: r,
		node:      caller{space: "node ", auth: AuthorizeNode, up: up.Node()},
		free:      caller{space: "node ", auth: AuthorizeNone, up: up.Node()},
		anonymous: caller{auth: AuthorizeUpstream, up: up.Anonymous()},
	}
	_, _ = rand.Read(c.key[:]) // never fails
	return c, nil
}

// identify tells who asks for something of a repository, by the Authorization
// headers of the request.
func (c *callers) identify(repo Repository, headers []string) (caller, error) {
	header, err := parseAuthorization(headers)
	if err != nil {
		return caller{}, &miss{reason: reasonCredentials, message: "unusable credentials", cause: err}
	}
	switch auth := c.rules.of(repo.Registry); {
	case auth == AuthorizeUpstream && header == "":
		return c.anonymous, nil
	case auth == AuthorizeUpstream:
		return caller{
			id: c.id(repo, header), space: "private ", auth: auth,
			up: c.up.As(repo.Registry, header),
		}, nil
	case header != "":
		return caller{}, &miss{reason: reasonCredentials, message: "requests with credentials are left to this registry"}
	case auth == AuthorizeNone:
		return c.free, nil
	default:
		return c.node, nil
	}
}

// id is of one credential for one repository. Neither registries and names nor
// what parseAuthorization accepts contain a zero byte.
func (c *callers) id(repo Repository, header string) string {
	h := hmac.New(sha256.New, c.key[:])
	_, _ = h.Write([]byte(repo.Registry + "\x00" + repo.Name + "\x00" + header)) // never fails
	return hex.EncodeToString(h.Sum(nil))
}

// rules says how callers are authorised at each registry.
type rules struct {
	exact map[string]Authorization
	globs []string // the longest first
	modes map[string]Authorization
}

func newRules(modes map[string]Authorization) (*rules, error) {
	r := &rules{exact: map[string]Authorization{}, modes: map[string]Authorization{}}
	for _, pattern := range slices.Sorted(maps.Keys(modes)) {
		auth := modes[pattern]
		switch auth {
		case AuthorizeUpstream, AuthorizeNode, AuthorizeNone:
		default:
			return nil, fmt.Errorf("authorization of %s: %q: want %s, %s or %s", pattern, auth, AuthorizeUpstream, AuthorizeNode, AuthorizeNone)
		}
		if host, err := parseRegistry(pattern); err == nil {
			r.exact[host] = auth
			continue
		}
		pattern = strings.ToLower(pattern)
		if _, err := path.Match(pattern, ""); err != nil || !strings.ContainsAny(pattern, "*?[") {
			return nil, fmt.Errorf("authorization of %q: want host[:port] or a pattern with *", pattern)
		}
		r.modes[pattern] = auth
		r.globs = append(r.globs, pattern)
	}
	slices.SortStableFunc(r.globs, func(a, b string) int { return len(b) - len(a) })
	return r, nil
}

// of is what holds for a registry: its own rule, else that of the longest
// pattern, else AuthorizeUpstream.
func (r *rules) of(registry string) Authorization {
	if auth, ok := r.exact[registry]; ok {
		return auth
	}
	for _, g := range r.globs {
		if ok, _ := path.Match(g, registry); ok { // the pattern was checked
			return r.modes[g]
		}
	}
	return AuthorizeUpstream
}

// Upstreams is the registries, in the name of one or another; see FromClient.
// Its methods do not ask anything yet.
type Upstreams interface {
	// Node shows the credentials of this node.
	Node() Upstream
	// Anonymous shows none: it gets what everybody gets.
	Anonymous() Upstream
	// As shows an Authorization header to one registry.
	As(registry, authorization string) Upstream
}

// FromClient makes Upstreams of the client.
func FromClient(c *upstream.Client) Upstreams { return clients{c} }

type clients struct{ c *upstream.Client }

func (c clients) Node() Upstream      { return client{c.c} }
func (c clients) Anonymous() Upstream { return client{c.c.Anonymous()} }
func (c clients) As(registry, authorization string) Upstream {
	return client{c.c.As(registry, authorization)}
}
