package peertls

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of the tests; none takes more than a fraction.
const patience = 20 * time.Second

const cluster = "lab.example"

// authority makes a CA for the test cluster.
func authority(t *testing.T) *CA {
	t.Helper()
	ca, err := NewCA(cluster, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue makes a node's credentials directory.
func issue(t *testing.T, ca *CA, node string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	n, err := ca.Issue(node, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteNode(dir, n, false); err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, dir string) *Credentials {
	t.Helper()
	c, err := Load(Config{Dir: dir, Cluster: cluster, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// outcome is how a connection went for one side.
type outcome struct {
	id    string
	state tls.ConnectionState
	err   error
}

// connect makes one connection over loopback and exchanges a byte each way, so
// that both sides know what became of it.
func connect(t *testing.T, server, client *tls.Config) (s, c outcome) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan outcome)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- outcome{err: err}
			return
		}
		done <- exchange(tls.Server(conn, server))
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c = exchange(tls.Client(conn, client))
	return <-done, c
}

func exchange(conn *tls.Conn) (o outcome) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if o.err = conn.Handshake(); o.err != nil {
		return o
	}
	if _, o.err = conn.Write([]byte{'x'}); o.err != nil {
		return o
	}
	var b [1]byte
	if _, o.err = conn.Read(b[:]); o.err != nil {
		return o
	}
	o.state = conn.ConnectionState()
	o.id, o.err = PeerID(o.state)
	return o
}

// await waits for a channel to be closed.
func await(t *testing.T, what string, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatalf("timed out waiting for %s", what)
	}
}

func write(t *testing.T, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
