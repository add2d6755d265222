//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestDoctor makes real faults on real nodes and looks what the doctor says.
func TestDoctor(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 2})
	n := l.Node(0)
	config := filepath.Join(filepath.Dir(n.HostsDir()), "config.toml")
	good := "version = 3\n[plugins.\"io.containerd.cri.v1.images\".registry]\n  config_path = \"" + n.HostsDir() + "\"\n"
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// Not the file that containerd was started with: what it says there is for
	// the doctor alone, and the canary tells what containerd does.
	write(config, good)
	eventually(t, "both nodes to see each other", func() bool { return metric(t, n, "shoal_members") == 2 })
	expect := func(name string, want ...string) {
		t.Helper()
		if got := diagnose(t, n); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}

	expect("a healthy node")

	// containerd asks the registry alone: the canary does not come, and the file
	// says why.
	if err := n.SetMirrors(); err != nil {
		t.Fatal(err)
	}
	expect("hosts.toml without the mirror", "hosts-without-mirror", "bypassed")
	if err := n.SetHosts("server = \"http://" + lab.RegistryHost + "\"\n[host.\"" + n.Mirror() + "\"\n"); err != nil {
		t.Fatal(err)
	}
	expect("an error in hosts.toml", "hosts-unparsable", "bypassed")
	if err := n.SetMirrors("http://127.0.0.1:1", n.Mirror()); err != nil {
		t.Fatal(err)
	}
	expect("another host first", "hosts-order")
	if err := n.SetMirrors(n.Mirror()); err != nil {
		t.Fatal(err)
	}

	write(config, strings.Replace(good, n.HostsDir(), n.HostsDir()+":/etc/docker/certs.d", 1))
	expect("two directories", "config-path-two")
	write(config, strings.Replace(good, "version = 3", "version = 2", 1))
	expect("a section of another version", "config-plugin", "config-path-unset")
	write(config, good)

	// A proxy in the environment of containerd's process.
	if err := n.Containerd().Stop(); err != nil {
		t.Fatal(err)
	}
	expect("containerd is away", "containerd-unreachable", "not-ready", "bypassed")
	if err := n.StartContainerd(t.Context(), "HTTP_PROXY=http://10.77.9.9:3128"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Shoal to follow containerd again", func() bool { return metric(t, n, "shoal_containerd_up") == 1 })
	expect("a proxy that Shoal does not know of", "proxy-unknown")
	if err := n.Containerd().Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.StartContainerd(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Shoal to follow containerd again", func() bool { return metric(t, n, "shoal_containerd_up") == 1 })

	// A cable pulled out: packets to the other node vanish.
	if err := l.Node(1).Disconnect(); err != nil {
		t.Fatal(err)
	}
	expect("a node that cannot be reached", "peer-unreachable")
	if err := l.Node(1).Reconnect(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both nodes to see each other again", func() bool { return metric(t, n, "shoal_members") == 2 })
	if err := l.CutRegistry(); err != nil {
		t.Fatal(err)
	}
	expect("no registry", "upstream-unreachable")
	if err := l.RestoreRegistry(); err != nil {
		t.Fatal(err)
	}
	if err := n.Shoal().Kill(); err != nil {
		t.Fatal(err)
	}
	expect("Shoal is away", "mirror-silent")
}

// diagnose runs the doctor on a node with the settings of its Shoal, and returns
// the ids of what is worse than a note.
func diagnose(t *testing.T, n *lab.Node) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, *shoalBinary, "doctor", "--output", "json", "--hosts-dir", n.HostsDir())
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, n.ShoalEnv()...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var findings []struct {
		ID, Severity string
		Evidence     []string
	}
	if err := json.Unmarshal([]byte(out.String()), &findings); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	var ids []string
	status := 0
	for _, f := range findings {
		t.Logf("%s [%s] %q", f.Severity, f.ID, f.Evidence)
		switch f.Severity {
		case "note":
			continue
		case "error":
			status = 7
		case "warning":
			status = max(status, 6)
		}
		ids = append(ids, f.ID)
	}
	if code := cmd.ProcessState.ExitCode(); code != status {
		t.Errorf("exit status %d, want %d: %s", code, status, errs.String())
	}
	return ids
}
