package node

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/mirror"
)

// Config of a node. Addresses are host:port to listen on; an empty host means
// all interfaces, port 0 any free port.
type Config struct {
	// Cluster is the id that all nodes of the cluster share; nodes with
	// another one are strangers. Required.
	Cluster string
	// Name names this node, uniquely in the cluster and stable over restarts.
	// Required.
	Name string
	// DataDir is where the piece store lives, made if need be. Only one
	// process can use it. Required.
	DataDir string

	// MirrorAddr serves containerd. Its clients send passwords in the clear,
	// and with Authorization node or none anyone who can reach it can pull
	// what the node can pull: it should be a loopback address. Required.
	MirrorAddr string
	// ControlAddr, WireAddr and GossipAddr serve the other nodes. Required.
	ControlAddr, WireAddr, GossipAddr string
	// MetricsAddr serves /metrics, /healthz and /readyz. Empty: nothing does.
	MetricsAddr string
	// AdvertiseAddr is the address or name under which other nodes reach this
	// one. Empty: the gossip address's, or the one that leads outside.
	AdvertiseAddr string
	// Join lists gossip addresses of nodes to meet first, or DNS names of
	// many. Empty: the node waits to be met.
	Join []string
	// Zone says where the node is; equal strings are near each other.
	Zone string

	// CertsDir holds the node's credentials, see package peertls. Required
	// unless InsecurePeers.
	CertsDir string
	// InsecurePeers speaks to peers without TLS and believes whoever answers.
	// It excludes CertsDir.
	InsecurePeers bool

	// Registries are mirrored: host[:port] or globs. Required.
	Registries []string
	// DefaultRegistry answers for requests that name no registry. Empty: they
	// get 404.
	DefaultRegistry string
	// InsecureRegistries are spoken to over plain http.
	InsecureRegistries []string
	// RegistryCAs maps a registry to a PEM file with its authorities.
	RegistryCAs map[string]string
	// DockerConfig is the path of a config.json with credentials for
	// registries of Authorization node or none. Empty: anonymous.
	DockerConfig string
	// Authorization says whose right to pull counts, by registry or glob:
	// upstream (the default), node or none, see package mirror.
	Authorization map[string]string
	// GrantTTL is how long a registry's consent is believed. 0: 5 min.
	GrantTTL time.Duration
	// OnOutage is who is served while a registry does not answer: allow-recent
	// or deny. Empty: allow-recent, which goes by consent not older than
	// OutageGrace, as do tags. 0: a day.
	OnOutage    string
	OutageGrace time.Duration

	// ContainerdSocket is the path of containerd's socket. Empty: the node
	// works from its own store alone.
	ContainerdSocket string
	// ContainerdRoot overrides where containerd keeps its content.
	ContainerdRoot string

	// CacheSize bounds the piece store in bytes. 0: no bound.
	CacheSize int64
	// DiskReserve is how many bytes of the file system stay free.
	DiskReserve int64

	// TagTTL is how long a tag's digest is believed without asking the
	// registry. 0: the swarm's default.
	TagTTL time.Duration
	// HoldUntilVerified sends nothing of a blob before all of it is verified.
	HoldUntilVerified bool
	// Drain bounds how long responses under way may go on after the order to
	// stop. 0: 20 s, which with everything else stays below the 30 s that
	// Kubernetes allows.
	Drain time.Duration

	// OTLPEndpoint is the URL that traces of pulls are sent to, as OTLP over HTTP;
	// a path may be left out. Empty: no traces.
	OTLPEndpoint string

	// Version is sent to registries as part of the user agent.
	Version string
	Log     zerolog.Logger
}

const defaultDrain = 20 * time.Second

// idPattern is what package members accepts as cluster and node ids.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$`)

