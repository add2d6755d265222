//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/chunker"
	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestStranger: who has no certificate of the cluster's authority gets nothing
// from either port, whatever it says; one who has it is heard.
func TestStranger(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 2, Rate: 50 * lab.Mbit, RegistryRate: 50 * lab.Mbit})
	img := push(t, l, "stranger", 100*mib, 1)
	layer := img.Layers[0]
	guest, err := l.AddMachine("guest", 0)
	if err != nil {
		t.Fatal(err)
	}
	// Torrents exist while their blob is in flight: knock meanwhile.
	from := traffic(t, l.Node(0))
	p := startPull(t, img.Ref, l.Nodes()...)
	waitReceived(t, l.Node(0), from, 10*mib)

	ports := []struct {
		name, port string
		alpn       []string
		says       string
	}{
		{"control", lab.ControlPort, []string{"http/1.1"}, httpRequest(layer.Digest)},
		{"wire", lab.WirePort, nil, peerHandshake(t, layer.Digest, layer.Size)},
	}
	strangers := []struct {
		name string
		tls  *tls.Config // nil speaks plainly
	}{
		{"plain", nil},
		{"no certificate", &tls.Config{InsecureSkipVerify: true}},
		{"foreign authority", credentialsOf(t, l, l.NewAuthority)},
	}
	for _, port := range ports {
		address := l.Node(0).Address + ":" + port.port
		for _, s := range strangers {
			t.Run(port.name+"/"+s.name, func(t *testing.T) {
				answer, err := knock(t, guest, address, s.tls, port.alpn, port.says)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Error("the connection is still open: it was not refused")
				}
				// A TLS server may say in plain text that it wants TLS.
				if strings.HasPrefix(answer, "HTTP/1.0 400 Bad Request") && s.tls == nil && port.name == "control" {
					return
				}
				if s.tls == nil {
					answer = strings.TrimPrefix(answer, "\x15\x03\x01\x00\x02\x02") // a TLS alert and its code
				}
				if len(answer) > 1 {
					t.Errorf("got %d bytes: %.80q", len(answer), answer)
				}
			})
		}
		t.Run(port.name+"/member", func(t *testing.T) {
			answer, err := knock(t, guest, address, credentialsOf(t, l, nil), port.alpn, port.says)
			if len(answer) == 0 {
				t.Errorf("no answer (%v): the refusals above mean nothing", err)
			}
		})
	}
	p.wait(t)
}

func httpRequest(d digest.Digest) string {
	return "GET /v1/blobs/" + d.String() + " HTTP/1.1\r\nHost: shoal\r\nConnection: close\r\n\r\n"
}

// peerHandshake is what a BitTorrent peer says first (BEP 3).
func peerHandshake(t *testing.T, d digest.Digest, size int64) string {
	t.Helper()
	geometry, err := chunker.GeometryOf(size)
	if err != nil {
		t.Fatal(err)
	}
	hash := chunker.Identity{Cluster: lab.Cluster, Digest: d, Geometry: geometry}.InfoHash()
	const extensions = "\x00\x00\x00\x00\x00\x10\x00\x04" // BEP 10, BEP 6
	return "\x13BitTorrent protocol" + extensions + string(hash[:]) + "-XX0000-stranger4242"
}

// credentialsOf makes a client's TLS configuration with a certificate for a
// node's name. makeAuthority makes the authority; nil takes the cluster's own.
func credentialsOf(t *testing.T, l *lab.Lab, makeAuthority func(context.Context, string) error) *tls.Config {
	t.Helper()
	authority := l.AuthorityDir()
	if makeAuthority != nil {
		authority = filepath.Join(t.TempDir(), "authority")
		if err := makeAuthority(t.Context(), authority); err != nil {
			t.Fatal(err)
		}
	}
	out := t.TempDir()
	if err := l.Issue(t.Context(), authority, "n2", out); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(out, "n2")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}}
}

// knock connects, says something, and returns what comes back until the other
// side closes or some seconds have passed.
func knock(t *testing.T, from *lab.Machine, address string, conf *tls.Config, alpn []string, says string) (string, error) {
	t.Helper()
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := from.DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err) // the port must be open for the rest to mean something
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if conf != nil {
		conf = conf.Clone()
		conf.NextProtos = alpn
		conn = tls.Client(conn, conf)
	}
	return exchange(conn, says)
}

func exchange(conn net.Conn, says string) (string, error) {
	if _, err := io.WriteString(conn, says); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(io.LimitReader(conn, 64<<10))
	return string(answer), err
}
