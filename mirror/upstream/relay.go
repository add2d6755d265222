package upstream

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// relayed are the parameters of a challenge that clients need: RFC 6750 and the
// token specification of the distribution project. Others are dropped.
var relayed = []string{"realm", "service", "scope", "error"}

// challenged adds to a refusal the challenges that a client may be given.
func (c *Client) challenged(ctx context.Context, k task, err error, cs []challenge) error {
	var e *Error
	if !errors.As(err, &e) || !errors.Is(e.kind, ErrDenied) {
		return err
	}
	for _, demand := range cs {
		text, err := c.relay(ctx, k.repo, demand)
		if err != nil {
			c.cfg.Log.Warn().Err(err).Str("registry", k.repo.Registry).Str("scheme", demand.scheme).
				Msg("challenge of the registry is not passed on")
			continue
		}
		e.Challenges = append(e.Challenges, text)
	}
	return err
}

// relay writes a challenge for a client, who will send its password to the
// realm of a Bearer challenge, and to where it has the challenge from for a
// Basic one.
func (c *Client) relay(ctx context.Context, repo Repository, demand challenge) (string, error) {
	params := maps.Clone(demand.params)
	var text strings.Builder
	switch demand.scheme {
	case "bearer":
		registry := c.Endpoint(repo.Registry)
		realm, err := c.realm(registry, params["realm"])
		if err != nil {
			return "", err
		}
		if !strings.EqualFold(realm.Host, registry.Host) {
			if err := c.net.vet(ctx, realm); err != nil {
				return "", fmt.Errorf("realm %s: %w", quote(realm.Host), err)
			}
		}
		params["realm"] = realm.String() // what was checked is what is sent
		text.WriteString("Bearer")
	case "basic":
		text.WriteString("Basic")
	default:
		return "", errors.New("scheme that no client of a registry knows")
	}
	separator := " "
	for _, name := range relayed {
		value := params[name]
		if value == "" {
			continue
		}
		if !quotable(value) {
			return "", fmt.Errorf("%s with characters that have no place there", name)
		}
		text.WriteString(separator + name + `="` + value + `"`)
		separator = ","
	}
	return text.String(), nil
}

// quotable says whether a value can stand between quotes as it is.
func quotable(value string) bool {
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// vet refuses a URL that would lead a client on this node to an address that
// only this node can reach, unless the operator named the host. Names are
// resolved; the client will do so again, so this stops a realm that aims
// there, not a name server that changes its mind in between.
func (n *network) vet(ctx context.Context, u *url.URL) error {
	host := strings.ToLower(u.Host)
	if n.named[host] || n.own[host] != nil {
		return nil
	}
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		if !publicEnough(addr) {
			return errAddress
		}
		return nil
	}
	if n.proxy != nil {
		if p, err := n.proxy(&http.Request{Method: http.MethodGet, URL: u}); err == nil && p != nil {
			return nil // the name need not mean anything here
		}
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return fmt.Errorf("resolve: %w", err)
	}
	for _, a := range addrs {
		if !publicEnough(a) {
			return errAddress
		}
	}
	return nil
}
