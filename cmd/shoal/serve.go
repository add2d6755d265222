package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/alecthomas/kong"

	"github.com/shoal-dev/shoal/cmd/internal/node"
)

// serveCmd is the configuration of a node as flags, environment and file spell
// it. The tags are its documentation: help and reference come from them.
type serveCmd struct {
	Config string `placeholder:"FILE" help:"YAML file with any of these settings, spelled like the flags without the dashes in front. Flags and environment come before it."`

	Cluster string `group:"Identity" placeholder:"ID" help:"Id of the cluster, the same on all its nodes. Nodes of other clusters are strangers. Required."`
	Node    string `group:"Identity" placeholder:"NAME" help:"Name of this node, unique in the cluster and stable over restarts. Default: the host name."`
	Zone    string `group:"Identity" placeholder:"ZONE" help:"Where the node is; nodes with the same zone are near each other."`

	DataDir     string   `group:"Storage" default:"/var/lib/shoal" placeholder:"DIR" help:"Directory of the piece store. Default: ${default}."`
	CacheSize   byteSize `group:"Storage" default:"20GiB" placeholder:"SIZE" help:"Most that the piece store may occupy; the longest unused blobs go first. 0: no limit. Default: ${default}."`
	DiskReserve byteSize `group:"Storage" default:"2GiB" placeholder:"SIZE" help:"Space on the file system that always stays free. Default: ${default}."`

	ContainerdSocket string `group:"Storage" default:"/run/containerd/containerd.sock" placeholder:"PATH" help:"containerd's socket; what containerd holds is shared from where it lies. Empty: no containerd on this machine. Default: ${default}."`
	ContainerdRoot   string `group:"Storage" placeholder:"DIR" help:"Directory of containerd's content store, if this process sees it elsewhere than containerd does."`

	MirrorAddr    string   `group:"Network" default:"127.0.0.1:6500" placeholder:"ADDR" help:"Where containerd's requests are answered, for clients on this node only. Default: ${default}."`
	ControlAddr   string   `group:"Network" default:":6501" placeholder:"ADDR" help:"Where other nodes' requests are answered, TCP. Default: ${default}."`
	WireAddr      string   `group:"Network" default:":6502" placeholder:"ADDR" help:"Where pieces are traded with other nodes, TCP. Default: ${default}."`
	GossipAddr    string   `group:"Network" default:":6503" placeholder:"ADDR" help:"Where nodes tell each other who is alive, TCP and UDP. Default: ${default}."`
	MetricsAddr   string   `group:"Network" default:":6504" placeholder:"ADDR" help:"Where /metrics, /healthz and /readyz are. Empty: nowhere. Default: ${default}."`
	AdvertiseAddr string   `group:"Network" placeholder:"HOST" help:"Address or name under which other nodes reach this one. Default: that of gossip-addr, or the one that leads outside."`
	Join          []string `group:"Network" sep:"," placeholder:"ADDR" help:"Gossip address of a node to meet first, or a DNS name of many; repeatable. The port may be left out. Without any, this node waits to be met."`

	CertsDir      string `group:"Security" placeholder:"DIR" help:"Directory with ca.crt, tls.crt, tls.key and gossip.key, as 'shoal certs' and Kubernetes secrets have them. Read again when it changes."`
	InsecurePeers bool   `group:"Security" help:"Speak to other nodes without TLS and believe whoever answers. For trying out on a network of one's own."`

	Registry         []string          `group:"Registries" sep:"," default:"${registries}" placeholder:"HOST" help:"Registry to mirror, host[:port] or a pattern with *; repeatable. Others are answered 404, and containerd asks them itself. Default: well-known public ones."`
	DefaultRegistry  string            `group:"Registries" placeholder:"HOST" help:"Registry that is meant by requests that name none. containerd always names it, some other clients do not."`
	InsecureRegistry []string          `group:"Registries" sep:"," placeholder:"HOST" help:"Registry that is spoken to over plain http, exactly as image names spell it; repeatable."`
	RegistryCA       map[string]string `group:"Registries" mapsep:"," placeholder:"HOST=FILE" help:"PEM file with the authorities of a registry, beside the system's; repeatable."`
	DockerConfig     string            `group:"Registries" placeholder:"FILE" help:"config.json with this node's credentials, for registries with --authorization node or none. Default: anonymous."`

	Authorization map[string]string `group:"Authorization" mapsep:"," placeholder:"HOST=WHOSE" help:"Whose right to pull from a registry counts, HOST spelled like --registry; repeatable. upstream: each caller's own, by the credential it brings (a pod's pull secret) or none. node: this node's, for every caller. none: nobody's, every caller is served. Default: upstream."`
	GrantTTL      time.Duration     `group:"Authorization" name:"grant-ttl" default:"5m" placeholder:"TIME" help:"How long a registry's consent to a caller is believed before it is asked again. Default: ${default}."`
	OnOutage      string            `group:"Authorization" enum:"allow-recent,deny" default:"allow-recent" placeholder:"POLICY" help:"Who is served while a registry does not answer: whom it let in within --outage-grace, and everybody with what anybody may pull (allow-recent); or whom it let in within --grant-ttl (deny). Default: ${default}."`
	OutageGrace   time.Duration     `group:"Authorization" default:"24h" placeholder:"TIME" help:"How old consent may be that --on-outage allow-recent goes by, and how old the digest of a tag. Default: ${default}."`

	TagTTL            time.Duration `group:"Behaviour" name:"tag-ttl" default:"10s" placeholder:"TIME" help:"How long a tag is believed before the registry is asked again. Default: ${default}."`
	HoldUntilVerified bool          `group:"Behaviour" help:"Send nothing of a blob before all of it is verified. Slower; by default only the end is held back."`
	Drain             time.Duration `group:"Behaviour" default:"20s" placeholder:"TIME" help:"How long responses under way may go on when the node is told to stop. Default: ${default}."`
	OTLPEndpoint      string        `group:"Behaviour" name:"otlp-endpoint" placeholder:"URL" help:"Collector of traces, http[s]://host:port, for OTLP over HTTP. Each pull becomes a trace, or a part of containerd's own if that is traced. OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and other variables of OpenTelemetry apply. Default: no traces."`
	LogLevel          string        `group:"Behaviour" enum:"debug,info,warn,error" default:"info" placeholder:"LEVEL" help:"Least severe lines to log: ${enum}. Default: ${default}."`
	LogFormat         string        `group:"Behaviour" enum:"auto,json,console" default:"auto" placeholder:"FORMAT" help:"Form of the log on standard error: ${enum}; auto is console on a terminal and json elsewhere. Default: ${default}."`
}

