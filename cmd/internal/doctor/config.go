package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// maxConfigs bounds the files that imports lead to.
const maxConfigs = 100

// configFile is what matters here of one of containerd's files.
type configFile struct {
	path    string
	Version int
	Imports []string
	Plugins section
}

// readConfigs reads a file and those that it imports, in the order in which
// a release of containerd's does: all that a file imports, before what those import.
func readConfigs(e *Env, path string, r release) ([]configFile, error) {
	var all []configFile
	seen := map[string]bool{}
	for pending := []string{path}; len(pending) > 0 && len(all) < maxConfigs; {
		path, pending = pending[0], pending[1:]
		if seen[path] {
			continue
		}
		seen[path] = true
		c, err := readConfig(e, path)
		switch {
		case err != nil && len(all) > 0:
			return nil, fmt.Errorf("imported by %s: %v", all[0].path, err) //nolint:errorlint // that it does not exist is said of the first alone
		case err != nil:
			return nil, err
		}
		all = append(all, c)
		for _, pattern := range c.Imports {
			switch {
			case filepath.IsAbs(pattern):
			case strings.Contains(pattern, "*") && !r.atLeast(1, 7):
				pattern = "/" + pattern // below its working directory, that is
			default:
				pattern = filepath.Join(filepath.Dir(path), pattern)
			}
			if !strings.Contains(pattern, "*") {
				pending = append(pending, filepath.Clean(pattern))
				continue
			}
			found, err := filepath.Glob(e.path(pattern))
			if err != nil {
				return nil, fmt.Errorf("%s: imports %q: %w", path, pattern, err)
			}
			for _, f := range found {
				if e.Root != "/" {
					f = strings.TrimPrefix(f, e.Root)
				}
				pending = append(pending, f)
			}
		}
	}
	return all, nil
}

