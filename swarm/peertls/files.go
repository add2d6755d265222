package peertls

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Names of the files in a credentials directory.
const (
	CAFile     = "ca.crt"
	CertFile   = "tls.crt"
	KeyFile    = "tls.key"
	GossipFile = "gossip.key"
	// CAKeyFile is the authority's private key. It is never in a node's
	// directory.
	CAKeyFile = "ca.key"
)

// GossipKeyLength in bytes: AES-256.
const GossipKeyLength = 32

const (
	// maxFile bounds a credentials file, in bytes. Kubernetes caps a whole
	// secret at 1 MiB.
	maxFile = 1 << 20
	// maxGossipKeys bounds gossip.key: each key is tried on each packet of a
	// stranger, so the list must not grow without end.
	maxGossipKeys = 8
	// dataLink is the link by which Kubernetes swaps all files of a mounted
	// secret or config map at one instant.
	dataLink = "..data"
)

// files are the raw contents of a credentials directory.
type files struct {
	ca, cert, key, gossip []byte
}

// readFiles reads the directory. Where Kubernetes' data link exists it is
// resolved once and all is read behind it, so that a swap between two reads
// cannot mix two sets.
func readFiles(dir string) (files, error) {
	if real, err := filepath.EvalSymlinks(filepath.Join(dir, dataLink)); err == nil {
		if _, err := os.Stat(filepath.Join(real, CertFile)); err == nil {
			dir = real
		}
	}
	var f files
	for _, r := range []struct {
		name string
		into *[]byte
	}{{CAFile, &f.ca}, {CertFile, &f.cert}, {KeyFile, &f.key}, {GossipFile, &f.gossip}} {
		p, err := readFile(filepath.Join(dir, r.name))
		if err != nil {
			return files{}, fmt.Errorf("read credentials: %w", err)
		}
		*r.into = p
	}
	return f, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(p) > maxFile {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, maxFile)
	}
	return p, nil
}

// sum identifies the contents, to tell a change from a mere event.
func (f files) sum() [sha256.Size]byte {
	h := sha256.New()
	for _, p := range [][]byte{f.ca, f.cert, f.key, f.gossip} {
		fmt.Fprintf(h, "%d:", len(p))
		h.Write(p)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// set is one consistent state of the credentials. Immutable.
type set struct {
	pool   *x509.CertPool
	cert   tls.Certificate // Leaf is set
	root   *x509.Certificate
	gossip [][]byte
	sum    [sha256.Size]byte
}

// parse checks that the files hold together: the key fits the certificate, an
// authority vouches for the certificate in both roles now, and it names a node
// of the cluster.
func (f files) parse(cluster string, now time.Time) (*set, error) {
	s := &set{pool: x509.NewCertPool(), sum: f.sum()}
	cas, err := parseCerts(f.ca)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", CAFile, err)
	}
	for _, ca := range cas {
		if !ca.IsCA {
			return nil, fmt.Errorf("parse %s: certificate of %q is not an authority", CAFile, ca.Subject)
		}
		s.pool.AddCert(ca)
	}
	if s.cert, err = tls.X509KeyPair(f.cert, f.key); err != nil {
		return nil, fmt.Errorf("parse %s and %s: %w", CertFile, KeyFile, err)
	}
	rest, err := parseCerts(f.cert)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", CertFile, err)
	}
	s.cert.Leaf = rest[0]
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		chain, err := s.chain(rest[0], rest[1:], usage, now)
		if err != nil {
			return nil, fmt.Errorf("check %s: %w", CertFile, err)
		}
		s.root = chain[len(chain)-1]
	}
	if err := inCluster(rest[0], cluster); err != nil {
		return nil, fmt.Errorf("check %s: %w", CertFile, err)
	}
	if s.gossip, err = parseGossipKeys(f.gossip); err != nil {
		return nil, fmt.Errorf("parse %s: %w", GossipFile, err)
	}
	return s, nil
}

// chain finds a verified chain from leaf to an authority of the set.
func (s *set) chain(leaf *x509.Certificate, rest []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) ([]*x509.Certificate, error) {
	between := x509.NewCertPool()
	for _, c := range rest {
		between.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         s.pool,
		Intermediates: between,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, err
	}
	return chains[0], nil
}

func parseCerts(p []byte) ([]*x509.Certificate, error) {
	var cs []*x509.Certificate
	for {
		var b *pem.Block
		if b, p = pem.Decode(p); b == nil {
			break
		}
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	if len(cs) == 0 {
		return nil, errors.New("no PEM certificate in it")
	}
	return cs, nil
}

func parseGossipKeys(p []byte) ([][]byte, error) {
	var keys [][]byte
	for line := range strings.Lines(string(p)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if len(keys) == maxGossipKeys {
			return nil, fmt.Errorf("more than %d keys", maxGossipKeys)
		}
		// The decoder's error tells a position only, never the key.
		k, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return nil, fmt.Errorf("key %d is not base64: %w", len(keys)+1, err)
		}
		if len(k) != GossipKeyLength {
			return nil, fmt.Errorf("key %d has %d bytes, not %d", len(keys)+1, len(k), GossipKeyLength)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, errors.New("no key in it")
	}
	return keys, nil
}

func formatGossipKeys(keys ...[]byte) []byte {
	var b bytes.Buffer
	for _, k := range keys {
		b.WriteString(base64.StdEncoding.EncodeToString(k))
		b.WriteByte('\n')
	}
	return b.Bytes()
}
