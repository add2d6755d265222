package kubernetes

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

// authority signs the certificates of the control plane and of who speaks to it.
type authority struct {
	dir    string
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
}

// newAuthority makes an authority and writes ca.crt and ca.key into dir.
func newAuthority(dir string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &authority{dir: dir, key: key}
	a.cert = a.template("kubernetes", nil)
	a.cert.IsCA, a.cert.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, key.Public(), key)
	if err != nil {
		return nil, err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return a, a.write("ca", der, key)
}

func (a *authority) template(name string, groups []string) *x509.Certificate {
	a.serial++
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.serial),
		Subject:      pkix.Name{CommonName: name, Organization: groups},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},

		BasicConstraintsValid: true,
	}
}

// issue writes file.crt and file.key for a user of the cluster, or for a server
// at addresses.
func (a *authority) issue(file, user string, groups, names []string, addresses ...string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := a.template(user, groups)
	t.DNSNames = names
	for _, s := range addresses {
		t.IPAddresses = append(t.IPAddresses, net.ParseIP(s))
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return a.write(file, der, key)
}

func (a *authority) write(file string, cert []byte, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for path, block := range map[string]*pem.Block{
		a.path(file + ".crt"): {Type: "CERTIFICATE", Bytes: cert},
		a.path(file + ".key"): {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

var kubeconfigTemplate = template.Must(template.New("").Parse(`apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster:
    server: {{.server}}
    certificate-authority-data: {{.ca}}
users:
- name: user
  user:
    client-certificate-data: {{.cert}}
    client-key-data: {{.key}}
contexts:
- name: lab
  context: {cluster: lab, user: user}
current-context: lab
`))

// kubeconfig issues a certificate and writes file.kubeconfig with it.
func (a *authority) kubeconfig(file, server, user string, groups ...string) (string, error) {
	if err := a.issue(file, user, groups, nil); err != nil {
		return "", fmt.Errorf("issue certificate of %s: %w", user, err)
	}
	values := map[string]string{"server": server}
	for key, name := range map[string]string{"ca": "ca.crt", "cert": file + ".crt", "key": file + ".key"} {
		p, err := os.ReadFile(a.path(name))
		if err != nil {
			return "", err
		}
		values[key] = base64.StdEncoding.EncodeToString(p)
	}
	var b bytes.Buffer
	if err := kubeconfigTemplate.Execute(&b, values); err != nil {
		return "", err
	}
	path := a.path(file + ".kubeconfig")
	return path, os.WriteFile(path, b.Bytes(), 0o600)
}
