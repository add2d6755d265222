package containerd

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/shoal-dev/shoal/swarm"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes a content store with one blob and returns its root.
func tree(t *testing.T, p []byte) (root string, k key) {
	t.Helper()
	root = t.TempDir()
	k, _ = keyOf(digest.FromBytes(p))
	must(t, os.MkdirAll(filepath.Join(root, blobsPath), 0o755))
	must(t, os.WriteFile(filepath.Join(root, blobsPath, k.hex()), p, 0o644))
	return root, k
}

// Only a directory that lies in the root is opened.
func TestOpenFiles(t *testing.T) {
	t.Parallel()
	p := []byte("content")
	for _, tc := range []struct {
		name string
		root func(t *testing.T, root string) string
		ok   bool
	}{
		{"the content store's root", func(_ *testing.T, root string) string { return root }, true},
		{"containerd's root", func(t *testing.T, root string) string {
			up := t.TempDir()
			must(t, os.Rename(root, filepath.Join(up, contentPlugin)))
			return up
		}, true},
		{"a link to the root", func(t *testing.T, root string) string {
			link := filepath.Join(t.TempDir(), "link")
			must(t, os.Symlink(root, link))
			return link
		}, true},
		{"nothing there", func(t *testing.T, _ string) string { return t.TempDir() }, false},
		{"not absolute", func(t *testing.T, root string) string {
			wd, err := os.Getwd()
			must(t, err)
			rel, err := filepath.Rel(wd, root)
			must(t, err)
			return rel
		}, false},
		{"empty", func(*testing.T, string) string { return "" }, false},
		{"blobs lead out", func(t *testing.T, root string) string {
			fresh := t.TempDir()
			must(t, os.Symlink(filepath.Join(root, "blobs"), filepath.Join(fresh, "blobs")))
			return fresh
		}, false},
		{"sha256 leads out", func(t *testing.T, root string) string {
			fresh := t.TempDir()
			must(t, os.Mkdir(filepath.Join(fresh, "blobs"), 0o755))
			rel, err := filepath.Rel(filepath.Join(fresh, "blobs"), filepath.Join(root, blobsPath))
			must(t, err)
			must(t, os.Symlink(rel, filepath.Join(fresh, blobsPath)))
			return fresh
		}, false},
		{"a file", func(t *testing.T, _ string) string {
			fresh := t.TempDir()
			must(t, os.Mkdir(filepath.Join(fresh, "blobs"), 0o755))
			must(t, os.WriteFile(filepath.Join(fresh, blobsPath), p, 0o644))
			return fresh
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			root, k := tree(t, p)
			f, err := openFiles(tc.root(t, root))
			if (err == nil) != tc.ok {
				t.Fatalf("open: %v", err)
			}
			if err != nil {
				return
			}
			defer f.close()
			b, err := f.open(k, int64(len(p)))
			must(t, err)
			must(t, b.Close())
		})
	}
}

// Only a regular file of the right size is opened, and nothing blocks.
func TestOpenBlob(t *testing.T) {
	t.Parallel()
	p := []byte("content")
	for _, tc := range []struct {
		name string
		make func(t *testing.T, path string)
		size int64
		want error
	}{
		{"right", func(*testing.T, string) {}, 7, nil},
		{"shorter", func(*testing.T, string) {}, 8, errDamaged},
		{"longer", func(*testing.T, string) {}, 6, errDamaged},
		{"absent", func(t *testing.T, path string) { must(t, os.Remove(path)) }, 7, fs.ErrNotExist},
		{"link to a file outside", func(t *testing.T, path string) {
			out := filepath.Join(t.TempDir(), "secret")
			must(t, os.WriteFile(out, p, 0o644))
			must(t, os.Remove(path))
			must(t, os.Symlink(out, path))
		}, 7, errDamaged},
		{"link to a file inside", func(t *testing.T, path string) {
			must(t, os.Rename(path, path+"x"))
			must(t, os.Symlink(filepath.Base(path)+"x", path))
		}, 7, errDamaged},
		{"pipe", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, unix.Mkfifo(path, 0o644))
		}, 0, errDamaged},
		{"directory", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			must(t, os.Mkdir(path, 0o755))
		}, 4096, errDamaged},
		{"socket", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			// The path is too long for a socket, so it is moved there.
			dir, err := os.MkdirTemp("", "s")
			must(t, err)
			defer os.RemoveAll(dir)
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			must(t, err)
			defer unix.Close(fd)
			must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "s")}))
			must(t, os.Rename(filepath.Join(dir, "s"), path))
		}, 0, errDamaged},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			root, k := tree(t, p)
			tc.make(t, filepath.Join(root, blobsPath, k.hex()))
			f, err := openFiles(root)
			must(t, err)
			defer f.close()
			b, err := f.open(k, tc.size)
			if !errors.Is(err, tc.want) {
				t.Errorf("open: %v, want %v", err, tc.want)
			}
			if b != nil {
				must(t, b.Close())
			}
			if err := f.check(k, tc.size); !errors.Is(err, tc.want) {
				t.Errorf("check: %v, want %v", err, tc.want)
			}
		})
	}
}

// asNobody calls fn without root's rights over files. The thread that loses
// them is not used again.
func asNobody(t *testing.T, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			if _, err := unix.SetfsgidRetGid(65534); err != nil {
				t.Error(err)
				return
			}
			if _, err := unix.SetfsuidRetUid(65534); err != nil {
				t.Error(err)
				return
			}
		}
		fn()
	}()
	<-done
}

