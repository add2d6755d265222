package upstream

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Repository names one repository of one registry.
type Repository struct {
	// Registry is host[:port] as image references spell it; "docker.io" is
	// known to live at registry-1.docker.io.
	Registry string
	// Name is the path within the registry, as the registry spells it: on
	// docker.io "library/alpine", not "alpine".
	Name string
}

// String returns registry/name.
func (r Repository) String() string { return r.Registry + "/" + r.Name }

// The grammar of the OCI distribution specification 1.1, "Pulling manifests".
// Names and references are checked here although callers do so too: they
// become part of a URL.
var (
	namePattern = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	hostPattern = regexp.MustCompile(`^(?:[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?$`)
)

const (
	// maxName bounds name and host: the specification notes that clients
	// limit their sum to 255 characters.
	maxName = 255

	dockerHub         = "docker.io"
	dockerHubEndpoint = "registry-1.docker.io"
)

// validHost checks host[:port] in lower case.
func validHost(h string) bool {
	m := hostPattern.FindStringSubmatch(h)
	if len(h) > maxName || m == nil {
		return false
	}
	if m[1] == "" {
		return true
	}
	port, err := strconv.Atoi(m[1])
	return err == nil && port > 0 && port < 1<<16
}

func (r Repository) validate() error {
	if !validHost(strings.ToLower(r.Registry)) {
		return fmt.Errorf("invalid registry %s", quote(r.Registry))
	}
	if len(r.Name) > maxName || !namePattern.MatchString(r.Name) {
		return fmt.Errorf("invalid repository name %s", quote(r.Name))
	}
	return nil
}

// parseDigest accepts sha256 digests only.
func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil || d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("not a sha256 digest: %s", quote(s))
	}
	return d, nil
}

// parseReference checks a tag or digest; the digest is empty for a tag.
func parseReference(ref string) (digest.Digest, error) {
	if strings.Contains(ref, ":") {
		return parseDigest(ref)
	}
	if !tagPattern.MatchString(ref) {
		return "", fmt.Errorf("invalid tag %s", quote(ref))
	}
	return "", nil
}

// Endpoint returns scheme and authority of a registry (which is valid).
func (c *Client) Endpoint(registry string) *url.URL {
	named := strings.ToLower(registry)
	host := named
	if named == dockerHub || named == "index."+dockerHub {
		host = dockerHubEndpoint
	}
	u := &url.URL{Scheme: "https", Host: host, Path: "/"}
	if c.insecure[named] || c.insecure[host] {
		u.Scheme = "http"
	}
	return u
}

// sameOrigin says whether two URLs lead to the same server.
func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && strings.EqualFold(a.Host, b.Host)
}

// quote makes text of unknown origin fit for an error message.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		s = s[:most] + "..."
	}
	return strconv.Quote(s)
}
