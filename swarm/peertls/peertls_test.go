package peertls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMutual(t *testing.T) {
	ca := authority(t)
	a, b := load(t, issue(t, ca, "node-a")), load(t, issue(t, ca, "node-b"))
	for _, tc := range []struct {
		name           string
		server, client []string
		want           string
	}{
		{"wire", nil, nil, ""},
		{"control", []string{"h2", "http/1.1"}, []string{"h2", "http/1.1"}, "h2"},
		{"control, old client", []string{"h2", "http/1.1"}, []string{"http/1.1"}, "http/1.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := connect(t, a.ServerConfig(tc.server...), b.ClientConfig(tc.client...))
			if s.err != nil || c.err != nil {
				t.Fatalf("server: %v, client: %v", s.err, c.err)
			}
			if diff := cmp.Diff([]string{"node-b", "node-a"}, []string{s.id, c.id}); diff != "" {
				t.Errorf("identities seen by server and client (-want +got):\n%s", diff)
			}
			for _, st := range []tls.ConnectionState{s.state, c.state} {
				if st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != tc.want || st.DidResume {
					t.Errorf("version %x, protocol %q, resumed %v", st.Version, st.NegotiatedProtocol, st.DidResume)
				}
			}
		})
	}
	if got := a.ID(); got != "node-a" {
		t.Errorf("own identity is %q", got)
	}
}

// TestHTTP2: the configurations as the control plane uses them.
func TestHTTP2(t *testing.T) {
	ca := authority(t)
	a, b := load(t, issue(t, ca, "node-a")), load(t, issue(t, ca, "node-b"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{
		TLSConfig: a.ServerConfig("h2", "http/1.1"),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := PeerID(*r.TLS)
			fmt.Fprint(w, r.Proto, " ", id, " ", err)
		}),
	}
	done := make(chan error)
	go func() { done <- hs.ServeTLS(l, "", "") }()
	tr := &http.Transport{TLSClientConfig: b.ClientConfig("h2", "http/1.1"), ForceAttemptHTTP2: true}
	resp, err := (&http.Client{Transport: tr}).Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got := string(body); got != "HTTP/2.0 node-b <nil>" {
		t.Errorf("the server saw %q", got)
	}
	if id, err := PeerID(*resp.TLS); id != "node-a" || err != nil {
		t.Errorf("the client saw %q, %v", id, err)
	}
	tr.CloseIdleConnections()
	_ = hs.Close()
	<-done
}

