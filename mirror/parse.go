package mirror

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// Bounds on what a request may name. Everything here is hostile until it has
// passed this file.
const (
	// maxName bounds a repository name. The OCI specification leaves the
	// bound to clients; all of them use 255 for host and name together.
	maxName = 255
	// maxHost bounds a registry's host without port: a DNS name's length.
	maxHost = 253
	// maxQuery bounds the raw query: ns with every byte escaped fits.
	maxQuery = 1 << 10
)

// The grammar of the OCI distribution specification 1.1, "Pulling manifests".
var (
	namePattern  = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern   = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	labelPattern = regexp.MustCompile(`^[a-z0-9](?:[a-z0-9-]*[a-z0-9])?$`)
)

// reference is a manifest's or blob's identifier: a tag or a digest.
type reference struct {
	tag    string
	digest digest.Digest
}

func (r reference) String() string {
	if r.tag != "" {
		return r.tag
	}
	return r.digest.String()
}

var errUnsupportedDigest = errors.New("only sha256 digests are served")

func parseName(s string) (string, error) {
	if s == "" || len(s) > maxName || !namePattern.MatchString(s) {
		return "", fmt.Errorf("invalid repository name %.80q", s)
	}
	return s, nil
}

func parseDigest(s string) (digest.Digest, error) {
	algorithm, _, ok := strings.Cut(s, ":")
	if !ok {
		return "", fmt.Errorf("invalid digest %.80q", s)
	}
	if algorithm != digest.SHA256.String() {
		return "", fmt.Errorf("digest %.80q: %w", s, errUnsupportedDigest)
	}
	d := digest.Digest(s)
	if err := d.Validate(); err != nil {
		return "", fmt.Errorf("invalid digest %.80q: %w", s, err)
	}
	return d, nil
}

func parseReference(s string) (reference, error) {
	if strings.Contains(s, ":") {
		d, err := parseDigest(s)
		return reference{digest: d}, err
	}
	if !tagPattern.MatchString(s) {
		return reference{}, fmt.Errorf("invalid tag %.80q", s)
	}
	return reference{tag: s}, nil
}

// parseRegistry checks and lower-cases host[:port].
func parseRegistry(s string) (string, error) {
	bad := fmt.Errorf("invalid registry %.80q", s)
	host, port, ok := splitPort(strings.ToLower(s))
	if !ok || host == "" || len(host) > maxHost {
		return "", bad
	}
	if in, bracketed := strings.CutPrefix(host, "["); bracketed {
		addr, err := netip.ParseAddr(strings.TrimSuffix(in, "]"))
		// A zone names an interface of this machine: no registry's name.
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", bad
		}
		host = "[" + addr.String() + "]"
	} else {
		for label := range strings.SplitSeq(host, ".") {
			if len(label) > 63 || !labelPattern.MatchString(label) {
				return "", bad
			}
		}
	}
	if port == "" {
		return host, nil
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 || strconv.FormatUint(p, 10) != port {
		return "", bad
	}
	return host + ":" + port, nil
}

// splitPort splits host[:port], the host of an IPv6 address in brackets. An
// absent port is empty; a colon without one is malformed.
func splitPort(s string) (host, port string, ok bool) {
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false
		}
		host, rest := s[:end+1], s[end+1:]
		if rest == "" {
			return host, "", true
		}
		port, ok = strings.CutPrefix(rest, ":")
		return host, port, ok && port != ""
	}
	host, port, colon := strings.Cut(s, ":")
	return host, port, !colon || port != ""
}

// isAddress says whether a registry is named by IP address or is this very
// machine, rather than by a name that somebody has registered. As in the
// WHATWG URL standard, a host whose last label begins with a digit counts as
// an address, whatever a resolver would make of it.
func isAddress(registry string) bool {
	host, _, _ := splitPort(registry)
	last := host[strings.LastIndexByte(host, '.')+1:]
	return strings.HasPrefix(host, "[") || last == "localhost" ||
		(last != "" && last[0] >= '0' && last[0] <= '9')
}

// parseNamespace reads the registry from the ns query parameter; it is empty
// when there is none. A query that names two is refused, since the caller and
// a proxy in front of us might disagree on which one counts.
func parseNamespace(rawQuery string) (string, error) {
	if len(rawQuery) > maxQuery {
		return "", fmt.Errorf("query of %d bytes, at most %d are read", len(rawQuery), maxQuery)
	}
	q, err := url.ParseQuery(rawQuery)
	if err != nil {
		return "", fmt.Errorf("parse query: %w", err)
	}
	switch ns := q["ns"]; len(ns) {
	case 0:
		return "", nil
	case 1:
		return parseRegistry(ns[0])
	default:
		return "", fmt.Errorf("query names %d namespaces", len(ns))
	}
}

// maxAuthorization bounds an Authorization header, in bytes. Tokens of large
// clouds take up to 4 KiB, and servers commonly refuse headers beyond 16.
const maxAuthorization = 16 << 10

// parseAuthorization checks the Authorization headers of a request, of which
// there may be one, in a scheme that registries know. It is empty when there
// is none. Errors do not repeat it.
func parseAuthorization(headers []string) (string, error) {
	switch {
	case len(headers) == 0 || len(headers) == 1 && headers[0] == "":
		return "", nil
	case len(headers) > 1:
		return "", fmt.Errorf("%d Authorization headers", len(headers))
	case len(headers[0]) > maxAuthorization:
		return "", fmt.Errorf("an Authorization header of %d bytes, at most %d are read", len(headers[0]), maxAuthorization)
	}
	scheme, value, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") && !strings.EqualFold(scheme, "Basic") {
		return "", errors.New("an Authorization header that is neither Bearer nor Basic")
	}
	if value == "" || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", errors.New("a malformed Authorization header")
	}
	return headers[0], nil
}
