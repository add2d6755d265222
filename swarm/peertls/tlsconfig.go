package peertls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// ServerConfig is the configuration for accepting connections of other nodes.
// It follows rotations by itself. Protocols are what ALPN offers, most wanted
// first: "h2", "http/1.1" for the control plane, none for the peer wire.
func (c *Credentials) ServerConfig(protocols ...string) *tls.Config {
	base := c.config(protocols)
	base.ClientAuth = tls.RequireAndVerifyClientCert
	base.VerifyConnection = c.verify(x509.ExtKeyUsageClientAuth)
	// ClientCAs of the standard library is fixed in a configuration, so each
	// connection gets one of its own, with the authorities of the moment.
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		set := c.set.Load()
		conf := c.config(protocols)
		conf.ClientAuth = tls.RequireAndVerifyClientCert
		conf.ClientCAs = set.pool
		conf.Certificates = []tls.Certificate{set.cert}
		conf.VerifyConnection = c.verify(x509.ExtKeyUsageClientAuth)
		return conf, nil
	}
	return base
}

// ClientConfig is the configuration for dialling other nodes. It follows
// rotations by itself. Protocols as in [Credentials.ServerConfig].
func (c *Credentials) ClientConfig(protocols ...string) *tls.Config {
	conf := c.config(protocols)
	// The standard verification insists on a host name and on authorities
	// fixed beforehand. VerifyConnection below takes its place; it runs on
	// every connection, resumed ones included.
	conf.InsecureSkipVerify = true
	conf.VerifyConnection = c.verify(x509.ExtKeyUsageServerAuth)
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		// Sent whatever authorities the server says it accepts: in a rotation
		// that list may lag, and a refusal by the server names the reason.
		return &c.set.Load().cert, nil
	}
	return conf
}

// config is what both directions have in common.
func (c *Credentials) config(protocols []string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		Time:       c.now,
		// A resumed session would carry on an authentication from before a
		// rotation. Connections between nodes live long; a full handshake
		// costs well under a millisecond.
		SessionTicketsDisabled: true,
	}
}

// verify checks the other side of a connection: chain to an authority of the
// cluster, key usage for its role, and identity within this cluster.
func (c *Credentials) verify(usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("verify peer: no certificate")
		}
		leaf := s.PeerCertificates[0]
		if _, err := c.set.Load().chain(leaf, s.PeerCertificates[1:], usage, c.now()); err != nil {
			return fmt.Errorf("verify peer: %w", err)
		}
		if err := inCluster(leaf, c.cluster); err != nil {
			return fmt.Errorf("verify peer: %w", err)
		}
		return nil
	}
}

// inCluster checks that a certificate names a node, and no other cluster.
func inCluster(leaf *x509.Certificate, cluster string) error {
	got, _, err := identity(leaf)
	if err != nil {
		return err
	}
	if got != "" && got != cluster {
		return fmt.Errorf("certificate is for cluster %q, not for %q", got, cluster)
	}
	return nil
}
