package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"

	"github.com/shoal-dev/shoal/cmd/internal/doctor"
	"github.com/shoal-dev/shoal/cmd/internal/node"
	"github.com/shoal-dev/shoal/mirror"
	"github.com/shoal-dev/shoal/mirror/containerd/hosts"
)

// chartConfig is where the Helm chart mounts the configuration of a node.
const chartConfig = "/etc/shoal/config.yaml"

// doctorCmd looks for what is wrong with a node.
type doctorCmd struct {
	Config   string `placeholder:"FILE" help:"The file that 'shoal serve' has. Default: /etc/shoal/config.yaml, if it is there."`
	Root     string `env:"-" default:"/" placeholder:"DIR" help:"Where the node's file system is seen. Default: ${default}."`
	HostsDir string `placeholder:"DIR" help:"containerd's config_path, as for 'shoal configure'. Default: where this node's distribution has it."`
	Canary   bool   `env:"-" default:"true" negatable:"" help:"Have containerd pull an image that does not exist, and see whether it asks the mirror. Default: yes."`
	Output   string `env:"-" enum:"text,json" default:"text" placeholder:"FORMAT" help:"Form of the result: ${enum}. Default: ${default}."`
}

// Help implements kong.HelpProvider.
func (*doctorCmd) Help() string {
	return `Looks at containerd and its configuration, hosts.toml, proxies, the mirror, the registries behind it, other nodes, certificates, clocks and disk, and says of everything that is wrong: what was seen, what follows, and what to do. It changes nothing. Run it on the node, or in Shoal's pod: kubectl exec POD -- shoal doctor. Settings are those of 'shoal serve', from the same file and environment.

What cannot be looked at from there is told as a note. docs/troubleshooting.md has more on each finding.

Exit status: 0 if nothing worse than a note was found, 1 on failure, 2 for a mistake in the arguments, 6 if there are warnings, 7 if there are errors.`
}

// foundError says that the doctor has found something. What it is has been told.
type foundError struct{ worst doctor.Severity }

func (e foundError) Error() string {
	if e.worst == doctor.Error {
		return "images do not come through Shoal on this node, or not as they should"
	}
	return "there are warnings"
}

func (e foundError) exitStatus() int {
	if e.worst == doctor.Error {
		return exitErrors
	}
	return exitWarnings
}

// Run implements the command.
func (c *doctorCmd) Run(ctx context.Context, s std) error {
	env, err := c.env()
	if err != nil {
		return err
	}
	defer env.Upstream.Close()
	found := doctor.Run(ctx, env)
	if c.Output == "json" {
		if found == nil {
			found = []doctor.Finding{}
		}
		if err := json.NewEncoder(s.out).Encode(found); err != nil {
			return fmt.Errorf("write findings: %w", err)
		}
	} else {
		doctor.Print(s.out, found)
	}
	if worst, ok := doctor.Worst(found); ok && worst > doctor.Note {
		return foundError{worst}
	}
	return nil
}

// env is the node that the settings describe.
func (c *doctorCmd) env() (doctor.Env, error) {
	config := c.Config
	if _, err := os.Stat(chartConfig); config == "" && !errors.Is(err, fs.ErrNotExist) {
		config = chartConfig
	}
	serve, err := serveSettings(config)
	if err != nil {
		return doctor.Env{}, usageError{fmt.Errorf("settings of 'shoal serve': %w", err)}
	}
	layout, err := hosts.Find(c.Root)
	if err != nil && c.HostsDir == "" {
		return doctor.Env{}, fmt.Errorf("%w: say with --hosts-dir which it is", err)
	}
	if c.HostsDir != "" {
		if dir := filepath.Clean(c.HostsDir); dir != layout.Hosts {
			layout.Hosts, layout.Config = dir, filepath.Join(filepath.Dir(dir), "config.toml")
		}
	}
	port := func(addr string) string {
		_, p, err := net.SplitHostPort(addr)
		if err != nil {
			return addr
		}
		return p
	}
	cfg, err := serve.config()
	if err != nil {
		return doctor.Env{}, err
	}
	up, err := node.NewUpstream(cfg, nil)
	if err != nil {
		return doctor.Env{}, usageError{fmt.Errorf("settings of 'shoal serve': %w", err)}
	}
	registries, err := mirror.NewRegistries(cfg.Registries)
	if err != nil {
		return doctor.Env{}, usageError{fmt.Errorf("settings of 'shoal serve': %w", err)}
	}
	env := doctor.Env{
		Root: c.Root, Config: layout.Config, HostsDir: layout.Hosts, Socket: serve.ContainerdSocket, ContainerdRoot: serve.ContainerdRoot,
		Mirror:     local(serve.MirrorAddr),
		Registries: registries, Upstream: up,
		Cluster: serve.Cluster, Node: cfg.Name, CertsDir: serve.CertsDir, Join: serve.Join, Advertise: serve.AdvertiseAddr,
		ControlPort: port(serve.ControlAddr), WirePort: port(serve.WireAddr), GossipPort: port(serve.GossipAddr),
		DataDir: serve.DataDir, DiskReserve: int64(serve.DiskReserve),
		Proxy:  func(u *url.URL) (*url.URL, error) { return http.ProxyFromEnvironment(&http.Request{URL: u}) },
		Canary: c.Canary,
	}
	if serve.MetricsAddr != "" {
		env.Metrics = local(serve.MetricsAddr)
	}
	return env, nil
}

// local is the URL of a listener for programs beside it.
func local(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "http://" + addr
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return "http://" + net.JoinHostPort(host, port)
}

// serveSettings are the settings that `shoal serve` would have with a file.
func serveSettings(config string) (serveCmd, error) {
	var c cli
	parser, err := newParser(&c, std{out: io.Discard, err: io.Discard})
	if err != nil {
		return serveCmd{}, err
	}
	args := []string{"serve"}
	if config != "" {
		args = append(args, "--config", config)
	}
	_, err = parser.Parse(args)
	return c.Serve, err
}