// Validate says what is wrong with c, all of it, in the names of the settings
// as the command line and the configuration file spell them.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }

	id := func(setting, v, what string) {
		switch {
		case v == "":
			bad("%s: required: %s", setting, what)
		case !idPattern.MatchString(v):
			bad("%s: %q: want letters, digits, dots, dashes and underscores, at most 253, beginning with a letter or digit", setting, v)
		}
	}
	id("cluster", c.Cluster, "choose an id and give the same to every node")
	id("node", c.Name, "a name that is unique in the cluster")
	if c.DataDir == "" {
		bad("data-dir: required: a directory for the piece store")
	}
	c.validateAddrs(bad)

	switch {
	case c.InsecurePeers && c.CertsDir != "":
		bad("insecure-peers: contradicts certs-dir %s: choose one", c.CertsDir)
	case !c.InsecurePeers && c.CertsDir == "":
		bad("certs-dir: required: make certificates with 'shoal certs', or trust the whole network with insecure-peers")
	}
	if len(c.Registries) == 0 {
		bad("registry: required: name at least one registry to mirror")
	}
	for host, file := range c.RegistryCAs {
		if _, err := os.Stat(file); err != nil {
			bad("registry-ca: %s: %w", host, err)
		}
	}
	if c.DockerConfig != "" {
		if _, err := os.Stat(c.DockerConfig); err != nil {
			bad("docker-config: %w", err)
		}
	}
	c.validateAuthorization(bad)
	if c.ContainerdRoot != "" && c.ContainerdSocket == "" {
		bad("containerd-root: of no use without containerd-socket")
	}
	if c.CacheSize < 0 {
		bad("cache-size: %d: must not be negative", c.CacheSize)
	}
	if c.DiskReserve < 0 {
		bad("disk-reserve: %d: must not be negative", c.DiskReserve)
	}
	if c.TagTTL < 0 {
		bad("tag-ttl: %s: must not be negative", c.TagTTL)
	}
	if c.Drain < 0 {
		bad("drain: %s: must not be negative", c.Drain)
	}
	if c.OTLPEndpoint != "" {
		if _, err := parseOTLPEndpoint(c.OTLPEndpoint); err != nil {
			bad("otlp-endpoint: %w", err)
		}
	}
	return errors.Join(errs...)
}

// validateAuthorization checks what says who may pull.
func (c Config) validateAuthorization(bad func(string, ...any)) {
	useful := false // of the node's credentials
	for _, host := range slices.Sorted(maps.Keys(c.Authorization)) {
		switch mirror.Authorization(c.Authorization[host]) {
		case mirror.AuthorizeUpstream:
		case mirror.AuthorizeNode, mirror.AuthorizeNone:
			useful = true
		default:
			bad("authorization: %s: %q: want upstream, node or none", host, c.Authorization[host])
		}
	}
	if c.DockerConfig != "" && !useful {
		bad("docker-config: of no use: no registry has authorization node, which lets every pod pull with the node's credentials")
	}
	switch mirror.Outage(c.OnOutage) {
	case "", mirror.OutageAllowRecent, mirror.OutageDeny:
	default:
		bad("on-outage: %q: want allow-recent or deny", c.OnOutage)
	}
	if c.GrantTTL < 0 {
		bad("grant-ttl: %s: must not be negative", c.GrantTTL)
	}
	if c.OutageGrace < 0 {
		bad("outage-grace: %s: must not be negative", c.OutageGrace)
	}
}

// validateAddrs checks the addresses to listen on, and that no two are the
// same.
func (c Config) validateAddrs(bad func(string, ...any)) {
	taken := map[string]string{}
	for _, a := range []struct {
		setting, addr string
		optional      bool
	}{
		{"mirror-addr", c.MirrorAddr, false},
		{"control-addr", c.ControlAddr, false},
		{"wire-addr", c.WireAddr, false},
		{"gossip-addr", c.GossipAddr, false},
		{"metrics-addr", c.MetricsAddr, true},
	} {
		if a.addr == "" {
			if !a.optional {
				bad("%s: required: an address to listen on, host:port", a.setting)
			}
			continue
		}
		_, port, err := net.SplitHostPort(a.addr)
		if err != nil {
			bad("%s: %w: want host:port", a.setting, err)
			continue
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil {
			bad("%s: %q: want a port number", a.setting, port)
		} else if n > 0 {
			if other, ok := taken[a.addr]; ok {
				bad("%s: %s is %s already", a.setting, a.addr, other)
			}
			taken[a.addr] = a.setting
		}
	}
}
