package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Names of the plugin whose registry.config_path counts, by the version of the
// configuration file that stands in.
const (
	criPlugin    = "io.containerd.grpc.v1.cri"   // version 2, containerd 1.x
	imagesPlugin = "io.containerd.cri.v1.images" // version 3, containerd 2.x
)

// maxConfigs bounds the files that imports lead to.
const maxConfigs = 100

// containerdConfig is what matters here of one of containerd's files.
type containerdConfig struct {
	path    string
	Version int
	Imports []string
	Plugins map[string]struct {
		Registry *struct {
			ConfigPath *string `toml:"config_path"`
			Mirrors    map[string]any
			Configs    map[string]any
		}
		DiscardUnpacked bool `toml:"discard_unpacked_layers"`
		Containerd      struct {
			DiscardUnpacked bool `toml:"discard_unpacked_layers"`
		}
	}
}

// readConfigs reads a file and those that it imports, in the order in which
// containerd does: what comes later counts.
func readConfigs(e *Env, path string, seen map[string]bool) ([]containerdConfig, error) {
	if seen[path] || len(seen) >= maxConfigs {
		return nil, nil
	}
	seen[path] = true
	text, err := os.ReadFile(e.path(path))
	if err != nil {
		return nil, err
	}
	c := containerdConfig{path: path}
	if err := toml.Unmarshal(text, &c); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return nil, fmt.Errorf("%s: line %d: %w", path, line, err)
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	all := []containerdConfig{c}
	for _, pattern := range c.Imports {
		if !filepath.IsAbs(pattern) {
			pattern = filepath.Join(filepath.Dir(path), pattern)
		}
		found, err := filepath.Glob(e.path(pattern))
		if err != nil {
			return nil, fmt.Errorf("%s: imports %q: %w", path, pattern, err)
		}
		for _, f := range found {
			if e.Root != "/" {
				f = strings.TrimPrefix(f, e.Root)
			}
			more, err := readConfigs(e, f, seen)
			if err != nil {
				return nil, err
			}
			all = append(all, more...)
		}
	}
	return all, nil
}

// lines are what has to stand in a file of the given version.
func lines(version int, hostsDir string) string {
	plugin := imagesPlugin
	if version < 3 {
		plugin = criPlugin
	}
	return fmt.Sprintf("version = %d\n[plugins.%q.registry]\n  config_path = %q\nand restart containerd; running containers go on", version, plugin, hostsDir)
}

// checkConfig looks whether containerd reads hosts.toml files at all.
func checkConfig(e *Env) []Finding {
	configs, err := readConfigs(e, e.Config, map[string]bool{})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Finding{{
			ID: "config-path-unset", Severity: Error, Title: "containerd is not told where hosts.toml files are",
			Evidence:    []string{err.Error()},
			Consequence: "containerd goes by its defaults, with which pulls of the kubelet read no hosts.toml and ask the registries",
			Fix:         "write " + e.Config + " with\n" + lines(3, e.HostsDir) + "\n(version 2 and \"" + criPlugin + "\" with containerd 1.x)",
		}}
	case errors.Is(err, fs.ErrPermission):
		return []Finding{{
			ID: "not-examined", Severity: Note, Title: "containerd's configuration was not examined",
			Evidence:    []string{err.Error()},
			Consequence: "nothing is known of config_path",
			Fix:         "run the doctor as root, on the node or in Shoal's pod",
		}}
	case err != nil:
		return []Finding{{
			ID: "config-unparsable", Severity: Error, Title: "containerd's configuration cannot be used",
			Evidence:    []string{err.Error()},
			Consequence: "containerd does not start with it: it still runs with what it read before",
			Fix:         "correct the file, then restart containerd",
		}}
	}
	return judge(e, configs)
}

