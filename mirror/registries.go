package mirror

import (
	"fmt"
	"path"
	"strings"
	"sync"
)

const (
	// labelledRegistries bounds the registries that metrics name beyond
	// those configured by name. A cluster pulls from a handful.
	labelledRegistries = 64
	// otherRegistry labels all the rest.
	otherRegistry = "other"
)

// registries decides which registries are mirrored, and which of them metrics
// may name: a label value once used stays for the life of the process, so a
// hostile ns must never become one.
type registries struct {
	exact map[string]bool
	globs []string

	mu   sync.Mutex
	seen map[string]bool // served successfully, by glob
}

func newRegistries(patterns []string) (*registries, error) {
	r := &registries{exact: map[string]bool{}, seen: map[string]bool{}}
	for _, p := range patterns {
		host, err := parseRegistry(p)
		if err == nil {
			r.exact[host] = true
			continue
		}
		if !strings.ContainsAny(p, "*?[") {
			return nil, fmt.Errorf("registry to mirror: %w", err)
		}
		p = strings.ToLower(p)
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("registry pattern %q: %w", p, err)
		}
		r.globs = append(r.globs, p)
	}
	return r, nil
}

// allowed says whether a registry (already parsed) is mirrored. Globs match
// names only: an address, or localhost, must be configured as such, or else
// "*" would open every service that this node can reach.
func (r *registries) allowed(registry string) bool {
	if r.exact[registry] {
		return true
	}
	if isAddress(registry) {
		return false
	}
	for _, g := range r.globs {
		if ok, _ := path.Match(g, registry); ok { // the pattern was checked
			return true
		}
	}
	return false
}

// label returns the registry's value in metrics. A registry matched by a glob
// gets its own once something was served from it.
func (r *registries) label(registry string, served bool) string {
	if r.exact[registry] {
		return registry
	}
	if registry == "" {
		return otherRegistry
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.seen[registry] {
		if !served || len(r.seen) >= labelledRegistries {
			return otherRegistry
		}
		r.seen[registry] = true
	}
	return registry
}
