//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestRemoved: what containerd removes is withdrawn within seconds, and a node
// that pulls it at that very moment lands all the same.
func TestRemoved(t *testing.T) {
	const rate = 200 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 3, Rate: rate, RegistryRate: rate, Containerd: allVersions})
	img := push(t, l, "removed", 30e6, 3)
	held := func(n *lab.Node) float64 { return metric(t, n, "shoal_swarm_held_blobs") }
	blobs := float64(len(img.Layers) + 2)
	pull(t, img.Ref, l.Nodes()...)
	for _, n := range l.Nodes() {
		eventually(t, n.Name+" to share from containerd's store alone", func() bool {
			return held(n) == blobs && metric(t, n, "shoal_cache_bytes") == 0
		})
	}
	for i, n := range l.Nodes() {
		began := time.Now()
		if err := n.Remove(t.Context(), img.Ref); err != nil {
			t.Fatal(err)
		}
		if i == len(l.Nodes())-1 {
			// Of all that were told of the last holder, some do not know yet.
			pull(t, img.Ref, l.Node(0))
			if n := metric(t, l.Node(0), "shoal_mirror_fallbacks_total"); n != 0 {
				t.Errorf("the mirror left %v requests to the registry", n)
			}
		}
		eventually(t, n.Name+" to withdraw the image", func() bool { return held(n) == 0 })
		t.Logf("%s withdrew it within %v", n.Name, time.Since(began).Round(time.Millisecond))
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("%s took %v", n.Name, took)
		}
	}
}

// TestImported: an image that was imported, and is not labelled with where it is
// from, is shared as one that was pulled.
func TestImported(t *testing.T) {
	const rate = 200 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 3, Rate: rate, RegistryRate: rate, Containerd: allVersions})
	img := push(t, l, "imported", 30e6, 3)
	archive := filepath.Join(t.TempDir(), "image.tar")
	from, importer, last := l.Node(0), l.Node(1), l.Node(2)
	// It has the image from the registry, and shares it with nobody.
	if err := from.Shoal().Stop(); err != nil {
		t.Fatal(err)
	}
	pull(t, img.Ref, from)
	if _, err := from.Ctr(t.Context(), "images", "export", "--local", archive, img.Ref); err != nil {
		t.Fatal(err)
	}
	if _, err := importer.Ctr(t.Context(), "images", "import", archive); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the image to be shared", func() bool {
		return metric(t, importer, "shoal_swarm_held_blobs") >= float64(len(img.Layers)+2)
	})
	unlabelled := func(n *lab.Node) string {
		for _, f := range examine(t, n) {
			if f.ID == "content-unlabelled" {
				return f.Severity + ": " + strings.Join(f.Evidence, "\n")
			}
		}
		return ""
	}
	// The archive may have an index of its own.
	var count, total int
	got := unlabelled(importer)
	if _, err := fmt.Sscanf(got, "note: %d of %d blobs have no label", &count, &total); err != nil || count != total || count < len(img.Layers)+2 {
		t.Errorf("the doctor says %q of the imported image, want all of %d blobs at least: %v", got, len(img.Layers)+2, err)
	}
	if got := unlabelled(from); got != "" {
		t.Errorf("the doctor says %q of the pulled image", got)
	}
	time.Sleep(time.Second) // announcements are collected
	m := startMeter(t, l)
	pull(t, img.ByDigest(), last)
	copies := m.copies(t, img)
	t.Logf("%.4f copies left the registry", copies)
	if copies > 0.01 {
		t.Errorf("%.4f copies left the registry, want none", copies)
	}
}