// judge says what is wrong with the files taken together.
func judge(e *Env, configs []containerdConfig) []Finding {
	var all []Finding
	main := configs[0]
	version := max(main.Version, 2)
	var set, setIn string
	for _, c := range configs {
		for _, name := range []string{criPlugin, imagesPlugin} {
			p, ok := c.Plugins[name]
			if !ok {
				continue
			}
			if p.DiscardUnpacked || p.Containerd.DiscardUnpacked {
				all = append(all, Finding{
					ID: "discard-unpacked-layers", Severity: Note, Title: "containerd throws layers away once they are unpacked",
					Evidence:    []string{c.path + ": discard_unpacked_layers = true"},
					Consequence: "this node serves others from its piece store (--cache-size) instead of containerd's, for as long as blobs stay there",
					Fix:         "nothing; for more to be shared, raise --cache-size or set discard_unpacked_layers = false",
				})
			}
			if p.Registry == nil {
				continue
			}
			if len(p.Registry.Mirrors) > 0 || len(p.Registry.Configs) > 0 {
				all = append(all, Finding{
					ID: "config-legacy", Severity: Error, Title: "registry.mirrors or registry.configs are in use",
					Evidence:    []string{c.path + ": plugins.\"" + name + "\".registry"},
					Consequence: "containerd cannot have them together with config_path, and reads no hosts.toml with them",
					Fix:         "move them to hosts.toml files below " + e.HostsDir + ", then set\n" + lines(version, e.HostsDir),
				})
			}
			if p.Registry.ConfigPath == nil {
				continue
			}
			if right := rightPlugin(c, main); name != right {
				all = append(all, Finding{
					ID: "config-plugin", Severity: Error, Title: "config_path stands in a section that counts for nothing",
					Evidence:    []string{fmt.Sprintf("%s is of version %d, and sets it in plugins.%q", c.path, c.Version, name)},
					Consequence: "containerd passes over it without a word, and reads no hosts.toml",
					Fix:         fmt.Sprintf("move it to plugins.%q.registry in the same file, and restart containerd", right),
				})
				continue
			}
			set, setIn = *p.Registry.ConfigPath, c.path
		}
	}
	dirs := strings.Split(set, ":")
	switch {
	case set == "":
		all = append(all, Finding{
			ID: "config-path-unset", Severity: Error, Title: "containerd is not told where hosts.toml files are",
			Evidence:    []string{"config_path is set in none of " + strings.Join(paths(configs), ", ")},
			Consequence: "pulls of the kubelet read no hosts.toml, and ask the registries",
			Fix:         "add to " + main.path + "\n" + lines(version, e.HostsDir),
		})
	case len(dirs) > 1:
		all = append(all, Finding{
			ID: "config-path-two", Severity: Error, Title: "config_path has more than one directory",
			Evidence:    []string{fmt.Sprintf("%s: config_path = %q", setIn, set)},
			Consequence: "pulls of the kubelet take it for one path, which does not exist, and ask the registries",
			Fix:         "in " + setIn + " set\n" + lines(version, e.HostsDir),
		})
	case filepath.Clean(set) != filepath.Clean(e.HostsDir):
		all = append(all, Finding{
			ID: "config-path-elsewhere", Severity: Error, Title: "containerd reads hosts.toml files elsewhere",
			Evidence:    []string{fmt.Sprintf("%s: config_path = %q, and Shoal configures %s", setIn, set, e.HostsDir)},
			Consequence: "containerd does not see what Shoal has configured",
			Fix:         "configure that directory ('shoal configure --hosts-dir " + set + "', containerd.hostsDir in the chart), or set\n" + lines(version, e.HostsDir),
		})
	}
	return all
}

// rightPlugin is the section that counts in a file. A file without a version is
// read like the one that imports it.
func rightPlugin(c, main containerdConfig) string {
	v := c.Version
	if v == 0 {
		v = main.Version
	}
	if v >= 3 {
		return imagesPlugin
	}
	return criPlugin
}

func paths(configs []containerdConfig) []string {
	var some []string
	for _, c := range configs {
		some = append(some, c.path)
	}
	return some
}
