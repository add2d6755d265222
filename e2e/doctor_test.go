//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestDoctor makes real faults on real nodes and looks what the doctor says.
func TestDoctor(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 3, Containerd: allVersions})
	n := l.Node(0)
	together := func() bool { return metric(t, n, "shoal_members") == 3 }
	eventually(t, "the nodes to see each other", together)
	expect := func(name string, want ...string) {
		t.Helper()
		if got := diagnose(t, n); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}

	before := alarms(t, l.Node(1))
	expect("a healthy node")
	if got := alarms(t, l.Node(1))[len(before):]; len(got) > 0 {
		t.Errorf("the doctor leaves traces at another node: %q", got)
	}

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

	testConfigFaults(t, l)

	testProxyFault(t, n)

	testPeerFaults(t, l)
	testStorageFaults(t, l)
	testCertificateFaults(t, l)
	testHint(t, l, n)

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

// TestDoctorTellsLimits: a registry says, as Docker Hub does, how many pulls are left.
func TestDoctorTellsLimits(t *testing.T) {
	l := newLab(t, lab.Config{Nodes: 1, RegistryHeaders: map[string]string{
		"RateLimit-Limit": "100;w=21600", "RateLimit-Remaining": "7;w=21600",
	}})
	n := l.Node(0)
	if got := diagnose(t, n); len(got) > 0 {
		t.Errorf("before there is an image to ask for: %q", got)
	}
	pull(t, push(t, l, "limit", 4e6, 1).Ref, n)
	found := examine(t, n)
	if got := worse(found); !slices.Equal(got, []string{"upstream-limit"}) {
		t.Fatalf("%q", got)
	}
	if want := lab.RegistryHost + ": 7 of 100 pulls are left in a window of 6h0m0s"; !slices.Equal(found[0].Evidence, []string{want}) {
		t.Errorf("%q, want %q", found[0].Evidence, want)
	}
}

// testPeerFaults makes the first node's doctor look at another node that is narrow,
// away, and down.
func testPeerFaults(t *testing.T, l *lab.Lab) {
	n, other := l.Node(0), l.Node(1)
	expect := func(name, id, shows string) {
		t.Helper()
		found := examine(t, n)
		if got := worse(found); !slices.Equal(got, []string{id}) {
			t.Errorf("%s: %q, want %q", name, got, id)
		} else if seen := strings.Join(found[0].Evidence, "\n"); !strings.Contains(seen, other.Address) || !strings.Contains(seen, shows) {
			t.Errorf("%s: %q does not show %q", name, seen, shows)
		}
	}
	// Gossip's packets are smaller: it does not notice.
	if err := l.Narrow(other, 1410); err != nil {
		t.Fatal(err)
	}
	expect("large packets vanish", "peer-mtu", "up to 1400 bytes come through; of 1500 bytes")
	if got := metric(t, n, "shoal_members"); got != 3 {
		t.Errorf("%v members", got)
	}
	if err := l.Narrow(other, 0); err != nil {
		t.Fatal(err)
	}
	// A firewall that knows of TCP alone.
	command(t, other, "nft", "add table inet doctor { chain in { type filter hook input priority 0; udp dport "+lab.GossipPort+" drop; }; }")
	expect("datagrams vanish", "gossip-silent", "no answer")
	command(t, other, "nft", "delete table inet doctor")
	// A cable pulled out: all packets vanish.
	if err := other.Disconnect(); err != nil {
		t.Fatal(err)
	}
	expect("a node that cannot be reached", "peer-unreachable", "")
	if err := other.Reconnect(); err != nil {
		t.Fatal(err)
	}
	if err := other.Shoal().Kill(); err != nil {
		t.Fatal(err)
	}
	expect("a node without Shoal", "peer-down", "connection refused")
	if err := other.StartShoal(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the nodes to see each other again", func() bool { return metric(t, n, "shoal_members") == 3 })
	if got := diagnose(t, n); len(got) > 0 {
		t.Errorf("all is well again: %q", got)
	}
}

// testProxyFault gives containerd a proxy that is not there, and then what the
// doctor says to add.
func testProxyFault(t *testing.T, n *lab.Node) {
	config, err := os.ReadFile(n.ContainerdConfig())
	if err != nil {
		t.Fatal(err)
	}
	const proxy = "HTTP_PROXY=http://10.77.9.9:3128"
	restart(t, n, string(config), "", proxy)
	found := examine(t, n)
	if got := worse(found); !slices.Equal(got, []string{"proxy-unknown", "proxy-fails"}) {
		t.Fatalf("a proxy: %q", got)
	}
	_, line, _ := strings.Cut(found[1].Fix, "Environment=\"")
	line, _, _ = strings.Cut(line, "\"")
	if want := "NO_PROXY=registry.lab"; line != want {
		t.Errorf("the line to add is %q, want %q", line, want)
	}
	restart(t, n, string(config), "", proxy, line)
	if got := diagnose(t, n); len(got) > 0 {
		t.Errorf("with %s: %q", line, got)
	}
	restart(t, n, string(config), "")
}

// alarms are the warnings and errors in the log of a node's Shoal.
func alarms(t *testing.T, n *lab.Node) []string {
	t.Helper()
	log, err := os.ReadFile(n.Shoal().LogPath)
	if err != nil {
		t.Fatal(err)
	}
	var some []string
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, `"level":"warn"`) || strings.Contains(line, `"level":"error"`) {
			some = append(some, line)
		}
	}
	return some
}

// finding is one of the doctor's.
type finding struct {
	ID, Severity, Fix string
	Evidence          []string
}

// diagnose runs the doctor on a node with the settings of its Shoal, and returns
// the ids of what is worse than a note.
func diagnose(t *testing.T, n *lab.Node) []string {
	t.Helper()
	return worse(examine(t, n))
}

// worse are the ids of what is worse than a note.
func worse(findings []finding) []string {
	var ids []string
	for _, f := range findings {
		if f.Severity != "note" {
			ids = append(ids, f.ID)
		}
	}
	return ids
}

// examine runs the doctor on a node with the settings of its Shoal.
func examine(t *testing.T, n *lab.Node) []finding {
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
	var findings []finding
	if err := json.Unmarshal([]byte(out.String()), &findings); err != nil {
		t.Fatalf("%v: %s%s", err, out.String(), errs.String())
	}
	status := 0
	for _, f := range findings {
		t.Logf("%s [%s] %q", f.Severity, f.ID, f.Evidence)
		switch f.Severity {
		case "error":
			status = 7
		case "warning":
			status = max(status, 6)
		}
	}
	if code := cmd.ProcessState.ExitCode(); code != status {
		t.Errorf("exit status %d, want %d: %s", code, status, errs.String())
	}
	return findings
}
