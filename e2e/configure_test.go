//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestConfigure: containerd pulls through what `shoal configure` has written,
// beside somebody's own mirror, and as before when it has been taken out.
func TestConfigure(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 1})
	n := l.Node(0)
	file := filepath.Join(n.HostsDir(), lab.RegistryHost, "hosts.toml")
	// A mirror of their own that is down: containerd goes on to the registry.
	theirs := fmt.Sprintf("# Ann's\r\nserver = %q\r\n\r\n# down on Mondays\r\n[host.\"http://127.0.0.1:9\"] # today\r\n  capabilities = [\"pull\", \"resolve\"]",
		"http://"+lab.RegistryHost)
	fallback := fmt.Sprintf("server = %q\n", "http://"+lab.RegistryHost)
	shoal := func(args ...string) {
		t.Helper()
		args = append(args, "--hosts-dir", n.HostsDir())
		if out, err := exec.CommandContext(t.Context(), *shoalBinary, args...).CombinedOutput(); err != nil {
			t.Fatalf("shoal %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	seed := 0
	// mirrored pulls an image that nobody has, and tells whether Shoal was asked.
	mirrored := func() bool {
		t.Helper()
		seed++
		img, err := l.Push(t.Context(), lab.ImageSpec{Repository: fmt.Sprintf("e2e/configure-%d", seed), Tag: "v1", Size: 10e6, Layers: 1, Seed: uint64(seed)})
		if err != nil {
			t.Fatal(err)
		}
		const received = `shoal_swarm_received_bytes_total{source="origin"}`
		before := metric(t, n, received)
		pull(t, img.Ref, n)
		return metric(t, n, received) >= before+float64(img.Size())/2
	}
	for _, c := range []struct {
		name string
		// directory of the registry, with the file, and what is in it.
		dir, text string
	}{
		{"own mirror", lab.RegistryHost, theirs},
		{"default", "_default", fallback},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.RemoveAll(n.HostsDir()); err != nil {
				t.Fatal(err)
			}
			file := strings.Replace(file, lab.RegistryHost, c.dir, 1)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(c.text), 0o640); err != nil {
				t.Fatal(err)
			}
			if mirrored() {
				t.Fatal("Shoal is asked before it is configured")
			}
			shoal("configure")
			if !mirrored() {
				t.Error("Shoal is not asked")
			}
			shoal("unconfigure")
			if mirrored() {
				t.Error("Shoal is asked after it is unconfigured")
			}
			got, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.text, string(got)); diff != "" {
				t.Errorf("unconfigured (-before +after):\n%s", diff)
			}
		})
	}

	t.Run("watch", func(t *testing.T) {
		if err := n.SetMirrors(); err != nil {
			t.Fatal(err)
		}
		watch := exec.CommandContext(t.Context(), *shoalBinary, "configure", "--watch", "--hosts-dir", n.HostsDir())
		watch.Stderr = os.Stderr
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		configured := func() bool {
			p, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(p), n.Mirror())
		}
		eventually(t, "the first configuration", configured)
		if err := n.SetMirrors(); err != nil { // as another program would
			t.Fatal(err)
		}
		eventually(t, "the repair", configured)
		if !mirrored() {
			t.Error("Shoal is not asked after the repair")
		}
		if err := watch.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := watch.Wait(); err != nil {
			t.Errorf("told to stop: %v", err)
		}
	})
}