// A directory that lets itself be listed but not searched, or not even that,
// is not readable.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	p := []byte("content")
	for mode, ok := range map[os.FileMode]bool{0o755: true, 0o700: false, 0o744: false, 0o711: false} {
		root, _ := tree(t, p)
		must(t, os.Chmod(filepath.Dir(root), 0o755))
		must(t, os.Chmod(root, 0o755))
		dir := filepath.Join(root, blobsPath)
		must(t, os.Chmod(dir, mode))
		if os.Geteuid() != 0 {
			must(t, os.Chmod(dir, mode&0o7|mode&0o7<<6))
		}
		asNobody(t, func() {
			f, err := openFiles(root)
			if (err == nil) != ok {
				t.Errorf("mode %v: %v", mode, err)
			}
			if err != nil && !errors.Is(err, fs.ErrPermission) {
				t.Errorf("mode %v: %v, want permission denied", mode, err)
			}
			if err == nil {
				_ = f.close()
			}
		})
		must(t, os.Chmod(dir, 0o755))
	}
}

// A file that is cut, as power failures leave them, is withdrawn, counted, and
// held again when it is whole.
func TestDamaged(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	p := data(1000)
	kept, d := c.put("k8s.io", data(10), nil), c.put("k8s.io", p, nil)
	reg := prometheus.NewPedanticRegistry()
	s, cl := start(t, Config{Socket: c.start().socket, Registerer: reg})
	cl.wait(kept, d)
	ready(t, s)
	must(t, os.Chmod(c.path(d), 0o644))
	must(t, os.Truncate(c.path(d), 500))
	cl.wait(kept)
	if _, err := s.Open(t.Context(), d); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	eventually(t, "metric", func() bool { return testutil.ToFloat64(s.met.damaged) == 1 })
	must(t, os.WriteFile(c.path(d), p, 0o644))
	cl.wait(kept, d)
	eventually(t, "metric", func() bool { return testutil.ToFloat64(s.met.damaged) == 0 })
	if n, err := testutil.GatherAndCount(reg); err != nil || n == 0 {
		t.Errorf("%d metrics, %v", n, err)
	}
}

// A file that somebody deletes, while this node looks or before, is not held,
// whatever containerd's metadata says, and held again once it is back.
func TestFileDeleted(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	p := data(1000)
	kept, before, d := c.put("k8s.io", data(10), nil), c.put("k8s.io", data(20), nil), c.put("k8s.io", p, nil)
	must(t, os.Remove(c.path(before)))
	s, cl := start(t, Config{Socket: c.start().socket})
	cl.wait(kept, d)
	ready(t, s)
	must(t, os.Remove(c.path(d)))
	cl.wait(kept)
	eventually(t, "metric", func() bool { return testutil.ToFloat64(s.met.damaged) == 2 })
	found, err := FindDamage(t.Context(), s.cfg)
	must(t, err)
	byDigest := func(a, b Damage) int { return strings.Compare(a.Digest.String(), b.Digest.String()) }
	slices.SortFunc(found, byDigest)
	want := []Damage{{before, 20, true}, {d, 1000, true}}
	slices.SortFunc(want, byDigest)
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
	must(t, os.WriteFile(c.path(d), p, 0o444))
	cl.wait(kept, d)
	eventually(t, "metric", func() bool { return testutil.ToFloat64(s.met.damaged) == 1 })
}

// A root that is not what containerd sees, whoever names it, costs the direct
// way and nothing else.
func TestForeignRoot(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, told, set string
	}{
		{name: "told relative", told: "../../../../etc"},
		{name: "told a file", told: "/etc/passwd"},
		{name: "told another directory", told: "/etc"},
		{name: "set to nothing", set: "/nonexistent"},
		{name: "set to an empty content store", set: "empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCtrd(t)
			if tc.told != "" {
				c.exported = tc.told
			}
			if tc.set == "empty" {
				tc.set = t.TempDir()
				must(t, os.MkdirAll(filepath.Join(tc.set, blobsPath), 0o755))
			}
			p := data(100)
			d := c.put("k8s.io", p, nil)
			s, cl := start(t, Config{Socket: c.start().socket, Root: tc.set})
			cl.wait(d)
			if got := digest.FromBytes(readAll(t, s, d)); got != d {
				t.Errorf("got %s", got)
			}
			if n := testutil.ToFloat64(s.met.opens.WithLabelValues("api")); n != 1 {
				t.Errorf("opened %v times through the API", n)
			}
		})
	}
}

// Labels are anybody's to write.
func TestHostileLabels(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	d := c.put("k8s.io", data(100), map[string]string{
		"containerd.io/distribution.source.../../etc": "../../passwd",
		"containerd.io/gc.ref.content":                "sha256:../../../etc/passwd",
	})
	s, cl := start(t, Config{Socket: c.start().socket})
	cl.wait(d)
	readAll(t, s, d)
	for _, name := range []digest.Digest{"", "../../x", "sha256:../../../../etc/passwd", "sha256:" + digest.Digest(d.Encoded()[:63]) + "/"} {
		if _, err := s.Open(t.Context(), name); !errors.Is(err, swarm.ErrNotFound) || s.Has(name) {
			t.Errorf("open %q: %v", name, err)
		}
	}
}

// A socket that takes connections and never answers holds nothing up.
func TestSilentDaemon(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	l, err := net.Listen("unix", c.socket)
	must(t, err)
	defer l.Close()
	s, err := New(Config{Socket: c.socket})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func([]swarm.Held, []digest.Digest) { t.Error("told of something") }) }()
	conn, err := l.Accept()
	must(t, err)
	defer conn.Close()
	if s.Ready() {
		t.Error("ready")
	}
	if _, err := s.Open(ctx, digest.FromString("x")); !errors.Is(err, swarm.ErrNotFound) {
		t.Errorf("open: %v", err)
	}
	cancel()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(patience):
		t.Fatal("does not end")
	}
	must(t, s.Close())
}
