package containerd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/opencontainers/go-digest"

	"github.com/shoal-dev/shoal/swarm"
)

func readAll(t *testing.T, s *Store, d digest.Digest) []byte {
	t.Helper()
	r, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// modes are the two ways to see a content store.
var modes = map[string]func(*ctrd){
	"files": func(*ctrd) {},
	"api":   func(c *ctrd) { c.exported = "" },
}

func inModes(t *testing.T, test func(t *testing.T, c *ctrd)) {
	for name, set := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCtrd(t)
			set(c)
			test(t, c)
		})
	}
}

// What is there at the start is told, from all namespaces, once; what is not
// committed is not.
func TestInventory(t *testing.T) {
	t.Parallel()
	inModes(t, func(t *testing.T, c *ctrd) {
		shared := data(100)
		want := []digest.Digest{
			c.put("k8s.io", data(1), nil),
			c.put("default", data(5000), nil),
			c.put("k8s.io", shared, nil),
		}
		c.put("moby", shared, nil)
		c.put("default", nil, nil) // the empty blob, which nobody needs to share
		begun := data(3000)
		w := c.ingest("k8s.io", begun)
		defer w.Close()

		s, cl := start(t, Config{Socket: "unix://" + c.start().socket})
		cl.wait(want...)
		ready(t, s)
		held, calls, _ := cl.state()
		if calls != 1 {
			t.Errorf("told in %d calls, want one batch", calls)
		}
		if held[want[1]] != 5000 {
			t.Errorf("size %d, want 5000", held[want[1]])
		}
		od := digest.FromBytes(begun)
		if _, err := s.Open(t.Context(), od); s.Has(od) || !errors.Is(err, swarm.ErrNotFound) {
			t.Errorf("an ingest in progress is held: %v", err)
		}
		for _, d := range want {
			if got := digest.FromBytes(readAll(t, s, d)); got != d {
				t.Errorf("read %s, got %s", d, got)
			}
		}
		if err := w.Commit(in(t, "k8s.io"), int64(len(begun)), od); err != nil {
			t.Fatal(err)
		}
		cl.wait(append(want, od)...)
	})
}

// Content that comes is told by events alone, or by the files alone.
func TestCreated(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		api    bool
		events func(string) bool
	}{
		{"events", true, open},
		{"files, as before 2.1", false, deaf},
		{"both", false, open},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c := newCtrd(t)
			if tc.api {
				c.exported = ""
			}
			// The directory is there once something was committed.
			first := c.put("k8s.io", data(10), nil)
			s, cl := start(t, Config{Socket: c.start().socket})
			cl.wait(first)
			ready(t, s)
			if tc.api {
				// The daemon takes a subscription in when it likes.
				sync := c.put("k8s.io", data(10), nil)
				eventually(t, "subscription", func() bool {
					c.publish("k8s.io", "/content/create", &apievents.ContentCreate{Digest: sync.String(), Size: 10})
					return s.Has(sync)
				})
				c.remove("k8s.io", sync)
				cl.wait(first)
			}
			c.publisher.block(tc.events)
			// A namespace that was not there, too.
			a, b := c.put("k8s.io", data(100), nil), c.put("new", data(200), nil)
			cl.wait(first, a, b)
		})
	}
}

// What an image refers to is kept, and the image. A layer that is there for a pull
// only is not, which is all that layers are to a containerd that discards them.
func TestKeeps(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	config, layer, other := c.put("k8s.io", data(10), nil), c.put("k8s.io", data(20), nil), c.put("moby", data(30), nil)
	manifest := c.put("k8s.io", data(40), map[string]string{
		"containerd.io/gc.ref.content.config": config.String(),
		"containerd.io/gc.ref.content.l.0":    "sha256:nonsense",
	})
	s, cl := start(t, Config{Socket: c.start().socket, Reconcile: 50 * time.Millisecond})
	cl.wait(config, layer, other, manifest)
	ready(t, s)
	kept := func(want ...digest.Digest) {
		t.Helper()
		eventually(t, "what is kept", func() bool {
			for _, d := range []digest.Digest{config, layer, other, manifest} {
				if s.Keeps(d) != slices.Contains(want, d) {
					return false
				}
			}
			return true
		})
	}
	kept(config, manifest)
	image := c.put("moby", data(50), map[string]string{"containerd.io/gc.ref.content.l.7": layer.String()})
	cl.wait(config, layer, other, manifest, image)
	kept(config, layer, manifest)
	c.remove("moby", image)
	cl.wait(config, layer, other, manifest)
	kept(config, manifest)
	if s.Keeps(image) || s.Keeps("sha256:nonsense") || s.Keeps("") {
		t.Error("keeps what is not there")
	}
}

