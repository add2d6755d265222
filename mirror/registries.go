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

// Registries decides which registries are mirrored, and which of them metrics
// may name: a label value once used stays for the life of the process, so a
// hostile ns must never become one. It is safe for concurrent use.
type Registries struct {
	exact map[string]bool
	named []string // the same, in their order
	globs []string

	mu   sync.Mutex
	seen map[string]bool // served successfully, by glob
}

// NewRegistries reads names, host[:port], and patterns with *.
func NewRegistries(patterns []string) (*Registries, error) {
	r := &Registries{exact: map[string]bool{}, seen: map[string]bool{}}
	for _, p := range patterns {
		host, err := parseRegistry(p)
		if err == nil {
			r.exact[host] = true
			r.named = append(r.named, host)
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

// Named are the registries that are not patterns, in their order.
func (r *Registries) Named() []string { return r.named }

// Allowed says whether a registry, in lower case, is mirrored. Globs match
// names only: an address, or localhost, must be configured as such, or else
// "*" would open every service that this node can reach.
func (r *Registries) Allowed(registry string) bool {
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
func (r *Registries) label(registry string, served bool) string {
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