// publicRegistries are mirrored by default. Nothing else is, so that a request
// cannot turn the node into a client of arbitrary hosts.
const publicRegistries = "docker.io,registry.k8s.io,quay.io,ghcr.io,gcr.io,*.gcr.io,*.pkg.dev,mcr.microsoft.com,public.ecr.aws,registry.gitlab.com,nvcr.io,cgr.dev"

// Help implements kong.HelpProvider.
func (*serveCmd) Help() string {
	return `Every setting can also be an environment variable, shown with the flag, or a key of the --config file. A flag comes before the environment, and that before the file.

SIGTERM or SIGINT stops the node in good order within --drain and a few seconds; a second one at once.

Exit status: 0 after an orderly stop, 1 if the node could not start or failed, 2 for a mistake in the settings.`
}

// BeforeResolve implements kong's hook: it is the time to add the file.
func (c *serveCmd) BeforeResolve(k *kong.Context) error {
	var path string
	for _, f := range k.Flags() {
		if f.Name == "config" {
			path, _ = k.FlagValue(f).(string)
		}
	}
	if path == "" {
		return nil
	}
	r, err := loadConfig(path, k.Selected())
	if err != nil {
		return err
	}
	k.AddResolver(r)
	return nil
}

// Run implements the command.
func (c *serveCmd) Run(ctx context.Context, s std) error {
	log, err := newLogger(s.err, c.LogLevel, c.LogFormat)
	if err != nil {
		return usageError{err}
	}
	cfg, err := c.config()
	if err != nil {
		return err
	}
	cfg.Log = log
	if err := cfg.Validate(); err != nil {
		return usageError{fmt.Errorf("the configuration has mistakes:\n%w", err)}
	}
	n, err := node.New(cfg)
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// config is the node's configuration, without the logger.
func (c *serveCmd) config() (node.Config, error) {
	name := c.Node
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return node.Config{}, fmt.Errorf("find the host name, give --node: %w", err)
		}
	}
	return node.Config{
		Cluster: c.Cluster, Name: name, DataDir: c.DataDir,
		MirrorAddr: c.MirrorAddr, ControlAddr: c.ControlAddr, WireAddr: c.WireAddr,
		GossipAddr: c.GossipAddr, MetricsAddr: c.MetricsAddr, AdvertiseAddr: c.AdvertiseAddr,
		Join: c.Join, Zone: c.Zone,
		CertsDir: c.CertsDir, InsecurePeers: c.InsecurePeers,
		Registries: c.Registry, DefaultRegistry: c.DefaultRegistry,
		InsecureRegistries: c.InsecureRegistry, RegistryCAs: c.RegistryCA, DockerConfig: c.DockerConfig,
		Authorization: c.Authorization, GrantTTL: c.GrantTTL, OnOutage: c.OnOutage, OutageGrace: c.OutageGrace,
		ContainerdSocket: c.ContainerdSocket, ContainerdRoot: c.ContainerdRoot,
		CacheSize: int64(c.CacheSize), DiskReserve: int64(c.DiskReserve),
		TagTTL: c.TagTTL, HoldUntilVerified: c.HoldUntilVerified, Drain: c.Drain,
		OTLPEndpoint: c.OTLPEndpoint,
		Version:      readVersion().Version,
	}, nil
}