// The directory of a new containerd appears with its first content.
func TestFirstContent(t *testing.T) {
	t.Parallel()
	c := newCtrd(t).start()
	s, _ := start(t, Config{Socket: c.socket})
	ready(t, s)
	if s.files.Load() != nil {
		t.Fatal("there is a directory already")
	}
	var first digest.Digest
	eventually(t, "first blob", func() bool { // the subscription may be under way
		first = c.put("k8s.io", data(10), keep)
		time.Sleep(50 * time.Millisecond)
		return s.Has(first)
	})
	if s.files.Load() == nil {
		t.Error("the directory is not read")
	}
	c.publisher.block(deaf)
	last := c.put("k8s.io", data(10), keep)
	eventually(t, "blob seen by the watch", func() bool { return s.Has(last) })
}

// Content is held as long as one namespace has it.
func TestDeleted(t *testing.T) {
	t.Parallel()
	inModes(t, func(t *testing.T, c *ctrd) {
		shared, other := data(100), data(200)
		d, o := c.put("a", shared, nil), c.put("a", other, nil)
		c.put("b", shared, nil)
		s, cl := start(t, Config{Socket: c.start().socket, Reconcile: 50 * time.Millisecond})
		cl.wait(d, o)
		for _, ns := range []string{"a", "b"} {
			if !s.Has(d) {
				t.Fatalf("not held, and namespace %s has it", ns)
			}
			c.remove(ns, d)
			c.put(ns, []byte(ns), nil)
			eventually(t, "what came later", func() bool { return s.Has(digest.FromString(ns)) })
		}
		cl.wait(o, digest.FromString("a"), digest.FromString("b"))
		if _, err := s.Open(t.Context(), d); !errors.Is(err, swarm.ErrNotFound) {
			t.Errorf("opening what was deleted: %v", err)
		}
	})
}

// Garbage collection tells nobody what it takes.
func TestCollected(t *testing.T) {
	t.Parallel()
	t.Run("files", func(t *testing.T) {
		t.Parallel()
		c := newCtrd(t)
		kept, d := c.put("k8s.io", data(10), keep), c.put("k8s.io", data(20), nil)
		_, cl := start(t, Config{Socket: c.start().socket})
		cl.wait(kept, d)
		c.publisher.block(deaf)
		c.collect()
		cl.wait(kept)
	})
	t.Run("api", func(t *testing.T) {
		t.Parallel()
		c := newCtrd(t)
		c.exported = ""
		kept, d := c.put("k8s.io", data(10), keep), c.put("k8s.io", data(20), nil)
		s, cl := start(t, Config{Socket: c.start().socket}, func(p *pace) { p.followUp = 200 * time.Millisecond })
		cl.wait(kept, d)
		// An image goes; the collection comes a moment later.
		eventually(t, "withdrawn", func() bool {
			c.publish("k8s.io", "/images/delete", &apievents.ImageDelete{Name: "x"})
			c.collect()
			time.Sleep(20 * time.Millisecond)
			return !s.Has(d)
		})
		cl.wait(kept)
	})
}

// What no event told is found by comparison.
func TestReconcile(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	c.exported = "" // no watch either
	kept, d := c.put("k8s.io", data(10), keep), c.put("k8s.io", data(20), nil)
	c.publisher.block(deaf)
	s, cl := start(t, Config{Socket: c.start().socket, Reconcile: 100 * time.Millisecond})
	cl.wait(kept, d)
	ready(t, s)
	c.collect()
	cl.wait(kept)
	late := c.put("other", data(30), nil)
	cl.wait(kept, late)
}

// Whoever finds that content is gone has it withdrawn.
func TestDoubt(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	c.exported = ""
	c.publisher.block(deaf)
	kept, d := c.put("k8s.io", data(10), keep), c.put("k8s.io", data(20), nil)
	s, cl := start(t, Config{Socket: c.start().socket})
	cl.wait(kept, d)
	c.collect()
	if _, err := s.Open(t.Context(), d); !errors.Is(err, swarm.ErrNotFound) {
		t.Fatalf("open: %v", err)
	}
	cl.wait(kept)
}