// TestRefused has strangers at either end of a connection with a member.
func TestRefused(t *testing.T) {
	ca := authority(t)
	member := load(t, issue(t, ca, "member"))

	foreign := load(t, issue(t, authority(t), "stranger"))
	otherCluster := stolen(t, ca, cert{uri: "shoal://other.example/stranger"})
	serverOnly := stolen(t, ca, cert{uri: "shoal://" + cluster + "/n", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	clientOnly := stolen(t, ca, cert{uri: "shoal://" + cluster + "/n", usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	expired := stolen(t, ca, cert{uri: "shoal://" + cluster + "/n", until: time.Now().Add(-time.Minute)})
	nameless := stolen(t, ca, cert{cn: "not a node name"})
	selfSigned := stolen(t, nil, cert{uri: "shoal://" + cluster + "/n"})

	// A stranger trusts everyone, to find out whether the member does.
	dial := func(c ...tls.Certificate) *tls.Config {
		return &tls.Config{InsecureSkipVerify: true, Certificates: c}
	}
	serve := func(c tls.Certificate) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{c}, ClientAuth: tls.RequestClientCert}
	}
	for _, tc := range []struct {
		name string
		conf *tls.Config
	}{
		{"no certificate", dial()},
		{"other authority", dial(foreign.set.Load().cert)},
		{"self-signed", dial(selfSigned)},
		{"other cluster, same authority", dial(otherCluster)},
		{"server key usage only", dial(serverOnly)},
		{"expired", dial(expired)},
		{"no node name", dial(nameless)},
		{"TLS 1.2", &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{member.set.Load().cert}, MaxVersion: tls.VersionTLS12}},
	} {
		t.Run("client/"+tc.name, func(t *testing.T) {
			s, c := connect(t, member.ServerConfig(), tc.conf)
			if s.err == nil {
				t.Errorf("the member accepted the connection from %q", s.id)
			}
			if c.err == nil {
				t.Error("the stranger received data")
			}
		})
	}
	for _, tc := range []struct {
		name string
		conf *tls.Config
	}{
		{"other authority", serve(foreign.set.Load().cert)},
		{"other authority, verifying", foreign.ServerConfig()},
		{"self-signed", serve(selfSigned)},
		{"other cluster, same authority", serve(otherCluster)},
		{"client key usage only", serve(clientOnly)},
		{"expired", serve(expired)},
		{"no node name", serve(nameless)},
		{"TLS 1.2", &tls.Config{Certificates: []tls.Certificate{member.set.Load().cert}, MaxVersion: tls.VersionTLS12}},
	} {
		t.Run("server/"+tc.name, func(t *testing.T) {
			s, c := connect(t, tc.conf, member.ClientConfig())
			if c.err == nil {
				t.Errorf("the member talked to %q", c.id)
			}
			if s.err == nil {
				t.Error("the stranger received data")
			}
		})
	}
}

// cert describes a certificate that [CA.Issue] would not make.
type cert struct {
	cn, uri string
	usage   []x509.ExtKeyUsage
	until   time.Time
}

// stolen signs any certificate; with a nil authority by itself.
func stolen(t *testing.T, ca *CA, c cert) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if c.usage == nil {
		c.usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if c.until.IsZero() {
		c.until = time.Now().Add(time.Hour)
	}
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: c.cn},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     c.until,
		ExtKeyUsage:  c.usage,
	}
	if c.uri != "" {
		u, err := url.Parse(c.uri)
		if err != nil {
			t.Fatal(err)
		}
		tpl.URIs = append(tpl.URIs, u)
	}
	parent, signer := tpl, key
	if ca != nil {
		parent, signer = ca.Cert, ca.key.(*ecdsa.PrivateKey)
	}
	leaf, err := sign(tpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

func TestSharedCertificate(t *testing.T) {
	ca := authority(t)
	shared := load(t, issue(t, ca, AnyNode))
	s, c := connect(t, shared.ServerConfig(), shared.ClientConfig())
	if s.err != nil || c.err != nil {
		t.Fatalf("server: %v, client: %v", s.err, c.err)
	}
	if s.id != AnyNode || c.id != AnyNode {
		t.Errorf("identities %q and %q", s.id, c.id)
	}
}

func TestSpeaks(t *testing.T) {
	for _, tc := range []struct {
		id, node string
		want     bool
	}{
		{"a", "a", true},
		{"a", "b", false},
		{AnyNode, "b", true},
		{AnyNode, "", false},
		{"", "", false},
		{"a", AnyNode, false},
		{AnyNode, AnyNode, false},
	} {
		if got := Speaks(tc.id, tc.node); got != tc.want {
			t.Errorf("Speaks(%q, %q) = %v", tc.id, tc.node, got)
		}
	}
}

func TestPeerIDWithoutHandshake(t *testing.T) {
	for name, s := range map[string]tls.ConnectionState{
		"plain connection": {},
		"no certificate":   {HandshakeComplete: true},
		"in handshake":     {PeerCertificates: []*x509.Certificate{{Subject: pkix.Name{CommonName: "n"}}}},
	} {
		if id, err := PeerID(s); err == nil {
			t.Errorf("%s: identified as %q", name, id)
		}
	}
}

func TestIdentity(t *testing.T) {
	for _, tc := range []struct {
		name          string
		cn            string
		uris          []string
		cluster, node string
		bad           bool
	}{
		{name: "URI", uris: []string{"shoal://c1/node-1.example"}, cluster: "c1", node: "node-1.example"},
		{name: "URI before common name", cn: "cn", uris: []string{"shoal://c1/n"}, cluster: "c1", node: "n"},
		{name: "shared", uris: []string{"shoal://c1/*"}, cluster: "c1", node: "*"},
		{name: "other schemes ignored", cn: "cn", uris: []string{"spiffe://c/ns/x"}, node: "cn"},
		{name: "common name", cn: "node-1", node: "node-1"},
		{name: "nothing", bad: true},
		{name: "shared by common name", cn: "*", node: "*"},
		{name: "URI before a shared common name", cn: "*", uris: []string{"shoal://c1/n"}, cluster: "c1", node: "n"},
		{name: "bad URI before a shared common name", cn: "*", uris: []string{"shoal://c1/"}, bad: true},
		{name: "star in a common name", cn: "*.example", bad: true},
		{name: "star with a space", cn: "* ", bad: true},
		{name: "common name with spaces", cn: "a b", bad: true},
		{name: "two URIs", uris: []string{"shoal://c1/a", "shoal://c1/b"}, bad: true},
		{name: "bad URI is no common name", cn: "cn", uris: []string{"shoal://c1/"}, bad: true},
		{name: "no path", uris: []string{"shoal://c1"}, bad: true},
		{name: "deep path", uris: []string{"shoal://c1/a/b"}, bad: true},
		{name: "double slash", uris: []string{"shoal://c1//a"}, bad: true},
		{name: "no cluster", uris: []string{"shoal:///a"}, bad: true},
		{name: "port", uris: []string{"shoal://c1:1/a"}, bad: true},
		{name: "user", uris: []string{"shoal://u@c1/a"}, bad: true},
		{name: "query", uris: []string{"shoal://c1/a?b"}, bad: true},
		{name: "empty query", uris: []string{"shoal://c1/a?"}, bad: true},
		{name: "fragment", uris: []string{"shoal://c1/a#b"}, bad: true},
		{name: "opaque", uris: []string{"shoal:c1/a"}, bad: true},
		{name: "escaped", uris: []string{"shoal://c1/%61"}, bad: true},
		{name: "dots", uris: []string{"shoal://c1/.."}, bad: true},
		{name: "long", uris: []string{"shoal://c1/" + strings.Repeat("a", 254)}, bad: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &x509.Certificate{Subject: pkix.Name{CommonName: tc.cn}}
			for _, s := range tc.uris {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
			cl, node, err := identity(c)
			if (err != nil) != tc.bad || cl != tc.cluster || node != tc.node {
				t.Errorf("got %q, %q, %v", cl, node, err)
			}
		})
	}
}

// FuzzIdentity: whatever a certificate says, the names that come out are
// well-formed and have one spelling.
func FuzzIdentity(f *testing.F) {
	f.Add("node", "shoal://c1/node")
	f.Add("", "shoal://c1/*")
	f.Add("*", "spiffe://trust/ns/a")
	f.Add("x", "shoal://c1/%2e%2e")
	f.Add("a.b", "spiffe://trust/ns/a")
	f.Add("", "shoal://[::1]:80/a?q#f")
	f.Fuzz(func(t *testing.T, cn, uri string) {
		u, err := url.Parse(uri)
		if err != nil {
			return
		}
		c := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, URIs: []*url.URL{u}}
		cl, node, err := identity(c)
		if err != nil {
			return
		}
		if node != AnyNode && checkName(node) != nil {
			t.Errorf("node %q", node)
		}
		if cl != "" && nodeURI(cl, node).String() != "shoal://"+cl+"/"+node {
			t.Errorf("cluster %q, node %q", cl, node)
		}
	})
}

// TestIntermediate loads what other tools make: a SEC 1 key, an intermediate
// authority in tls.crt, a common name without URI.
func TestIntermediate(t *testing.T) {
	root := authority(t)
	root.Cert.MaxPathLenZero, root.Cert.MaxPathLen = false, 1
	rootCert, err := sign(root.Cert, nil, root.key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	middle, err := sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "middle"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, rootCert, key.Public(), root.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := stolen(t, &CA{Cert: middle, key: key}, cert{cn: "node-7"})
	sec1, err := x509.MarshalECPrivateKey(leaf.PrivateKey.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, CAFile), encodeCert(rootCert))
	write(t, filepath.Join(dir, CertFile), append(encodeCert(leaf.Leaf), encodeCert(middle)...))
	write(t, filepath.Join(dir, KeyFile), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}))
	write(t, filepath.Join(dir, GossipFile), formatGossipKeys(root.gossip...))
	a, b := load(t, dir), load(t, dir)
	s, c := connect(t, a.ServerConfig(), b.ClientConfig())
	if s.err != nil || c.err != nil || s.id != "node-7" || c.id != "node-7" {
		t.Errorf("server %q %v, client %q %v", s.id, s.err, c.id, c.err)
	}
}
