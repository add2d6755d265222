//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// Headings of containerd's configuration files.
const (
	headCRI    = `[plugins."io.containerd.grpc.v1.cri".registry]`
	headImages = `[plugins."io.containerd.cri.v1.images".registry]`
)

// configFault is a configuration of containerd's. Its own is that of the
// laboratory, with which Shoal is asked.
type configFault struct {
	name string
	// edit changes containerd's file, and dropIn is another one that it imports.
	edit   func(string) string
	dropIn string
	// relative tells to import it by a path that is relative.
	relative bool
	// want is what the doctor says, worse than notes. Empty: containerd asks Shoal.
	want []string
	// note is one that is expected besides.
	note string
	// down tells that CRI does not come up.
	down bool
	// inDropIn tells that the fix is for the imported file, and also does what the
	// fix says beside lines to write.
	inDropIn bool
	also     func(string) string
}

// testConfigFaults starts containerd with configurations that keep it from Shoal,
// sees it pull past Shoal, has the doctor say why, does what the doctor says, and
// sees it pull through Shoal.
func testConfigFaults(t *testing.T, l *lab.Lab) {
	replace := func(pairs ...string) func(string) string { return strings.NewReplacer(pairs...).Replace }
	certs := func(n *lab.Node) string { return fmt.Sprintf("config_path = %q", n.HostsDir()) }
	mirrors := "\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"" + lab.RegistryHost + "\"]\n  endpoint = [\"http://" + lab.RegistryHost + "\"]\n"
	const another = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  max_concurrent_downloads = 5\n"
	const legacyHead = "[plugins.\"io.containerd.cri.v1.images\".registry.mirrors"
	legacy := strings.Replace(mirrors, "[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors", legacyHead, 1)
	without := func(text, what string) string { return strings.Replace(text, what, "", 1) }
	version4 := replace("version = 3", "version = 4", "[grpc]", `[plugins."io.containerd.server.v1.grpc"]`, headImages, headCRI)

	n, old, debian := l.Node(0), l.Node(1), l.Node(2)
	two := replace(n.HostsDir()+`"`, n.HostsDir()+`:/etc/docker/certs.d"`)
	for _, node := range []struct {
		*lab.Node
		faults []configFault
	}{
		{n, []configFault{
			{name: "two directories", edit: two, want: []string{"config-path-two", "bypassed"}},
			{name: "two directories without the transfer service", note: "config-path-two", edit: func(s string) string {
				return two(s) + "[plugins.\"io.containerd.cri.v1.images\"]\n  use_local_image_pull = true\n"
			}},
			{name: "layers thrown away", note: "discard-unpacked-layers", edit: func(s string) string {
				return s + "[plugins.\"io.containerd.cri.v1.images\"]\n  discard_unpacked_layers = true\n"
			}},
			{name: "not set", edit: func(s string) string { return without(s, certs(n)) }, want: []string{"config-path-unset", "bypassed"}},
			{name: "a section of 1.x in version 3", edit: replace(headImages, headCRI)},
			{name: "a section of 1.x in version 4", edit: version4, want: []string{"config-plugin", "bypassed"}},
			{name: "a section of 2.x in version 2", edit: replace("version = 3", "version = 2")},
			{
				name: "mirrors", edit: func(s string) string { return without(s, certs(n)) + legacy },
				want: []string{"config-legacy", "bypassed"}, also: func(s string) string { return without(s, legacy) },
			},
			{
				name: "mirrors and config_path", edit: func(s string) string { return s + legacy }, down: true,
				want: []string{"config-legacy", "bypassed"}, also: func(s string) string { return without(s, legacy) },
			},
			{
				name: "an import that comes later", dropIn: "version = 3\n" + headImages + "\n  config_path = \"/etc/other\"\n",
				want: []string{"config-overridden", "bypassed"}, inDropIn: true, relative: true,
			},
			{
				name: "an import of a higher version", dropIn: "version = 4\n", down: true,
				want: []string{"containerd-unreachable", "config-refused", "not-ready", "bypassed"}, inDropIn: true,
				also: replace("version = 4", "version = 3"),
			},
		}},
		{old, []configFault{
			{name: "1.7, two directories", edit: replace(old.HostsDir()+`"`, old.HostsDir()+`:/etc/docker/certs.d"`)},
			{name: "1.7, a section of 2.x", edit: replace(headCRI, headImages), want: []string{"config-plugin", "bypassed"}},
			{
				name: "1.7, an import with another setting", dropIn: another, relative: true,
				want: []string{"config-overridden", "bypassed"}, inDropIn: true,
			},
		}},
		{debian, []configFault{
			{
				name: "1.6, an import with another setting", dropIn: another,
				want: []string{"config-overridden", "bypassed"}, inDropIn: true,
			},
			{name: "1.6, an import that it does not find", dropIn: another, relative: true},
		}},
	} {
		good, err := os.ReadFile(node.ContainerdConfig())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range node.faults {
			t.Run(f.name, func(t *testing.T) { f.test(t, l, node.Node, string(good)) })
		}
		restart(t, node.Node, string(good), "")
	}
}

