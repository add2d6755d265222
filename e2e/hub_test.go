//go:build e2e

package e2e

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestHub: eight nodes pull the same tag from a registry that counts requests, as
// Docker Hub does. Of each manifest it gives one copy, and the rest are HEADs,
// which the Hub does not count: one for each node, since each node's caller needs
// its consent. After that the registry is not needed, though all nodes restart.
func TestHub(t *testing.T) {
	const rate = 100 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 8, Rate: rate, RegistryRate: rate})
	img := push(t, l, "hub", 20e6, 2)
	asked := requestsTo(t, l.Registry)
	pull(t, img.Ref, l.Nodes()...)
	check := func(when string, gets, heads float64) {
		t.Helper()
		now := requestsTo(t, l.Registry)
		for _, k := range slices.Sorted(maps.Keys(now)) {
			if n := now[k] - asked[k]; n > 0 {
				t.Logf("%s: %.0f × %s", when, n, k)
			}
		}
		if n := now["GET manifest"] - asked["GET manifest"]; n != gets {
			t.Errorf("%s: %.0f GETs of manifests, want %.0f", when, n, gets)
			for _, n := range l.Nodes() {
				for _, line := range logged(t, n, img.Manifest.Digest) {
					t.Logf("%s: %+v", n.Name, line)
				}
			}
		}
		if n := now["HEAD manifest"] - asked["HEAD manifest"]; n > heads {
			t.Errorf("%s: %.0f HEADs of manifests, want at most %.0f", when, n, heads)
		}
		asked = now
	}
	check("cold", 1, 8)

	again := l.Node(0)
	if err := again.Remove(t.Context(), img.Ref); err != nil {
		t.Fatal(err)
	}
	pull(t, img.Ref, again)
	check("by one again", 0, 1)

	if err := l.CutRegistry(); err != nil {
		t.Fatal(err)
	}
	for _, n := range l.Nodes() {
		reboot(t, n)
		// Alone it would know nothing of what the registry has given to whom.
		if err := n.Meet(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// Two at a time, so that the others have what these are to get from them.
	for some := range slices.Chunk(l.Nodes(), 2) {
		var g errgroup.Group
		for _, n := range some {
			g.Go(func() error {
				for _, ref := range []string{img.Ref, img.ByDigest()} {
					if err := n.Remove(t.Context(), img.Ref); err != nil {
						return err
					}
					if _, err := n.Pull(t.Context(), ref); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			t.Errorf("without the registry: %v", err)
		}
	}
}

// requestsTo counts what a registry was asked for, by method and kind.
func requestsTo(t *testing.T, r *lab.Registry) map[string]float64 {
	t.Helper()
	m, err := r.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := map[string]float64{}
	for sample, v := range m {
		if !strings.HasPrefix(sample, "registry_http_requests_total{") {
			continue
		}
		n[strings.ToUpper(label(sample, "method"))+" "+label(sample, "handler")] += v
	}
	return n
}

// label is the value of a sample's label.
func label(sample, name string) string {
	_, rest, _ := strings.Cut(sample, name+`="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// reboot restarts Shoal and containerd, as an upgrade of the node does.
func reboot(t *testing.T, n *lab.Node) {
	t.Helper()
	if err := n.Shoal().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Containerd().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.StartShoal(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestParallelRanges: containerd from 2.1 on can fetch a layer in ranges, several
// at a time and out of order. About one copy leaves the registry, whichever way
// CRI pulls.
func TestParallelRanges(t *testing.T) {
	const rate = 100 * lab.Mbit
	const buffer = "  max_concurrent_downloads = 3\n  concurrent_layer_fetch_buffer = 4194304\n"
	l := newLab(t, lab.Config{Nodes: 4, Rate: rate, RegistryRate: rate, ContainerdConfig: []string{
		"[plugins.\"io.containerd.transfer.v1.local\"]\n" + buffer,
		"[plugins.\"io.containerd.cri.v1.images\"]\n  use_local_image_pull = true\n" + buffer,
	}})
	img := push(t, l, "parallel", 60e6, 2)
	m := startMeter(t, l)
	pull(t, img.Ref, l.Nodes()...)
	copies := m.copies(t, img)
	t.Logf("%.3f copies left the registry", copies)
	if copies > 1.1 {
		t.Errorf("%.3f copies left the registry, want at most 1.1", copies)
	}
	for _, n := range l.Nodes() {
		for _, layer := range img.Layers {
			lines := logged(t, n, layer.Digest)
			sent := int64(0)
			partial := 0
			for _, line := range lines {
				sent += line.Sent
				if line.Status == http.StatusPartialContent {
					partial++
				}
			}
			t.Logf("%s sent %d bytes of %d in %d answers, %d partial", n.Name, sent, layer.Size, len(lines), partial)
			if partial == 0 {
				t.Errorf("%s was asked for no range", n.Name)
			}
		}
	}
}
