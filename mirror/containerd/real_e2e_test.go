//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/shoal-dev/shoal/e2e/lab"
	"github.com/shoal-dev/shoal/swarm"
)

// daemonConfig leaves out what needs more than a directory: CRI, snapshotters,
// and /opt.
const daemonConfig = `version = 3
root = %q
state = %q
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.internal.v1.cri-cni",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.overlayfs",
]
[grpc]
  address = %q
[ttrpc]
  address = %q
`

// realCtrd is a private containerd.
type realCtrd struct {
	t                    *testing.T
	program, dir, socket string
	process              *exec.Cmd
	conn                 *grpc.ClientConn
	content              content.Store
}

// newReal does not start it.
func newReal(t *testing.T) *realCtrd {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("a private containerd needs root: run the e2e tier with sudo")
	}
	programs, err := lab.BuildPrograms(t.Context())
	if err != nil {
		t.Fatalf("build containerd: %v", err)
	}
	// containerd syncs all it writes; on memory that costs nothing.
	dir, err := os.MkdirTemp("/dev/shm", "ctrd")
	must(t, err)
	c := &realCtrd{t: t, program: programs.Containerd, dir: dir, socket: filepath.Join(dir, "s")}
	c.conn, err = grpc.NewClient("passthrough:///containerd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
		}))
	must(t, err)
	c.content = proxy.NewContentStore(c.conn)
	must(t, os.WriteFile(c.configPath(), fmt.Appendf(nil, daemonConfig,
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, c.socket+".ttrpc"), 0o600))
	t.Cleanup(func() {
		c.kill()
		_ = c.conn.Close()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *realCtrd) configPath() string { return filepath.Join(c.dir, "config.toml") }

// start runs the daemon and waits until it serves.
func (c *realCtrd) start() *realCtrd {
	c.t.Helper()
	logPath := filepath.Join(c.dir, "log")
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(c.t, err)
	defer log.Close()
	c.process = exec.Command(c.program, "--config", c.configPath())
	c.process.Stdout, c.process.Stderr = log, log
	c.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The kernel kills the child with the thread that started it.
	runtime.LockOSThread()
	must(c.t, c.process.Start())
	ctx, cancel := context.WithTimeout(c.t.Context(), patience)
	defer cancel()
	for {
		c.conn.ResetConnectBackoff()
		_, err := namespacesapi.NewNamespacesClient(c.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
		if err == nil {
			return c
		}
		if ctx.Err() != nil {
			out, _ := os.ReadFile(logPath)
			c.t.Fatalf("containerd does not start: %v\n%s", err, out)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (c *realCtrd) kill() {
	if c.process != nil {
		_ = c.process.Process.Kill()
		_ = c.process.Wait() // killed
		c.process = nil
	}
}

func (c *realCtrd) namespace(name string) context.Context {
	c.t.Helper()
	_, err := namespacesapi.NewNamespacesClient(c.conn).Create(c.t.Context(),
		&namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: name}})
	must(c.t, err)
	return namespaces.WithNamespace(c.t.Context(), name)
}

func (c *realCtrd) put(ctx context.Context, p []byte, labels map[string]string) digest.Digest {
	c.t.Helper()
	d := digest.FromBytes(p)
	must(c.t, content.WriteBlob(ctx, c.content, d.String(), bytes.NewReader(p),
		ocispec.Descriptor{Digest: d, Size: int64(len(p))}, content.WithLabels(labels)))
	return d
}

// lease returns a context whose content is held by nothing but the lease, and
// what ends the lease and collects.
func (c *realCtrd) lease(ctx context.Context, id string) (context.Context, func()) {
	c.t.Helper()
	leases := leasesapi.NewLeasesClient(c.conn)
	_, err := leases.Create(ctx, &leasesapi.CreateRequest{ID: id})
	must(c.t, err)
	return metadata.AppendToOutgoingContext(ctx, "containerd-lease", id), func() {
		c.t.Helper()
		_, err := leases.Delete(ctx, &leasesapi.DeleteRequest{ID: id, Sync: true})
		must(c.t, err)
	}
}

// soon is how long the cluster may believe in content that is gone: "within
// seconds".
const soon = 3 * time.Second

// within measures.
func within(t *testing.T, what string, limit time.Duration, fn func()) {
	t.Helper()
	began := time.Now()
	fn()
	took := time.Since(began)
	t.Logf("%s: %v", what, took.Round(time.Millisecond))
	if took > limit {
		t.Errorf("%s: %v, want at most %v", what, took, limit)
	}
}

// untuned runs a Store as it comes.
func untuned(p *pace) {
	p.settle, p.minGap, p.followUp = 100*time.Millisecond, time.Second, 5*time.Second
}

// A Store follows a real containerd through its life.
func TestRealContainerd(t *testing.T) {
	c := newReal(t)
	s, cl := start(t, Config{Socket: c.socket, Reconcile: time.Hour}, untuned)
	if s.Ready() {
		t.Fatal("ready without containerd")
	}
	c.start()
	within(t, "noticed containerd that came late", 2*retryMax, func() { ready(t, s) })

	k8s, other := c.namespace("k8s.io"), c.namespace("default")
	shared := data(1 << 20)
	big := data(5 << 20)
	var want []digest.Digest
	within(t, "announced new content", soon, func() {
		want = []digest.Digest{
			c.put(k8s, shared, keep), c.put(k8s, big, keep), c.put(k8s, data(10), keep), c.put(other, data(20), keep),
		}
		c.put(other, shared, keep)
		cl.wait(want...)
	})

	w, err := c.content.Writer(k8s, content.WithRef("half"), content.WithDescriptor(ocispec.Descriptor{Size: 100}))
	must(t, err)
	half := data(50)
	_, err = w.Write(half)
	must(t, err)
	if s.Has(digest.FromBytes(half)) {
		t.Error("an ingest is held")
	}

	for _, d := range want {
		if got := digest.FromBytes(readAll(t, s, d)); got != d {
			t.Errorf("read %s, got %s", d, got)
		}
	}
	if n := testutil.ToFloat64(s.met.opens.WithLabelValues("file")); n != float64(len(want)) {
		t.Errorf("%v blobs were read as files, want all %d", n, len(want))
	}

	// Deleted in one namespace, then in the other.
	must(t, c.content.Delete(k8s, want[0]))
	last := c.put(k8s, data(30), keep)
	cl.wait(append([]digest.Digest{last}, want...)...)
	must(t, c.content.Delete(other, want[0]))
	leases, collect := c.lease(other, "gc")
	gone := c.put(leases, data(40), nil)
	want = append(want[1:], last)
	cl.wait(append([]digest.Digest{gone}, want...)...) // a shared file is collected only now
	within(t, "withdrew what was collected", soon, func() { collect(); cl.wait(want...) })

	// Somebody with root's rights puts a link in a blob's place.
	path := filepath.Join(c.dir, "root", contentPlugin, blobsPath, want[0].Encoded())
	must(t, os.Remove(path))
	must(t, os.Symlink("/etc/passwd", path))
	within(t, "withdrew a link", soon, func() { cl.wait(want[1:]...) })
	if _, err := s.Open(t.Context(), want[0]); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("open a link: %v", err)
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, big, 0o444))
	within(t, "took the blob back", soon, func() { cl.wait(want...) })

	// Killed, and back with less and more.
	c.kill()
	eventually(t, "not ready", func() bool { return !s.Ready() })
	if got := digest.FromBytes(readAll(t, s, want[0])); got != want[0] {
		t.Errorf("read while containerd is down: %s", got)
	}
	c.start()
	must(t, c.content.Delete(k8s, want[1]))
	late := c.put(other, data(60), keep)
	within(t, "caught up with a restarted containerd", 2*retryMax, func() { cl.wait(want[0], want[2], want[3], late) })
	ready(t, s)
}

// Where its directory cannot be read, a real containerd is read through its
// API, and what garbage collection takes is found by comparison.
func TestRealContainerdAPI(t *testing.T) {
	c := newReal(t).start()
	k8s := c.namespace("k8s.io")
	p := data(7<<20 + 13)
	d := c.put(k8s, p, keep)
	s, cl := start(t, Config{Socket: c.socket, Root: "/nonexistent", Reconcile: time.Second}, untuned)
	cl.wait(d)
	ready(t, s)
	r, err := s.Open(t.Context(), d)
	must(t, err)
	defer r.Close()
	checkReader(t, r, p)
	if n := testutil.ToFloat64(s.met.opens.WithLabelValues("api")); n != 1 {
		t.Errorf("%v blobs were read through the API, want 1", n)
	}
	leases, collect := c.lease(k8s, "gc")
	gone := c.put(leases, data(40), nil)
	within(t, "announced by an event", soon, func() { cl.wait(d, gone) })
	within(t, "withdrew what was collected without a word", soon, func() { collect(); cl.wait(d) })
	again := c.put(k8s, data(50), keep)
	cl.wait(d, again)
	must(t, c.content.Delete(k8s, again))
	within(t, "withdrew by an event", soon, func() { cl.wait(d) })
}

// An idle Store with 1,000 blobs needs next to nothing.
func TestRealContainerdMemory(t *testing.T) {
	const blobs, limit = 1000, 2 << 20
	c := newReal(t).start()
	k8s := c.namespace("k8s.io")
	// More labels than life brings: they must not be kept.
	labels := map[string]string{"containerd.io/gc.root": "x"}
	for i := range 5 {
		labels[fmt.Sprintf("containerd.io/distribution.source.registry-%d.example.com", i)] = "some/repository,some/other/repository"
	}
	want := make([]digest.Digest, 0, blobs)
	for i := range blobs {
		want = append(want, c.put(k8s, fmt.Appendf(nil, "blob %d", i), labels))
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // also what finalizers and pools held
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	s, cl := start(t, Config{Socket: c.socket, Reconcile: 100 * time.Millisecond})
	within(t, "found 1,000 blobs", soon, func() { cl.wait(want...) })
	eventually(t, "more walks", func() bool { return testutil.ToFloat64(s.met.walks) >= 4 })
	grown := heap() - before
	t.Logf("heap for %d blobs after several walks: %d KiB", blobs, grown>>10)
	if grown > limit {
		t.Errorf("heap grew by %d bytes, want at most %d", grown, limit)
	}
	best := time.Hour
	for range 10 {
		began := time.Now()
		n := 0
		must(t, s.daemon.walk(t.Context(), "k8s.io", func(key, int64, []key) { n++ }))
		if n != blobs {
			t.Fatalf("a walk sees %d blobs", n)
		}
		best = min(best, time.Since(began))
	}
	t.Logf("one walk over %d blobs: %v", blobs, best.Round(100*time.Microsecond))
	began := time.Now()
	for _, d := range want {
		k, _ := keyOf(d)
		if size, err := s.daemon.info(t.Context(), "k8s.io", k); err != nil || size == 0 {
			t.Fatalf("%s: %d bytes, %v", d, size, err)
		}
	}
	t.Logf("one question: %v", (time.Since(began) / blobs).Round(time.Microsecond))
}
