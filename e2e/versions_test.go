//go:build e2e

package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// allVersions of containerd, on the nodes of one cluster.
var allVersions = []lab.Containerd{lab.ContainerdNewest, lab.Containerd17, lab.ContainerdDebian}

// TestVersions: nodes with different versions of containerd pull together, by the
// kubelet's way, ctr's and nerdctl's, and everything goes through their mirrors.
func TestVersions(t *testing.T) {
	const rate = 100 * lab.Mbit
	l := newLab(t, lab.Config{Nodes: 3, Rate: rate, RegistryRate: rate, Containerd: allVersions})
	nerdctl, err := lab.BuildNerdctl(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"2.", "1.7.", "1."} {
		got, err := l.Node(i).ContainerdVersion()
		if err != nil {
			t.Fatal(err)
		}
		// containerd github.com/containerd/containerd VERSION REVISION
		f := strings.Fields(got)
		t.Logf("%s has containerd %s", l.Node(i).Name, f[2])
		if !strings.HasPrefix(strings.TrimPrefix(f[2], "v"), want) {
			t.Errorf("%s has containerd %s, want %s", l.Node(i).Name, f[2], want)
		}
	}
	for _, c := range []struct {
		name string
		size int64 // the content depends on it
		pull func(*lab.Node, lab.Image) error
	}{
		{"tag", 60e6, func(n *lab.Node, img lab.Image) error { _, err := n.Pull(t.Context(), img.Ref); return err }},
		{"digest", 50e6, func(n *lab.Node, img lab.Image) error { _, err := n.Pull(t.Context(), img.ByDigest()); return err }},
		{"ctr", 40e6, func(n *lab.Node, img lab.Image) error {
			_, err := n.Ctr(t.Context(), "images", "pull", "--hosts-dir", n.HostsDir(), img.Ref)
			return err
		}},
		{"nerdctl", 30e6, func(n *lab.Node, img lab.Image) error {
			_, err := n.Output(t.Context(), nerdctl, "--address", n.ContainerdSocket(), "--namespace", "k8s.io",
				"--data-root", filepath.Join(n.Dir, "nerdctl"), "--hosts-dir", n.HostsDir(), "pull", "--quiet", img.Ref)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := push(t, l, c.name, c.size, 3)
			before := make([]lab.Metrics, len(l.Nodes()))
			for i, n := range l.Nodes() {
				var err error
				if before[i], err = n.Metrics(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			m := startMeter(t, l)
			var g errgroup.Group
			for _, n := range l.Nodes() {
				g.Go(func() error { return c.pull(n, img) })
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			copies := m.copies(t, img)
			t.Logf("%.3f copies left the registry", copies)
			if copies > 1.1 {
				t.Errorf("%.3f copies left the registry, want at most 1.1", copies)
			}
			blobs := float64(len(img.Layers) + 2)
			for i, n := range l.Nodes() {
				delta := func(name string) float64 { return metric(t, n, name) - before[i][name] }
				eventually(t, n.Name+" to count what has landed", func() bool {
					return delta(`shoal_mirror_landed_blobs_total{through="mirror"}`) == blobs
				})
				if past := delta(`shoal_mirror_landed_blobs_total{through="elsewhere"}`); past != 0 {
					t.Errorf("%s: %v blobs came past the mirror", n.Name, past)
				}
				if asked := delta(`shoal_mirror_requests_total{cache="hit", registry="`+lab.RegistryHost+`"}`) +
					delta(`shoal_mirror_requests_total{cache="miss", registry="`+lab.RegistryHost+`"}`); asked < blobs {
					t.Errorf("%s counted %v requests, want one for each of %v blobs at least", n.Name, asked, blobs)
				}
				for _, l := range img.Layers {
					if lines := logged(t, n, l.Digest); len(lines) == 0 || lines[0].Status != http.StatusOK || lines[0].Source == "local" ||
						lines[0].Origin+lines[0].Peers < l.Size*9/10 {
						t.Errorf("%s has logged %+v of a layer of %d bytes", n.Name, lines, l.Size)
					}
				}
				if out, err := n.Run(t.Context(), img.Ref); c.name != "digest" && (err != nil || !strings.HasPrefix(out, "hello")) {
					t.Errorf("%s: a container says %q, %v", n.Name, out, err)
				}
			}
			if t.Failed() {
				return
			}
			// Removed by one, it comes back from the others.
			if err := l.CutRegistry(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := l.RestoreRegistry(); err != nil {
					t.Fatal(err)
				}
			}()
			for _, n := range l.Nodes() {
				ref := img.Ref
				if c.name == "digest" {
					ref = img.ByDigest()
				}
				if err := n.Remove(t.Context(), ref); err != nil {
					t.Fatal(err)
				}
				if err := c.pull(n, img); err != nil {
					t.Errorf("without the registry: %v", err)
				}
			}
		})
	}
}

// pullLine is a line of a node's log about a request to its mirror.
type pullLine struct {
	Message, Method, Ref, Source string
	Status                       int
	Sent                         int64
	Origin                       int64 `json:"origin_bytes"`
	Peers                        int64 `json:"peer_bytes"`
}

// logged are the lines about a blob.
func logged(t *testing.T, n *lab.Node, d digest.Digest) (lines []pullLine) {
	t.Helper()
	text, err := os.ReadFile(n.Shoal().LogPath)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var l pullLine
		if json.Unmarshal([]byte(line), &l) == nil && l.Message == "pull" && l.Ref == d.String() {
			lines = append(lines, l)
		}
	}
	return lines
}
