package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/swarm"
)

const (
	// maxHeader bounds the header of a response, in bytes. Signed redirects
	// and challenges take a few KiB.
	maxHeader = 64 << 10
	// maxRedirects bounds a chain. Registries that front others
	// (registry.k8s.io) need two, with an object store behind; containerd
	// allows ten.
	maxRedirects = 5
	// maxURL bounds the target of a redirect, in bytes; signed URLs of the
	// large clouds take about 2 KiB.
	maxURL = 8 << 10
	// idleConnLife is below the 60 s after which common load balancers drop
	// idle connections, so that we do so first.
	idleConnLife = 55 * time.Second
)

// errAddress is the refusal to dial an address that only this node can reach.
var errAddress = errors.New("address is not public, and the host is not named as local")

// network chooses the transport of each request by its host.
type network struct {
	override http.RoundTripper
	proxy    func(*http.Request) (*url.URL, error)
	// named are the hosts that may have any address.
	named map[string]bool
	// own are the transports of hosts with their own authorities.
	own map[string]*http.Transport
	// open dials any address, guarded only those that checkAddress allows.
	open, guarded *http.Transport
}

func newNetwork(c Config) (*network, error) {
	var hosts []string
	hosts = append(hosts, c.Insecure...)
	hosts = append(hosts, c.Local...)
	named, err := hostSet(hosts)
	if err != nil {
		return nil, err
	}
	pools, err := loadCAs(c.CAs, c.RootCAs)
	if err != nil {
		return nil, err
	}
	n := &network{
		override: c.Transport, proxy: c.Proxy, named: named, own: map[string]*http.Transport{},
		open: newTransport(c, c.RootCAs, nil), guarded: newTransport(c, c.RootCAs, checkAddress),
	}
	for host, pool := range pools {
		n.own[host] = newTransport(c, pool, nil)
	}
	return n, nil
}

func newTransport(c Config, roots *x509.CertPool, control func(network, address string, _ syscall.RawConn) error) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	// Dialer.Control runs after name resolution, for each address tried, so
	// what is checked is what is dialled.
	dialer := &net.Dialer{Timeout: c.Timeouts.Connect, Control: control}
	return &http.Transport{
		Proxy:                  c.Proxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    c.Timeouts.Connect,
		Protocols:              &protocols,
		DisableCompression:     true, // ranges and digests are of the stored bytes
		MaxIdleConnsPerHost:    c.Connections,
		IdleConnTimeout:        idleConnLife,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// checkAddress is the net.Dialer.Control of hosts that were not named.
func checkAddress(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s: %w", address, errAddress)
	}
	if !publicEnough(ap.Addr()) {
		return fmt.Errorf("dial %s: %w", ap.Addr(), errAddress)
	}
	return nil
}

// publicEnough refuses addresses at which no registry or object store lives
// that other nodes could reach: see "Trust" in the package documentation.
func publicEnough(a netip.Addr) bool {
	a = a.Unmap()
	return a.IsGlobalUnicast() && a != awsMetadata6
}

// awsMetadata6 is the instance metadata service of AWS over IPv6, a unique
// local address; over IPv4, as with other clouds, it is link-local.
var awsMetadata6 = netip.MustParseAddr("fd00:ec2::254")

// roundTripper returns the transport for a request.
func (n *network) roundTripper(req *http.Request) http.RoundTripper {
	host := strings.ToLower(req.URL.Host)
	if n.override != nil {
		return n.override
	}
	if t := n.own[host]; t != nil {
		return t
	}
	if n.named[host] {
		return n.open
	}
	if n.proxy != nil {
		// The connection would be to the proxy, which may well be local. An
		// error comes up again in the transport.
		if u, err := n.proxy(req); err != nil || u != nil {
			return n.open
		}
	}
	return n.guarded
}

func (n *network) closeIdle() {
	n.open.CloseIdleConnections()
	n.guarded.CloseIdleConnections()
	for _, t := range n.own {
		t.CloseIdleConnections()
	}
}

// request is one GET or HEAD, with what redirects follow.
type request struct {
	method string
	url    *url.URL
	header http.Header
	// authorization goes to the server of url only; may be empty.
	authorization string
}

// follow sends a request and follows redirects. It returns the response,
// whatever its status, and the URL that it came from. The caller closes the
// body.
func (c *Client) follow(ctx context.Context, k task, r request) (*http.Response, *url.URL, error) {
	u, authorization := r.url, r.authorization
	for hop := 0; ; hop++ {
		req := (&http.Request{
			Method: r.method, URL: u, Host: u.Host, Header: r.header.Clone(),
			Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		}).WithContext(ctx)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := c.roundTrip(k, req)
		if err != nil {
			return nil, nil, k.broken(ctx, err)
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther,
			http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, u, nil
		}
		drop(resp)
		if hop == maxRedirects {
			return nil, nil, k.invalid("more than %d redirects", maxRedirects)
		}
		next, err := c.redirect(u, resp.Header.Get("Location"))
		if err != nil {
			return nil, nil, k.fail(ErrInvalid, err)
		}
		if !sameOrigin(u, next) {
			// For good: also not when a later redirect leads back.
			authorization = ""
		}
		u = next
	}
}

// redirect checks where a redirect leads to. Errors do not repeat the URL,
// which is the registry's text and may hold a signature.
func (c *Client) redirect(from *url.URL, location string) (*url.URL, error) {
	if location == "" || len(location) > maxURL {
		return nil, fmt.Errorf("redirect with a location of %d bytes", len(location))
	}
	u, err := from.Parse(location)
	if err != nil {
		return nil, errors.New("redirect with a malformed location")
	}
	u.Fragment = ""
	if !validHost(strings.ToLower(u.Host)) || u.User != nil {
		return nil, errors.New("redirect without a usable host")
	}
	if err := c.schemeAllowed(from, u); err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	return u, nil
}

// schemeAllowed holds the rule on plain http for everything that a registry's
// answer names: never from https, and only to the same server or to a host
// named insecure.
func (c *Client) schemeAllowed(from, to *url.URL) error {
	switch {
	case to.Scheme == "https":
		return nil
	case to.Scheme != "http":
		return errors.New("leads to neither https nor http")
	case from.Scheme != "http":
		return errors.New("leads from https to http")
	case !sameOrigin(from, to) && !c.insecure[strings.ToLower(to.Host)]:
		return errors.New("leads to plain http at a host that is not named insecure")
	}
	return nil
}

// roundTrip sends one request and counts it.
func (c *Client) roundTrip(k task, req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", c.cfg.UserAgent)
	// Of the URL the host only: a path may have a key in it, and a query has.
	_, span := swarm.StartSpan(req.Context(), k.op, trace.SpanKindClient,
		attribute.String("shoal.registry", k.repo.Registry), attribute.String("shoal.repository", k.repo.Name),
		attribute.String("server.address", req.URL.Host), attribute.String("http.request.method", req.Method))
	resp, err := c.net.roundTripper(req).RoundTrip(req)
	if err == nil {
		span.SetAttributes(attribute.Int("http.response.status_code", resp.StatusCode))
	}
	swarm.EndSpan(span, err)
	if err != nil {
		c.met.answered(k.repo.Registry, 0, false)
		return nil, err
	}
	c.met.answered(k.repo.Registry, resp.StatusCode, !k.token)
	return resp, nil
}
