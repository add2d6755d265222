//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

var shoalBinary = flag.String("shoal", "", "shoal binary to test; built from this source tree if empty")

const (
	// testTimeout bounds one test's pulls together. Pulls have no timeout of
	// their own, and a test that hangs tells less than one that fails.
	testTimeout = 4 * time.Minute
	mib         = 1 << 20
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv(roleVariable) != "" {
		return m.Run() // a helper process of a test
	}
	if err := lab.Check(); err != nil {
		fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
		return 1
	}
	if *shoalBinary == "" {
		dir, err := os.MkdirTemp("", "shoal-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		*shoalBinary, err = lab.BuildShoal(ctx, dir, raceEnabled)
		stop()
		if err != nil {
			fmt.Fprintln(os.Stderr, "end-to-end tests:", err)
			return 1
		}
	}
	return m.Run()
}

// newLab makes a laboratory that ends with the test. Its nodes run Shoal, and
// keep containerd's files in memory.
func newLab(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	c.Shoal = *shoalBinary
	return newPlainLab(t, c)
}

// newPlainLab is newLab without Shoal.
func newPlainLab(t *testing.T, c lab.Config) *lab.Lab {
	t.Helper()
	c.Memory = true
	c.Log = zerolog.New(zerolog.NewTestWriter(t))
	l, err := lab.New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkRaces(t, l)
		if t.Failed() {
			keepLogs(t, l)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// checkRaces fails the test if a server of ours reported a data race.
func checkRaces(t *testing.T, l *lab.Lab) {
	for _, n := range l.Nodes() {
		p := n.Shoal()
		if p == nil {
			continue
		}
		log, err := os.ReadFile(p.LogPath)
		if err != nil {
			t.Error(err)
			continue
		}
		const length = 4000
		if at := bytes.Index(log, []byte("WARNING: DATA RACE")); at >= 0 {
			t.Errorf("%s: %s", n.Name, log[at:min(len(log), at+length)])
		}
	}
}

// keepLogs copies all logs to the test's artifacts and shows what is alarming
// in them.
func keepLogs(t *testing.T, l *lab.Lab) {
	logs, err := filepath.Glob(filepath.Join(l.Dir, "*", "*.log"))
	if err != nil {
		t.Error(err)
	}
	const most = 15
	for _, from := range logs {
		p, err := os.ReadFile(from)
		if err != nil {
			t.Error(err)
			continue
		}
		name := filepath.Base(filepath.Dir(from)) + "-" + filepath.Base(from)
		if err := os.WriteFile(filepath.Join(t.ArtifactDir(), name), p, 0o644); err != nil {
			t.Error(err)
		}
		var alarming []string
		for line := range strings.Lines(string(p)) {
			if strings.Contains(line, `"level":"error"`) || strings.Contains(line, `"level":"warn"`) ||
				strings.Contains(line, "level=error") || strings.HasPrefix(line, "panic:") {
				alarming = append(alarming, line)
			}
		}
		if len(alarming) > 0 {
			t.Logf("%s:\n%s", name, strings.Join(alarming[max(0, len(alarming)-most):], ""))
		}
	}
}

// push makes an image of incompressible layers that no other test has.
func push(t *testing.T, l *lab.Lab, name string, size int64, layers int) lab.Image {
	t.Helper()
	img, err := l.Push(t.Context(), lab.ImageSpec{
		Repository: "e2e/" + name, Tag: "v1", Size: size, Layers: layers, Seed: uint64(len(name)) + uint64(size),
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pull pulls on all nodes at once, runs a container on each, and returns how
// long each pull took.
func pull(t *testing.T, ref string, nodes ...*lab.Node) []time.Duration {
	t.Helper()
	p := startPull(t, ref, nodes...)
	return p.wait(t)
}

// pulling is a pull under way on some nodes.
type pulling struct {
	ref   string
	nodes []*lab.Node
	took  []time.Duration
	group errgroup.Group
}

func startPull(t *testing.T, ref string, nodes ...*lab.Node) *pulling {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	p := &pulling{ref: ref, nodes: nodes, took: make([]time.Duration, len(nodes))}
	for i, n := range nodes {
		p.group.Go(func() error {
			var err error
			if p.took[i], err = n.Pull(ctx, ref); err != nil {
				return fmt.Errorf("after %v: %w", p.took[i].Round(time.Millisecond), err)
			}
			return nil
		})
	}
	return p
}

// wait waits until all have landed and proves it by running a container.
func (p *pulling) wait(t *testing.T) []time.Duration {
	t.Helper()
	if err := p.group.Wait(); err != nil {
		t.Fatal(err)
	}
	for i, n := range p.nodes {
		t.Logf("%s pulled %s in %v", n.Name, p.ref, p.took[i].Round(time.Millisecond))
		out, err := n.Run(t.Context(), p.ref)
		if err != nil {
			t.Fatal(err)
		}
		if want := "hello from a container"; !strings.HasPrefix(out, want) {
			t.Fatalf("container on %s said %q, want %q", n.Name, out, want)
		}
	}
	return p.took
}

// meter counts what leaves the registry.
type meter struct {
	lab   *lab.Lab
	start lab.Traffic
}

func startMeter(t *testing.T, l *lab.Lab) meter {
	t.Helper()
	start, err := l.RegistryTraffic()
	if err != nil {
		t.Fatal(err)
	}
	return meter{l, start}
}

// copies of the image that left the registry since the start, by its
// interface's counter: headers, tokens and retransmissions are in it.
func (m meter) copies(t *testing.T, img lab.Image) float64 {
	t.Helper()
	now, err := m.lab.RegistryTraffic()
	if err != nil {
		t.Fatal(err)
	}
	return float64(now.Sub(m.start).Sent) / float64(img.Size())
}

// waitReceived waits until n has received so many bytes more than it had when
// from was read.
func waitReceived(t *testing.T, n *lab.Node, from lab.Traffic, bytes int64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s to receive %d bytes", n.Name, bytes), func() bool {
		return traffic(t, n).Sub(from).Received >= bytes
	})
}

func traffic(t *testing.T, n *lab.Node) lab.Traffic {
	t.Helper()
	now, err := n.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	return now
}

// metric reads one metric of a node's Shoal; 0 if it has none of that name.
func metric(t *testing.T, n *lab.Node, name string) float64 {
	t.Helper()
	m, err := n.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return m[name]
}

// eventually polls a condition of the outside world.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	const (
		patience = time.Minute
		interval = 20 * time.Millisecond
	)
	for deadline := time.Now().Add(patience); !is(); time.Sleep(interval) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func nodes(l *lab.Lab, indices ...int) []*lab.Node {
	var some []*lab.Node
	for _, i := range indices {
		some = append(some, l.Node(i))
	}
	return some
}

// serve answers on a machine of the laboratory until the test ends.
func serve(t *testing.T, on *lab.Machine, port string, h http.HandlerFunc) {
	t.Helper()
	listener, err := on.Listen(t.Context(), "tcp", "0.0.0.0:"+port)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: h}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}
