package chart

import (
	"bufio"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// TestMistakes: nonsense is refused, and the message says where it is.
func TestMistakes(t *testing.T) {
	for _, tt := range []struct{ name, values, want string }{
		{"unknown value", "imgae: {}", "additional properties 'imgae' not allowed"},
		{"unknown value below", "image: {name: x}", "at '/image': additional properties 'name' not allowed"},
		{"unknown distribution", "distribution: openshift", "at '/distribution': value must be one of '', 'k3s', 'rke2', 'k0s', 'talos', 'eks', 'aks', 'gke'"},
		{"digest without algorithm", "image: {digest: abc}", "at '/image/digest': 'abc' does not match pattern"},
		{"digest in the repository", "image: {repository: 'x@sha256:1'}", "at '/image/repository'"},
		{"port too large", "ports: {wire: 65536}", "at '/ports/wire': maximum: got 65,536, want 65,535"},
		{"port as a string", "ports: {wire: '6502'}", "at '/ports/wire': got string, want integer"},
		{"no such mode", "tls: {mode: none}", "at '/tls/mode': value must be one of 'helm', 'secret', 'certManager', 'insecure'"},
		{"secret without name", "tls: {mode: secret}", "at '/tls/secretName'"},
		{"no such authorization", "authorization: {docker.io: all}", "at '/authorization/docker.io': value must be one of 'upstream', 'node', 'none'"},
		{"relative path", "data: {dir: var/lib/shoal}", "at '/data/dir'"},
		{"data in the root", "data: {dir: /shoal}", "at '/data/dir'"},
		{"hosts in the root", "containerd: {hostsDir: /hosts}", "containerd.hostsDir: /hosts: its parent directory gets mounted, and cannot be the root of the node"},
		{"no size", "data: {cacheSize: big}", "at '/data/cacheSize'"},
		{"negative size", "data: {cacheSize: -1}", "at '/data/cacheSize'"},
		{"cluster with a space", "cluster: 'a b'", "at '/cluster'"},
		{"cluster with two dots", "cluster: a..b", "at '/cluster'"},
		{"pattern as directory", "configure: {registries: ['*.gcr.io']}", "at '/configure/registries/0'"},
		{"path as registry", "configure: {registries: [docker.io/library]}", "at '/configure/registries/0'"},
		{"authority from nowhere", "customCAs: [{registry: x}]", "at '/customCAs/0'"},
		{"authority from two", "customCAs: [{registry: x, secret: a, configMap: b}]", "at '/customCAs/0'"},
		{"unknown setting", "config: {tag_ttl: 1s}", "at '/config': additional properties 'tag_ttl' not allowed"},
		{"setting of another value", "config: {cache-size: 1GiB}", "at '/config': additional properties 'cache-size' not allowed"},
		{"no time", "config: {tag-ttl: soon}", "at '/config/tag-ttl'"},
		{"no policy", "config: {on-outage: allow}", "at '/config/on-outage': value must be one of 'allow-recent', 'deny'"},
		{"drain as time", "drainSeconds: 20s", "at '/drainSeconds': got string, want integer"},
		{"memory", "resources: {limits: {memory: lots}}", "at '/resources/limits/memory'"},
		{"tolerations as a map", "tolerations: {operator: Exists}", "at '/tolerations': got object, want array"},
		{"credentials of no use", "credentials: {secretName: x}", "credentials.secretName: of no use: no registry has authorization node"},
		{"two at one port", "ports: {wire: 6500}", "ports: mirror and wire are both 6500"},
		{"data in the hosts directory", "data: {dir: /etc/containerd}", "data.dir: /etc/containerd: is mounted for something else"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "values.yaml")
			writeFile(t, file, tt.values)
			_, err := template(t, "--values", file)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s\nis answered: %v\nwant: %s", tt.values, err, tt.want)
			}
		})
	}
}

