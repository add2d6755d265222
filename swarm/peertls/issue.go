package peertls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"path/filepath"
	"time"
)

const (
	// caLife of an authority: long, since replacing it touches every node.
	caLife = 10 * 365 * 24 * time.Hour
	// backdate lets a new certificate work on nodes whose clock is behind.
	backdate = time.Hour
	// maxCommonName is the upper bound that X.520 sets, which other TLS
	// implementations enforce.
	maxCommonName = 64
)

// CA is a cluster's certificate authority with its private key, and the
// cluster's gossip key, which is made and handed out together with it.
type CA struct {
	// Cluster is the id of the cluster whose nodes it certifies.
	Cluster string
	// Cert is the authority's own certificate.
	Cert *x509.Certificate

	key    crypto.Signer
	gossip [][]byte
}

// Node is what one node needs: the contents of a credentials directory.
type Node struct {
	// Name is the node's name, or [AnyNode].
	Name string
	// Cert is the node's certificate.
	Cert *x509.Certificate

	key    crypto.Signer
	ca     *x509.Certificate
	gossip [][]byte
}

// NewCA makes an authority for a cluster, valid for ten years from now, and a
// gossip key. Keys are ECDSA P-256: small, fast to verify, known everywhere.
func NewCA(cluster string, now time.Time) (*CA, error) {
	if err := checkName(cluster); err != nil {
		return nil, fmt.Errorf("make authority: cluster: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber: serial,
		// The serial is in the subject so that an old and a new authority of
		// one cluster, side by side in a rotation, are told apart by name.
		Subject: pkix.Name{
			CommonName:   "shoal authority " + serial.Text(16)[:8],
			Organization: []string{clip(cluster)},
		},
		// The cluster's URI, so that the authority knows its cluster when it
		// is loaded again.
		URIs:                  []*url.URL{{Scheme: scheme, Host: cluster}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs nodes, no further authorities
	}, nil, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	gossip := make([]byte, GossipKeyLength)
	if _, err := rand.Read(gossip); err != nil {
		return nil, fmt.Errorf("make gossip key: %w", err)
	}
	return &CA{Cluster: cluster, Cert: cert, key: key, gossip: [][]byte{gossip}}, nil
}

// LoadCA reads what [WriteCA] wrote.
func LoadCA(dir string) (*CA, error) {
	ca, err := loadCA(dir)
	if err != nil {
		return nil, fmt.Errorf("load authority: %w", err)
	}
	return ca, nil
}

func loadCA(dir string) (*CA, error) {
	read := func(name string) (p []byte, err error) {
		return readFile(filepath.Join(dir, name))
	}
	cert, err := read(CAFile)
	if err != nil {
		return nil, err
	}
	key, err := read(CAKeyFile)
	if err != nil {
		return nil, err
	}
	gossip, err := read(GossipFile)
	if err != nil {
		return nil, err
	}
	certs, err := parseCerts(cert)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", CAFile, err)
	}
	ca := &CA{Cert: certs[0]}
	for _, u := range ca.Cert.URIs {
		if u.Scheme == scheme {
			ca.Cluster = u.Host
		}
	}
	if err := checkName(ca.Cluster); err != nil || !ca.Cert.IsCA {
		return nil, fmt.Errorf("%s is not the authority of a cluster", filepath.Join(dir, CAFile))
	}
	if ca.key, err = parseKey(key); err != nil {
		return nil, fmt.Errorf("parse %s: %w", CAKeyFile, err)
	}
	pub, ok := ca.key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(ca.Cert.PublicKey) {
		return nil, fmt.Errorf("%s does not belong to %s", CAKeyFile, CAFile)
	}
	if ca.gossip, err = parseGossipKeys(gossip); err != nil {
		return nil, fmt.Errorf("parse %s: %w", GossipFile, err)
	}
	return ca, nil
}

// Issue makes a key and a certificate for a node, valid from now (an hour
// earlier, for clocks that are behind) for the given time, or as long as the
// authority if that ends first. The name [AnyNode] makes a certificate to be
// shared by all nodes.
func (ca *CA) Issue(node string, now time.Time, life time.Duration) (*Node, error) {
	if err := checkNode(node); err != nil {
		return nil, fmt.Errorf("issue certificate: node: %w", err)
	}
	if life <= 0 {
		return nil, fmt.Errorf("issue certificate: life of %s", life)
	}
	until := now.Add(life)
	if until.After(ca.Cert.NotAfter) {
		until = ca.Cert.NotAfter
	}
	if !until.After(now) {
		return nil, fmt.Errorf("issue certificate: authority expired at %s", ca.Cert.NotAfter.Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	cert, err := sign(&x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: clip(node)},
		URIs:         []*url.URL{nodeURI(ca.Cluster, node)},
		NotBefore:    now.Add(-backdate),
		NotAfter:     until,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		// Every node accepts and dials.
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, ca.Cert, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return &Node{Name: node, Cert: cert, key: key, ca: ca.Cert, gossip: ca.gossip}, nil
}

// sign makes the certificate; without a parent it is self-signed.
func sign(c, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial draws 127 random bits, with the highest set: the length of the
// text form is constant and the number positive, as RFC 5280 demands.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		return nil, err
	}
	return n.SetBit(n, 126, 1), nil
}

func clip(s string) string {
	return s[:min(len(s), maxCommonName)]
}

func parseKey(p []byte) (crypto.Signer, error) {
	b, _ := pem.Decode(p)
	if b == nil {
		return nil, errors.New("no PEM block in it")
	}
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, err
	}
	s, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("key of type %T cannot sign", key)
	}
	return s, nil
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func encodeKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
