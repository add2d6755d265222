package peertls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// scheme of the URI that names a node in its certificate.
const scheme = "shoal"

// AnyNode is the identity of a certificate that all nodes of a cluster share.
const AnyNode = "*"

// maxName is the longest name of a node or cluster: the limit of DNS names,
// which host names and Kubernetes node names keep to.
const maxName = 253

// PeerID is the identity of the node at the other end of a connection: its
// name, or [AnyNode]. It relies on the verification that the configurations of
// this package have done, and must not be used with connections made
// otherwise. It fails on a connection without a peer certificate or with one
// that names no node.
func PeerID(s tls.ConnectionState) (string, error) {
	if !s.HandshakeComplete {
		return "", errors.New("identify peer: handshake is not complete")
	}
	if len(s.PeerCertificates) == 0 {
		return "", errors.New("identify peer: no certificate")
	}
	_, node, err := identity(s.PeerCertificates[0])
	if err != nil {
		return "", fmt.Errorf("identify peer: %w", err)
	}
	return node, nil
}

// Speaks reports whether the holder of identity id, as [PeerID] returned it,
// may speak for the named node.
func Speaks(id, node string) bool {
	return node != "" && node != AnyNode && (id == node || id == AnyNode)
}

// identity reads cluster and node from a certificate. The cluster is empty
// when the certificate does not say it. Without a URI of ours the common name
// is the node, and exactly "*" is [AnyNode]: some tools, Helm among them, cannot
// write URIs.
func identity(c *x509.Certificate) (cluster, node string, err error) {
	found := false
	for _, u := range c.URIs {
		if u.Scheme != scheme {
			continue
		}
		if found {
			return "", "", errors.New("certificate names more than one node")
		}
		found = true
		if cluster, node, err = parseURI(u); err != nil {
			return "", "", err
		}
	}
	if found {
		return cluster, node, nil
	}
	if err := checkNode(c.Subject.CommonName); err != nil {
		return "", "", fmt.Errorf("certificate has no %s:// URI and its common name is no node name: %w", scheme, err)
	}
	return "", c.Subject.CommonName, nil
}

// parseURI takes shoal://<cluster>/<node> apart. Anything besides the two
// names is refused: an identity has one spelling.
func parseURI(u *url.URL) (cluster, node string, err error) {
	node = strings.TrimPrefix(u.Path, "/")
	if err := checkName(u.Host); err != nil {
		return "", "", fmt.Errorf("certificate URI: cluster: %w", err)
	}
	if err := checkNode(node); err != nil {
		return "", "", fmt.Errorf("certificate URI: node: %w", err)
	}
	if want := nodeURI(u.Host, node); *u != *want {
		return "", "", fmt.Errorf("certificate URI %q is not of the form %s", u.Redacted(), want)
	}
	return u.Host, node, nil
}

func nodeURI(cluster, node string) *url.URL {
	u := &url.URL{Scheme: scheme, Host: cluster, Path: "/" + node}
	if node == AnyNode {
		u.RawPath = u.Path // net/url would write %2A
	}
	return u
}

// checkNode admits the name of a node, or [AnyNode].
func checkNode(s string) error {
	if s == AnyNode {
		return nil
	}
	return checkName(s)
}

// checkName admits what host names consist of: letters, digits and, inside,
// single dots, dashes and underscores.
func checkName(s string) error {
	if s == "" {
		return errors.New("name is empty")
	}
	if len(s) > maxName {
		return fmt.Errorf("name of %d bytes is longer than %d", len(s), maxName)
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case (c == '-' || c == '_') && i > 0 && i < len(s)-1:
		case c == '.' && i > 0 && i < len(s)-1 && s[i-1] != '.':
		default:
			return fmt.Errorf("name %q: byte %d is not allowed there", s, i)
		}
	}
	return nil
}
