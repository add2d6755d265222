//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestIdleMemory: a node that does nothing but know of a thousand blobs in
// containerd's store is small.
func TestIdleMemory(t *testing.T) {
	const (
		blobs = 1000
		limit = 60 * mib
	)
	if raceEnabled {
		t.Skip("measured without the race detector")
	}
	l := newLab(t, lab.Config{Nodes: 3})
	n := l.Node(0)
	fillContainerd(t, n, blobs)
	eventually(t, "Shoal to know of all blobs", func() bool {
		return metric(t, n, "shoal_swarm_held_blobs") >= blobs
	})
	// Announcing them takes a moment more, and the runtime gives memory back
	// over some minutes: this is the size soon after, not the smallest.
	const settle = 5 * time.Second
	time.Sleep(settle)
	u, err := n.Shoal().Usage()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("idle with %d blobs: RSS %.1f MiB, of which %.1f MiB are not files", blobs,
		float64(u.RSS)/mib, float64(u.Anon)/mib)
	if u.RSS > limit {
		t.Errorf("RSS %d MiB, want at most %d", u.RSS/mib, limit/mib)
	}
}

// TestRelaxed: Shoal runs with the timers that spare its runtime most of the naps,
// and after containerd where a processor is short, without a setting of the host's,
// and is found by its name.
func TestRelaxed(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 1})
	own, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Of all threads: the runtime's monitor is the one that matters.
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", l.Node(0).Shoal().PID()))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads %v: %v", threads, err)
	}
	for _, thread := range threads {
		id := filepath.Base(thread)
		name, err := os.ReadFile(filepath.Join("/proc", id, "comm"))
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.TrimSpace(string(name)); s != "shoal" {
			t.Errorf("thread %s is called %q", id, s)
		}
		got, err := os.ReadFile(filepath.Join("/proc", id, "timerslack_ns"))
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.TrimSpace(string(got)); s != "1000000" {
			t.Errorf("thread %s has a timer slack of %s ns", id, s)
		}
		tid, err := strconv.Atoi(id)
		if err != nil {
			t.Fatal(err)
		}
		// getpriority(2) gives 20 minus the nice level.
		if p, err := unix.Getpriority(unix.PRIO_PROCESS, tid); err != nil || own-p != 5 {
			t.Errorf("thread %s: nice level %d (%v), the test's own is %d", id, 20-p, err, 20-own)
		}
	}
}

// fillContainerd writes blobs into containerd's store that no image refers to
// and no collection takes.
func fillContainerd(t *testing.T, n *lab.Node, blobs int) {
	t.Helper()
	c, err := client.New(n.ContainerdSocket(), client.WithDefaultNamespace("k8s.io"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	store := c.ContentStore()
	for i := range blobs {
		p := bytes.Repeat(fmt.Appendf(nil, "blob %d\n", i), 512)
		desc := ocispec.Descriptor{Digest: digest.FromBytes(p), Size: int64(len(p))}
		err := content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(p), desc,
			content.WithLabels(map[string]string{"containerd.io/gc.root": "e2e"}))
		if err != nil {
			t.Fatalf("write blob %d: %v", i, err)
		}
	}
}