// TestEveryValue: what the schema admits is in values.yaml, and so in the README.
func TestEveryValue(t *testing.T) {
	var schema, values map[string]any
	for file, into := range map[string]*map[string]any{"values.schema.json": &schema, "values.yaml": &values} {
		text, err := os.ReadFile(filepath.Join(chartDir, file))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	var walk func(path string, schema, values map[string]any)
	walk = func(path string, schema, values map[string]any) {
		properties, _ := schema["properties"].(map[string]any)
		for name, p := range properties {
			v, ok := values[name]
			if !ok && path+name != "global" { // which is Helm's
				t.Errorf("%s is not in values.yaml", path+name)
			}
			// An empty map is documented as a whole.
			if below, ok := v.(map[string]any); ok && len(below) > 0 && !strings.HasSuffix(name, "resources") {
				walk(path+name+".", p.(map[string]any), below)
			}
		}
	}
	walk("", schema, values)
}

// managed are the settings that the chart makes from values of its own, by the
// environment or not at all.
var managed = []string{
	"config", "cluster", "node", "data-dir", "cache-size", "containerd-socket", "containerd-root",
	"mirror-addr", "control-addr", "wire-addr", "gossip-addr", "metrics-addr", "advertise-addr", "join",
	"certs-dir", "insecure-peers", "registry", "registry-ca", "docker-config", "authorization", "drain",
}

// TestEverySetting: each setting of the program can be set, in one way.
func TestEverySetting(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Properties struct {
			Config struct {
				Properties map[string]any `json:"properties"`
			} `json:"config"`
		} `json:"properties"`
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	has := slices.Sorted(slices.Values(append(slices.Collect(maps.Keys(schema.Properties.Config.Properties)), managed...)))
	want := slices.Sorted(slices.Values(flagsOf(t, "shoal serve")))
	if !slices.Equal(has, want) {
		t.Errorf("config in values.schema.json and what the chart sets itself:\n%q\nshoal serve has:\n%q", has, want)
	}
}

// flagsOf are the flags of a command, as the reference has them.
func flagsOf(t *testing.T, command string) (flags []string) {
	t.Helper()
	f, err := os.Open("../../docs/reference/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	row := regexp.MustCompile("^\\| `--([a-z-]+)")
	in := false
	for s := bufio.NewScanner(f); s.Scan(); {
		if title, ok := strings.CutPrefix(s.Text(), "## "); ok {
			in = title == command
		}
		if m := row.FindStringSubmatch(s.Text()); in && m != nil {
			flags = append(flags, m[1])
		}
	}
	if len(flags) < 20 {
		t.Fatalf("the reference has %d flags of %s", len(flags), command)
	}
	return flags
}

// TestDistributions: the presets are what docs/distributions says.
func TestDistributions(t *testing.T) {
	text, err := os.ReadFile("../../docs/distributions/README.md")
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| \\[[^]]+\\]\\(([a-z0-9]+)\\.md\\)[^|]* \\| `([^`]+)`").FindAllStringSubmatch(string(text), -1) {
		hosts[m[1]] = m[2]
	}
	if len(hosts) != 8 {
		t.Fatalf("the table has %d rows: %v", len(hosts), hosts)
	}
	for name, dir := range hosts {
		page, err := os.ReadFile("../../docs/distributions/" + name + ".md")
		if err != nil {
			t.Fatal(err)
		}
		set := "distribution=" + name
		if name == "containerd" {
			set = "distribution="
		}
		text, err := template(t, "--set", set)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, "--hosts-dir="+dir+`"`) {
			t.Errorf("%s: the chart does not configure %s", name, dir)
		}
		socket := "/run/containerd/containerd.sock"
		if m := regexp.MustCompile("containerd's socket is `([^`]+)`").FindStringSubmatch(string(page)); m != nil {
			socket = m[1]
		}
		if !strings.Contains(text, "containerd-socket: "+socket+"\n") {
			t.Errorf("%s: the chart does not use %s", name, socket)
		}
		stays := regexp.MustCompile(`(?i)\bstay on watch\b`).Match(page)
		watches := slices.ContainsFunc(find[*apps.DaemonSet](t, render(t, "--set", set), "shoal").Spec.Template.Spec.Containers,
			func(c core.Container) bool { return c.Name == "watch" })
		if watches != stays {
			t.Errorf("%s: stays on watch: %v, want %v", name, watches, stays)
		}
	}
}
