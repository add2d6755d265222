package swarm

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/swarm/peertls"
)

func TestMutualTLS(t *testing.T) {
	c := newTLSCluster(t, 3)
	data, d := randomBlob(t, 12<<20)
	o := &fakeOrigin{data: data}
	readAll(t, c.nodes[:2], d, data, o)
	if got := o.copies(); got > 1.02 {
		t.Errorf("%.2f copies left the registry, want 1", got)
	}
	small, sd := randomBlob(t, 1000)
	readAll(t, c.nodes, sd, small, &fakeOrigin{data: small})

	// Strangers get nothing, from either port.
	foreign, err := peertls.NewCA("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	strangers := map[string]*tls.Config{
		"no certificate":                   {InsecureSkipVerify: true},
		"certificate of another authority": credentials(t, foreign, "node0").ClientConfig(),
	}
	strangers["certificate of another authority"].VerifyConnection = nil
	m := c.roster.live[0]
	for name, conf := range strangers {
		t.Run(name, func(t *testing.T) {
			cl := &http.Client{Transport: &http.Transport{TLSClientConfig: conf}, Timeout: 5 * time.Second}
			if resp, err := cl.Get("https://" + m.Control + pathBlobs + d.String()); err == nil {
				t.Errorf("control port answered %s", resp.Status)
				resp.Body.Close()
			}
			conn, err := tls.Dial("tcp", m.Wire, conf)
			if err == nil {
				// With TLS 1.3 the refusal comes with the first read.
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				_, _ = conn.Write([]byte("\x13BitTorrent protocol"))
				if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
					t.Error("wire port answered")
				}
				conn.Close()
			}
		})
	}
	t.Run("plain", func(t *testing.T) {
		for _, addr := range []string{m.Control, m.Wire} {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			_, _ = conn.Write([]byte("GET " + pathBlobs + d.String() + " HTTP/1.1\r\nHost: x\r\n\r\n"))
			p, _ := io.ReadAll(conn)
			if len(p) > 200 {
				t.Errorf("%s sent %d bytes in the clear", addr, len(p))
			}
			conn.Close()
		}
	})
	t.Run("another node's name", func(t *testing.T) {
		cl := &http.Client{Transport: &http.Transport{TLSClientConfig: credentials(t, c.ca, "node1").ClientConfig()}}
		req, err := http.NewRequest(http.MethodGet, "https://"+m.Control+pathBlobs+d.String(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(nodeHeader, "node2")
		resp, err := cl.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden {
			t.Errorf("status %d, want 403", resp.StatusCode)
		}
	})
}