// A daemon may come late and go away; what it holds stays, and can be read if
// it is files.
func TestRestart(t *testing.T) {
	t.Parallel()
	inModes(t, func(t *testing.T, c *ctrd) {
		s, cl := start(t, Config{Socket: c.socket})
		kept, d := c.put("k8s.io", data(10), keep), c.put("k8s.io", data(20), nil)
		if s.Ready() {
			t.Fatal("ready without containerd")
		}
		c.start()
		cl.wait(kept, d)
		ready(t, s)

		c.stop()
		eventually(t, "not ready", func() bool { return !s.Ready() })
		if !s.Has(d) {
			t.Error("withdrawn with the daemon")
		}
		if c.exported != "" {
			readAll(t, s, d)
		} else if _, err := s.Open(t.Context(), d); !errors.Is(err, swarm.ErrUnavailable) {
			t.Errorf("open without daemon: %v", err)
		}
		c.collect()
		late := c.put("k8s.io", data(30), keep)
		c.start()
		cl.wait(kept, late)
		ready(t, s)
		c.publisher.block(old)
		c.publish("k8s.io", "/images/create", &apievents.ImageCreate{Name: "x"})
		last := c.put("k8s.io", data(40), keep)
		eventually(t, "found by the event of an image", func() bool {
			c.publish("k8s.io", "/images/create", &apievents.ImageCreate{Name: "x"})
			time.Sleep(20 * time.Millisecond)
			return s.Has(last)
		})
	})
}

// containerd's data is wiped while it is down.
func TestWiped(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	d := c.put("k8s.io", data(10), nil)
	s, cl := start(t, Config{Socket: c.start().socket})
	cl.wait(d)
	before := s.files.Load()
	c.remove("k8s.io", d)
	if err := os.RemoveAll(c.root + "/blobs"); err != nil {
		t.Fatal(err)
	}
	cl.wait()
	again := c.put("k8s.io", data(10), nil)
	cl.wait(again)
	eventually(t, "the new directory", func() bool {
		c.put("k8s.io", data(10), nil)
		time.Sleep(50 * time.Millisecond)
		return s.files.Load() != before
	})
	readAll(t, s, again)
}

// Events that are forged change nothing.
func TestForgedEvents(t *testing.T) {
	t.Parallel()
	c := newCtrd(t)
	c.exported = ""
	d := c.put("k8s.io", data(10), nil)
	s, cl := start(t, Config{Socket: c.start().socket})
	cl.wait(d)
	ready(t, s)
	nowhere := digest.FromString("not there")
	last := c.put("k8s.io", data(20), nil)
	eventually(t, "event", func() bool {
		for _, e := range []string{nowhere.String(), "", "sha256:../../../etc/passwd", "sha512:" + nowhere.Encoded(), "sha256:" + nowhere.Encoded()[1:]} {
			c.publish("k8s.io", "/content/create", &apievents.ContentCreate{Digest: e, Size: 1 << 40})
			c.publish("nowhere", "/content/delete", &apievents.ContentDelete{Digest: e})
		}
		c.publish("nowhere", "/content/delete", &apievents.ContentDelete{Digest: d.String()})
		c.publish("k8s.io", "/content/create", &apievents.ImageDelete{Name: "another type"})
		c.publish("k8s.io", "/content/create", &apievents.ContentCreate{Digest: last.String(), Size: 1})
		time.Sleep(20 * time.Millisecond)
		return s.Has(last)
	})
	cl.wait(d, last)
	if held, _, _ := cl.state(); held[last] != 20 {
		t.Errorf("size %d, as an event said, not as containerd knows", held[last])
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{{}, {Socket: "unix://"}, {Socket: "/x", Reconcile: -1}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}

// Hundreds of blobs that come at once, as the layers of one image may, are all found
// soon after the image is made, also if containerd is slow to answer.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	inModes(t, func(t *testing.T, c *ctrd) {
		c.slow = 20 * time.Millisecond
		first := c.put("k8s.io", data(10), nil)
		s, cl := start(t, Config{Socket: c.start().socket, Reconcile: time.Hour})
		cl.wait(first)
		ready(t, s)
		c.publisher.block(old)
		want := []digest.Digest{first}
		for image := range 2 {
			for i := range 300 {
				want = append(want, c.put("k8s.io", fmt.Appendf(nil, "layer %d of image %d", i, image), nil))
			}
			c.publish("k8s.io", "/images/create", &apievents.ImageCreate{Name: "image"})
			cl.wait(want...)
		}
	})
}