func (f configFault) test(t *testing.T, l *lab.Lab, n *lab.Node, good string) {
	text := good
	if f.edit != nil {
		if text = f.edit(good); text == good {
			t.Fatal("the fault changes nothing")
		}
	}
	if f.dropIn != "" {
		pattern := "conf.d/*.toml"
		if !f.relative {
			pattern = filepath.Join(filepath.Dir(n.ContainerdConfig()), pattern)
		}
		text = strings.Replace(text, "\n", fmt.Sprintf("\nimports = [%q]\n", pattern), 1) // after the version
	}
	if f.down {
		restartDown(t, n, text, f.dropIn)
	} else {
		restart(t, n, text, f.dropIn)
		if through := pulledThrough(t, l, n); through != (len(f.want) == 0) {
			t.Errorf("a pull goes through Shoal: %v", through)
		}
	}
	found := examine(t, n)
	if got := worse(found); !slices.Equal(got, f.want) {
		t.Errorf("%q, want %q", got, f.want)
	}
	if f.note != "" && !slices.ContainsFunc(found, func(n finding) bool { return n.ID == f.note && n.Severity == "note" }) {
		t.Errorf("%+v has no note %s", found, f.note)
	}
	if len(f.want) == 0 || t.Failed() {
		return
	}
	cause := found[slices.IndexFunc(found, func(f finding) bool { return strings.HasPrefix(f.ID, "config-") })]
	healed, dropIn := &text, f.dropIn
	if f.inDropIn {
		healed = &dropIn
		if !strings.Contains(cause.Fix, "imported.toml") && !strings.Contains(strings.Join(cause.Evidence, " "), "imported.toml") {
			t.Errorf("the imported file is named neither in %q nor in %q", cause.Evidence, cause.Fix)
		}
	}
	if f.also != nil {
		*healed = f.also(*healed)
	}
	*healed = obey(*healed, cause.Fix)
	restart(t, n, text, dropIn)
	if got := diagnose(t, n); len(got) > 0 {
		t.Errorf("after the fix %q: %q", cause.Fix, got)
	}
	if !pulledThrough(t, l, n) {
		t.Error("after the fix a pull does not go through Shoal")
	}
}

// obey writes the lines of a fix into a file: below the heading, if it is there.
func obey(text, fix string) string {
	at := strings.Index(fix, "[plugins.")
	if at < 0 {
		return text
	}
	head, rest, _ := strings.Cut(fix[at:], "\n")
	line, _, _ := strings.Cut(rest, "\n")
	before, after, there := strings.Cut(text, head+"\n")
	if !there {
		return text + head + "\n" + line + "\n"
	}
	old, later, _ := strings.Cut(after, "\n")
	if !strings.Contains(old, "config_path") {
		later = after
	}
	return before + head + "\n" + line + "\n" + later
}

// restart stops containerd, if it runs, and starts it with a configuration. Shoal
// follows.
func restart(t *testing.T, n *lab.Node, config, dropIn string, env ...string) {
	t.Helper()
	stopAndWrite(t, n, config, dropIn)
	if err := n.StartContainerd(t.Context(), env...); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Shoal to follow containerd again", func() bool { return metric(t, n, "shoal_containerd_up") == 1 })
}

// restartDown is restart with a configuration with which CRI does not come up.
func restartDown(t *testing.T, n *lab.Node, config, dropIn string) {
	t.Helper()
	stopAndWrite(t, n, config, dropIn)
	// containerd answers within a second, when it does.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := n.StartContainerd(ctx); err == nil {
		t.Fatal("CRI has come up")
	}
	select {
	case <-n.Containerd().Done():
		eventually(t, "Shoal to notice", func() bool { return metric(t, n, "shoal_containerd_up") == 0 })
	default:
		eventually(t, "Shoal to follow containerd again", func() bool { return metric(t, n, "shoal_containerd_up") == 1 })
	}
}

func stopAndWrite(t *testing.T, n *lab.Node, config, dropIn string) {
	t.Helper()
	if err := n.Containerd().Stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "Shoal to notice", func() bool { return metric(t, n, "shoal_containerd_up") == 0 })
	dir := filepath.Join(filepath.Dir(n.ContainerdConfig()), "conf.d")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if dropIn != "" {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "imported.toml"), dropIn)
	}
	write(t, n.ContainerdConfig(), config)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// pulledThrough pulls an image that no node has and tells whether it came through
// Shoal. Where no hosts.toml is read, containerd asks the registry itself, as it does
// any: by TLS, which that of the laboratory does not speak.
func pulledThrough(t *testing.T, l *lab.Lab, n *lab.Node) bool {
	t.Helper()
	const landed = `shoal_mirror_landed_blobs_total{through=%q}`
	seed := uint64(time.Now().UnixNano())
	img, err := l.Push(t.Context(), lab.ImageSpec{Repository: fmt.Sprintf("e2e/doctor-%d", seed), Tag: "v1", Size: 4e6, Layers: 1, Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	count := func(way string) float64 { return metric(t, n, fmt.Sprintf(landed, way)) }
	mirror, elsewhere := count("mirror"), count("elsewhere")
	if _, err := n.Pull(t.Context(), img.Ref); err != nil {
		if strings.Contains(err.Error(), "https://"+lab.RegistryHost) {
			return false
		}
		t.Fatal(err)
	}
	const blobs = 2 // manifest and config: the layer may be thrown away before it is counted
	eventually(t, "the image to be counted", func() bool { return count("mirror")+count("elsewhere") >= mirror+elsewhere+blobs })
	if m, e := count("mirror")-mirror, count("elsewhere")-elsewhere; m > 0 && e > 0 {
		t.Errorf("%v blobs through Shoal and %v past it", m, e)
	}
	return count("mirror") > mirror
}
