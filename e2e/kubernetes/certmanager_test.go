//go:build e2e

package kubernetes

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// certManager: a release takes its certificates from cert-manager, in place of Helm.
// Nodes let in who has one, and nobody else, and take a renewed one without a restart
// and without losing each other. The part that follows goes back to Helm's.
func (s *suite) certManager(t *testing.T) {
	helms := s.credentials(t, release+"-tls")
	if err := s.StartCertManager(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.helm(t, "upgrade", s.chart, "--values", s.values, "--set", "tls.mode=certManager")
	waitReady(t, s.Cluster, namespace, release, len(s.Nodes))
	const secret = release + "-issued-tls"
	issued := s.credentials(t, secret)
	s.haveAll(t, issued)
	for _, n := range s.Nodes {
		for who, certificate := range map[string]tls.Certificate{"Helm's certificate": helms.pair, "no certificate": {}} {
			if _, err := s.knock(t, n, certificate); err == nil || !strings.Contains(err.Error(), "remote error: tls:") {
				t.Errorf("the pod on %s lets in who has %s: %v", n.Name, who, err)
			}
		}
	}
	s.pulls(t, "issued")

	const left, taken, since = `shoal_members_changes_total{event="leave"}`,
		`shoal_peer_certificate_reloads_total{result="ok"}`, "process_start_time_seconds"
	before := map[string]float64{}
	for _, m := range []string{left, taken, since} {
		before[m] = s.sum(t, m)
	}
	// What `cmctl renew` does.
	s.kubectl(t, "patch", "certificate", release, "--namespace", namespace, "--subresource", "status", "--type", "json",
		"--patch", `[{"op": "add", "path": "/status/conditions/-", "value": {
			"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "renewed by a test",
			"lastTransitionTime": "`+time.Now().UTC().Format(time.RFC3339)+`"}}]`)
	began := time.Now()
	renewed := issued
	eventually(t, 30*time.Second, "a new certificate", func() bool {
		renewed = s.credentials(t, secret)
		return !renewed.leaf.Equal(issued.leaf)
	})
	if !renewed.authority.Equal(issued.authority) {
		t.Error("the authority has changed, too")
	}
	s.haveAll(t, renewed)
	t.Logf("all nodes had the new certificate after %v", time.Since(began).Round(100*time.Millisecond))
	s.pulls(t, "renewed")
	for m, want := range map[string]float64{left: 0, taken: float64(len(s.Nodes)), since: 0} {
		if n := s.sum(t, m) - before[m]; n != want {
			t.Errorf("%s grew by %v over a renewal, want %v", m, n, want)
		}
	}
}

// pulls rolls out an image that no node has any part of.
func (s *suite) pulls(t *testing.T, name string) {
	t.Helper()
	img := push(t, s.Cluster, name, "v1", 50e6, 2, 0)
	took, bytes := rollOut(t, s.Cluster, name, daemonSet(name, img.Ref), len(s.Nodes))
	s.check(t, name, took, bytes, img.Size())
	if bytes < img.Size() {
		t.Errorf("%d bytes of %d left the registry: the nodes had the rest", bytes, img.Size())
	}
}

// credentials are a certificate and who signed it.
type credentials struct {
	pair            tls.Certificate
	leaf, authority *x509.Certificate
}

// credentials are those in a secret.
func (s *suite) credentials(t *testing.T, name string) credentials {
	t.Helper()
	var secret struct{ Data map[string][]byte }
	s.get(t, &secret, "secret", name, "--namespace", namespace)
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(secret.Data["ca.crt"])
	if block == nil {
		t.Fatal("no authority in the secret")
	}
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if err := pair.Leaf.CheckSignatureFrom(authority); err != nil {
		t.Fatal(err)
	}
	return credentials{pair, pair.Leaf, authority}
}

// haveAll waits until the pods of all nodes show a certificate, let in who has it, and
// see each other.
func (s *suite) haveAll(t *testing.T, c credentials) {
	t.Helper()
	for _, n := range s.Nodes {
		eventually(t, time.Minute, n.Name+" to have the certificate", func() bool {
			shown, err := s.knock(t, n, c.pair)
			return err == nil && shown.Equal(c.leaf)
		})
		eventually(t, time.Minute, n.Name+" to see all members", func() bool {
			return s.metrics(t, n)["shoal_members"] == float64(len(s.Nodes))
		})
	}
}

// knock speaks to the port of the pod on n that is for other nodes, as one that has a
// certificate. It returns the one that the pod shows, if the pod goes on to talk.
func (s *suite) knock(t *testing.T, n *Node, certificate tls.Certificate) (*x509.Certificate, error) {
	t.Helper()
	pods := s.pods(t)
	i := slices.IndexFunc(pods, func(p pod) bool { return p.Spec.NodeName == n.Name })
	if i < 0 {
		return nil, errors.New("no pod")
	}
	raw, err := n.DialContext(t.Context(), "tcp", pods[i].Status.PodIP+":6501")
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		InsecureSkipVerify: true, // the caller compares it
		NextProtos:         []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &certificate, nil
		},
	})
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	// The server speaks first in HTTP/2, as soon as it is content with the client.
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return nil, err
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}
