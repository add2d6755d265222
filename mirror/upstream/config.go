package upstream

import (
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// Config of a Client. The zero value works: anonymous, https only, the
// system's certificate authorities.
//
// Hosts are written host or host:port, exactly as they stand in image
// references and URLs: an entry without a port does not cover other ports.
type Config struct {
	// Insecure hosts are spoken to over plain http: no privacy, no proof of
	// identity, and credentials for them travel in the clear. Redirect
	// targets and token services are looked up here too.
	Insecure []string
	// CAs maps a host to a PEM file of certificate authorities that are
	// trusted for it, in addition to RootCAs. Read once.
	CAs map[string]string
	// RootCAs are trusted for all hosts. nil: the system's.
	RootCAs *x509.CertPool
	// Local hosts may have loopback or link-local addresses, as those in
	// Insecure and CAs may anyway; see "Trust" in the package documentation.
	Local []string
	// DockerConfig is the path of a docker config.json with credentials, also
	// in the form of a Kubernetes pull secret (.dockerconfigjson). It is read
	// afresh whenever credentials are needed. Empty: anonymous.
	DockerConfig string
	// Connections bounds the blob streams per registry. More gain speed with
	// registries that limit each connection, and cost them work. Default 16:
	// three layers at a time (containerd's default), five ranges each.
	Connections int
	// Proxy chooses the proxy of a request as http.Transport.Proxy does. nil:
	// none.
	Proxy func(*http.Request) (*url.URL, error)

	Timeouts Timeouts
	Retry    Retry

	// UserAgent is sent with each request. Default "shoal".
	UserAgent string

	Log        zerolog.Logger
	Registerer prometheus.Registerer // nil: not registered

	// Transport replaces the network, and with it the certificate
	// authorities, the proxy and the check of addresses. For tests.
	Transport http.RoundTripper
	// Now is the clock that tokens expire by. Default time.Now.
	Now func() time.Time
	// Jitter returns random numbers in [0, 1). Default math/rand/v2.
	Jitter func() float64
}

// Timeouts bound each wait for a registry; the caller's context bounds the
// whole. Zero fields mean the defaults.
type Timeouts struct {
	// Connect bounds TCP and TLS handshake, each. Default 10 s: the second
	// retransmission of a lost SYN is out after 3 s.
	Connect time.Duration
	// Header bounds one attempt up to the header of the final response,
	// redirects and token service included, and for manifests also the body.
	// Default 20 s.
	Header time.Duration
	// Idle bounds the silence within a blob's body. Default 15 s: below what
	// load balancers allow (60 s is common), above a TCP retransmission.
	Idle time.Duration
}

// Retry says how failures that may pass are tried again. Zero fields mean the
// defaults.
type Retry struct {
	// Attempts in all, the first included. Default 4.
	Attempts int
	// Base is the wait after the first failure, doubled with each further one
	// and then shortened by up to half at random, so that the nodes of a
	// cluster do not come back in step. Default 250 ms.
	Base time.Duration
	// MaxWait bounds each wait. A Retry-After beyond it ends the attempts.
	// Default 8 s.
	MaxWait time.Duration
}

// withDefaults returns c with every zero field set.
func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.Timeouts.Connect, 10*time.Second)
	def(&c.Timeouts.Header, 20*time.Second)
	def(&c.Timeouts.Idle, 15*time.Second)
	def(&c.Retry.Base, 250*time.Millisecond)
	def(&c.Retry.MaxWait, 8*time.Second)
	if c.Retry.Attempts <= 0 {
		c.Retry.Attempts = 4
	}
	if c.Connections <= 0 {
		c.Connections = 16
	}
	if c.UserAgent == "" {
		c.UserAgent = "shoal"
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Jitter == nil {
		c.Jitter = rand.Float64
	}
	return c
}

// hostSet indexes hosts as canonicalHost spells them.
func hostSet(hosts []string) (map[string]bool, error) {
	set := make(map[string]bool, len(hosts))
	for _, h := range hosts {
		host, err := canonicalHost(h)
		if err != nil {
			return nil, err
		}
		set[host] = true
	}
	return set, nil
}

// loadCAs reads the authorities of each host, each pool on top of root.
func loadCAs(files map[string]string, root *x509.CertPool) (map[string]*x509.CertPool, error) {
	pools := make(map[string]*x509.CertPool, len(files))
	for h, file := range files {
		host, err := canonicalHost(h)
		if err != nil {
			return nil, err
		}
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read CA of %s: %w", host, err)
		}
		pool, err := basePool(root)
		if err != nil {
			return nil, err
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA of %s: %s: no certificate in PEM form", host, file)
		}
		pools[host] = pool
	}
	return pools, nil
}

// basePool returns a copy of root, or of the system's authorities.
func basePool(root *x509.CertPool) (*x509.CertPool, error) {
	if root != nil {
		return root.Clone(), nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's certificate authorities: %w", err)
	}
	return pool, nil
}

// canonicalHost checks host[:port] and returns it in lower case.
func canonicalHost(h string) (string, error) {
	h = strings.ToLower(h)
	if !validHost(h) {
		return "", errors.New("invalid host " + quote(h))
	}
	return h, nil
}