func readConfig(e *Env, path string) (configFile, error) {
	c := configFile{path: path}
	text, err := os.ReadFile(e.path(path))
	if err != nil {
		return c, err
	}
	if err := toml.Unmarshal(text, &c); err != nil {
		var at *toml.DecodeError
		if errors.As(err, &at) {
			line, _ := at.Position()
			return c, fmt.Errorf("%s: line %d: %w", path, line, err)
		}
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// lines are what has to stand in a file.
func lines(plugin, hostsDir string) string {
	return fmt.Sprintf("[plugins.%q.registry]\n  config_path = %q\nand restart containerd; running containers go on", plugin, hostsDir)
}

// checkConfig looks whether containerd, of a version as it says itself, reads
// hosts.toml files at all. An empty version is not known.
func checkConfig(e *Env, version string) []Finding {
	r, known := parseRelease(version)
	if !known {
		r = newest
	}
	files, err := readConfigs(e, e.Config, r)
	if !known {
		// What 1.x reads 2.x does too, but a file that was written for 1.x
		// mostly is of one.
		if len(files) > 0 && files[0].Version < 3 {
			r = release{1, 7}
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		head := "version = 3\n"
		if r.major < 2 {
			head = "version = 2\n"
		}
		return []Finding{{
			ID: "config-path-unset", Severity: Error, Title: "containerd is not told where hosts.toml files are",
			Evidence:    []string{err.Error()},
			Consequence: "containerd goes by its defaults, with which pulls of the kubelet read no hosts.toml and ask the registries",
			Fix:         "write " + e.Config + " with\n" + head + lines(r.plugin(), e.HostsDir),
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
			Consequence: "containerd does not start with it: if it runs, it does with what it read before",
			Fix:         "correct the file, then restart containerd",
		}}
	}
	return judge(e, r, files)
}

// judge says what is wrong with the files taken together.
func judge(e *Env, r release, files []configFile) []Finding {
	eff := merge(r, files)
	if eff.refused != "" {
		return []Finding{{
			ID: "config-refused", Severity: Error, Title: "containerd does not start with its configuration",
			Evidence:    []string{eff.refused},
			Consequence: "if containerd runs, it does with what it read before; after a restart it will not",
			Fix:         fmt.Sprintf("give the file a version that fits, with that version's sections (plugins.%q), and restart containerd", r.plugin()),
		}}
	}
	var all []Finding
	if eff.discard {
		all = append(all, Finding{
			ID: "discard-unpacked-layers", Severity: Note, Title: "containerd throws layers away once they are unpacked",
			Evidence:    []string{"discard_unpacked_layers = true in " + strings.Join(paths(files), ", ")},
			Consequence: "this node serves others from its piece store (--cache-size) instead of containerd's, for as long as blobs stay there",
			Fix:         "nothing; for more to be shared, raise --cache-size or set discard_unpacked_layers = false",
		})
	}
	if f, ok := judgeLegacy(e, r, eff, files); ok {
		return append(all, f)
	}
	return append(all, judgePath(e, r, eff, files)...)
}

// judgeLegacy looks for the ways of before hosts.toml.
func judgeLegacy(e *Env, r release, eff effective, files []configFile) (Finding, bool) {
	f := Finding{
		ID: "config-legacy", Severity: Error, Title: "registry.mirrors or registry.configs are in use",
		Consequence: "containerd asks the mirrors that are named there, or the registries, and reads no hosts.toml",
		Fix:         "move them to hosts.toml files below " + e.HostsDir + ", delete them, then have\n" + lines(r.plugin(), e.HostsDir),
	}
	if !eff.mirrors && (!eff.tls || r.major >= 2) {
		return f, false
	}
	for _, s := range settings(files) {
		for _, name := range []string{"mirrors", "configs"} {
			if len(sub(s.registry, name)) > 0 {
				f.Evidence = append(f.Evidence, fmt.Sprintf("%s: plugins.%q.registry.%s", s.file.path, s.plugin, name))
			}
		}
	}
	if eff.set {
		f.Evidence = append(f.Evidence, fmt.Sprintf("config_path = %q", eff.configPath))
		f.Consequence = "containerd's CRI plugin does not start with both of them and config_path: no pods, no pulls of the kubelet"
	}
	return f, true
}

// judgePath looks where pulls find hosts.toml files, and why not where they should.
func judgePath(e *Env, r release, eff effective, files []configFile) []Finding {
	dirs := slices.DeleteFunc(strings.Split(eff.configPath, ":"), func(d string) bool { return d == "" })
	named := slices.ContainsFunc(dirs, func(d string) bool { return filepath.Clean(d) == filepath.Clean(e.HostsDir) })
	last := settings(files)
	where := func(value string) string { return fmt.Sprintf("config_path = %q", value) }
	for _, s := range last {
		if s.registry["config_path"] == eff.configPath {
			where = func(value string) string { return fmt.Sprintf("%s: config_path = %q", s.file.path, value) }
		}
	}
	switch {
	case named && (len(dirs) == 1 || !r.atLeast(2, 1)):
		return nil
	case named && eff.local != "" && !eff.set:
		return nil // by the default
	case named && eff.local != "":
		return []Finding{{
			ID: "config-path-two", Severity: Note, Title: "config_path has more than one directory",
			Evidence:    []string{where(eff.configPath), "pulls do not go by the transfer service: " + eff.local},
			Consequence: "it works by chance: once that setting is gone, pulls of the kubelet take it for one path, which does not exist",
			Fix:         "have\n" + lines(r.plugin(), e.HostsDir),
		}}
	}
	// What is set rightly somewhere, and does not count, is the cause.
	for _, s := range last {
		value, _ := s.registry["config_path"].(string)
		if filepath.Clean(value) != filepath.Clean(e.HostsDir) || value == eff.configPath {
			continue
		}
		at := fmt.Sprintf("%s is of version %d, and sets config_path in plugins.%q", s.file.path, s.file.Version, s.plugin)
		if !counts(r, s, eff.version) {
			return []Finding{{
				ID: "config-plugin", Severity: Error, Title: "config_path stands in a section that counts for nothing",
				Evidence:    []string{at},
				Consequence: "containerd passes over it without a word, and reads no hosts.toml",
				Fix:         "move it, in " + s.file.path + ", to\n" + lines(r.plugin(), e.HostsDir),
			}}
		}
		if by := overrider(r, files, s); by != "" {
			return []Finding{{
				ID: "config-overridden", Severity: Error, Title: "an imported file takes config_path away",
				Evidence:    []string{at, by + " has that section too, and comes later"},
				Consequence: "it counts as " + fmt.Sprintf("%q", eff.configPath) + ": containerd does not see what Shoal has configured",
				Fix:         "add to " + by + ", or change there,\n" + lines(s.plugin, e.HostsDir),
			}}
		}
	}
	switch {
	case !eff.set:
		evidence := []string{"config_path is set in none of " + strings.Join(paths(files), ", ")}
		if eff.configPath != "" {
			evidence = append(evidence, fmt.Sprintf("containerd %d.%d then goes by %q, and pulls of the kubelet take that for one path", r.major, r.minor, eff.configPath))
		}
		return []Finding{{
			ID: "config-path-unset", Severity: Error, Title: "containerd is not told where hosts.toml files are",
			Evidence:    evidence,
			Consequence: "pulls of the kubelet read no hosts.toml, and ask the registries",
			Fix:         "add to " + files[0].path + "\n" + lines(r.plugin(), e.HostsDir),
		}}
	case named:
		return []Finding{{
			ID: "config-path-two", Severity: Error, Title: "config_path has more than one directory",
			Evidence:    []string{where(eff.configPath)},
			Consequence: "pulls of the kubelet take it for one path, which does not exist, and ask the registries",
			Fix:         "have there\n" + lines(r.plugin(), e.HostsDir),
		}}
	default:
		return []Finding{{
			ID: "config-path-elsewhere", Severity: Error, Title: "containerd reads hosts.toml files elsewhere",
			Evidence:    []string{where(eff.configPath) + ", and Shoal configures " + e.HostsDir},
			Consequence: "containerd does not see what Shoal has configured",
			Fix:         "configure that directory ('shoal configure --hosts-dir " + dirs[0] + "', containerd.hostsDir in the chart), or have there\n" + lines(r.plugin(), e.HostsDir),
		}}
	}
}

// setting is a section of registries in a file.
type setting struct {
	file     configFile
	plugin   string
	registry section
}

// settings are all of them, in the order in which files are read.
func settings(files []configFile) []setting {
	var all []setting
	for _, f := range files {
		for _, plugin := range []string{criPlugin1, criPlugin, imagesPlugin} {
			if p := sub(f.Plugins, plugin); p != nil {
				all = append(all, setting{f, plugin, sub(p, "registry")})
			}
		}
	}
	return all
}

// counts tells whether a release looks at a section; merged is the version of all
// files together.
func counts(r release, s setting, merged int) bool {
	switch {
	case s.plugin == imagesPlugin:
		return r.major >= 2
	case r.major < 2:
		return (s.plugin == criPlugin1) == (merged < 2)
	case s.plugin == criPlugin1 && s.file.Version >= 2:
		return false
	case r.atLeast(2, 3):
		return s.file.Version < r.fileVersion()
	default:
		return merged < r.fileVersion()
	}
}

// overrider is the last file after that of a setting that has a section which
// counts instead; empty if there is none.
func overrider(r release, files []configFile, s setting) string {
	by := ""
	for _, later := range settings(files[slices.IndexFunc(files, func(f configFile) bool { return f.path == s.file.path })+1:]) {
		whole := r.major < 2 && later.plugin == s.plugin // the rest of the section goes too
		if _, sets := later.registry["config_path"]; whole || sets && r.major >= 2 {
			by = later.file.path
		}
	}
	return by
}

func paths(files []configFile) []string {
	var some []string
	for _, f := range files {
		some = append(some, f.path)
	}
	return some
}
