package doctor

import (
	"path"
	"regexp"
	"strings"
)

// portDir is how containerd also spells host:port in names of directories.
var portDir = regexp.MustCompile(`^(.+)_([0-9]+)_$`)

// mirrored tells whether a registry, as its directory spells it, is among those
// of the settings.
func mirrored(e *Env, dir string) bool {
	name := strings.ToLower(portDir.ReplaceAllString(dir, "$1:$2"))
	for _, r := range e.Registries {
		if ok, err := path.Match(strings.ToLower(r), name); err == nil && ok {
			return true
		}
	}
	return false
}

// address is where a registry is, by its name in images.
func address(registry string) string {
	if registry == "docker.io" {
		return "registry-1.docker.io"
	}
	return registry
}
