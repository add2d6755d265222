package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/shoal-dev/shoal/mirror/containerd/hosts"
)

// checkHosts looks whether containerd is told to ask the mirror first.
func checkHosts(e *Env) []Finding {
	const repair = "run 'shoal configure' on the node (the chart's init container does)"
	states, err := hosts.Inspect(e.path(e.HostsDir))
	if err != nil {
		return []Finding{{
			ID: "hosts-missing", Severity: Error, Title: "there is no directory of hosts.toml files",
			Evidence:    []string{err.Error()},
			Consequence: "containerd asks every registry itself",
			Fix:         repair + "; with --hosts-dir, if containerd's config_path is another directory than " + e.HostsDir,
		}}
	}
	var all []Finding
	served := false
	for _, s := range states {
		whose := "images of " + s.Registry
		if s.Registry == hosts.Default {
			whose = "images of all registries without a directory"
		}
		at := s.At(e.Mirror)
		switch {
		case s.Err != nil:
			all = append(all, Finding{
				ID: "hosts-unparsable", Severity: Error, Title: "a hosts.toml cannot be used",
				Evidence:    []string{fmt.Sprintf("%s: %v", s.Path, s.Err)},
				Consequence: "containerd drops the whole file without a word, and asks the registry for " + whose,
				Fix:         "correct the line, then " + repair,
			})
		case at < 0:
			if s.Registry != hosts.Default && !e.Registries.Allowed(strings.ToLower(s.Registry)) {
				continue // none of ours
			}
			title := "hosts.toml does not name the mirror"
			if !s.Exists {
				title = "a directory without hosts.toml hides _default"
			}
			all = append(all, Finding{
				ID: "hosts-without-mirror", Severity: Error, Title: title,
				Evidence:    []string{fmt.Sprintf("%s: hosts %q, not %s", s.Path, s.Hosts, e.Mirror)},
				Consequence: "containerd does not ask Shoal for " + whose,
				Fix:         repair,
			})
		case at > 0:
			all = append(all, Finding{
				ID: "hosts-order", Severity: Warning, Title: "the mirror is not the first host",
				Evidence:    []string{fmt.Sprintf("%s: %q", s.Path, s.Hosts)},
				Consequence: "containerd asks Shoal only for what the hosts before it do not have",
				Fix:         fmt.Sprintf("delete its [host.%q] from the file, then %s", e.Mirror, repair),
			})
			served = true
		case slices.Contains(s.Lacking, s.Hosts[0]):
			all = append(all, Finding{
				ID: "hosts-capabilities", Severity: Error, Title: "the mirror lacks a capability",
				Evidence:    []string{fmt.Sprintf("%s: [host.%q] has not both \"pull\" and \"resolve\"", s.Path, s.Hosts[0])},
				Consequence: "containerd does not ask Shoal for tags, or not for layers",
				Fix:         fmt.Sprintf("delete its [host.%q] from the file, then %s", e.Mirror, repair),
			})
		default:
			served = true
		}
	}
	if !served && len(all) == 0 {
		all = append(all, Finding{
			ID: "hosts-missing", Severity: Error, Title: "containerd is not told of the mirror",
			Evidence:    []string{e.HostsDir + " has no directory of a registry that Shoal mirrors"},
			Consequence: "containerd asks every registry itself",
			Fix:         repair,
		})
	}
	return all
}
