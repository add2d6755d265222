package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Cluster is the id of the laboratory's Shoal cluster.
const Cluster = "lab"

// Ports of `shoal serve`, its defaults.
const (
	MirrorPort  = "6500"
	ControlPort = "6501"
	WirePort    = "6502"
	GossipPort  = "6503"
	MetricsPort = "6504"
)

// Mirror is the URL at which the node's containerd finds its Shoal.
func (n *Node) Mirror() string { return "http://127.0.0.1:" + MirrorPort }

// ShoalDir is the piece store.
func (n *Node) ShoalDir() string { return filepath.Join(n.Dir, "shoal") }

// CertsDir is the node's directory of credentials.
func (n *Node) CertsDir() string { return filepath.Join(n.lab.Dir, "certs", n.Name) }

// AuthorityDir holds the authority that the nodes trust.
func (l *Lab) AuthorityDir() string { return filepath.Join(l.Dir, "authority") }

// NewAuthority makes an authority for the laboratory's cluster in dir with
// `shoal certs`.
func (l *Lab) NewAuthority(ctx context.Context, dir string) error {
	return l.shoal(ctx, "certs", "ca", "--cluster", Cluster, "--dir", dir)
}

// Issue writes a node's credentials, made by the authority in dir, into a
// directory of that name in out.
func (l *Lab) Issue(ctx context.Context, authority, node, out string) error {
	return l.shoal(ctx, "certs", "node", "--ca", authority, "--out", out, node)
}

// shoal runs a command of the binary to its end.
func (l *Lab) shoal(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, l.cfg.Shoal, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("run shoal %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// shoalArgs are the arguments of `shoal serve` on n.
func (n *Node) shoalArgs() []string {
	args := []string{
		"serve",
		"--cluster", Cluster,
		"--node", n.Name,
		"--data-dir", n.ShoalDir(),
		"--mirror-addr", "127.0.0.1:" + MirrorPort,
		"--control-addr", n.Address + ":" + ControlPort,
		"--wire-addr", n.Address + ":" + WirePort,
		"--gossip-addr", n.Address + ":" + GossipPort,
		"--metrics-addr", "127.0.0.1:" + MetricsPort,
		"--advertise-addr", n.Address,
		"--certs-dir", n.CertsDir(),
		"--registry", RegistryHost,
		"--insecure-registry", RegistryHost,
		"--containerd-socket", n.ContainerdSocket(),
		"--log-level", "debug",
		"--log-format", "json",
	}
	for _, other := range n.lab.Nodes() {
		args = append(args, "--join", other.Address+":"+GossipPort)
	}
	args = append(args, n.lab.cfg.ShoalArgs...)
	n.mu.Lock()
	defer n.mu.Unlock()
	return append(args, n.more...)
}

// ShoalEnv are the node's settings as environment, for other commands of Shoal's
// than serve.
func (n *Node) ShoalEnv() []string {
	var env []string
	set := map[string]int{}
	args := n.shoalArgs()[1:]
	for i := 0; i+1 < len(args); i += 2 {
		name := "SHOAL_" + strings.ToUpper(strings.ReplaceAll(strings.TrimPrefix(args[i], "--"), "-", "_"))
		if at, ok := set[name]; ok {
			env[at] += "," + args[i+1]
			continue
		}
		set[name] = len(env)
		env = append(env, name+"="+args[i+1])
	}
	return env
}

// StartShoal starts Shoal, with further arguments, and waits until it is ready.
func (n *Node) StartShoal(ctx context.Context, more ...string) error {
	n.mu.Lock()
	n.more = more
	n.mu.Unlock()
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + n.ShoalDir()}
	p, err := startProcess(n.Machine, "shoal", filepath.Join(n.Dir, "shoal.log"), env,
		append([]string{n.lab.cfg.Shoal}, n.shoalArgs()...)...)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.shoal = p
	n.mu.Unlock()
	client := n.Client()
	defer client.CloseIdleConnections()
	return waitFor(ctx, p, func() error {
		resp, err := client.Get("http://127.0.0.1:" + MetricsPort + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("not ready: %s", resp.Status)
		}
		return nil
	})
}

// Meet waits until the node's Shoal has met those of all other nodes. It hears of
// those that start beside it by gossip, which takes up to a second; until then two
// nodes may differ on who is a blob's tracker.
func (n *Node) Meet(ctx context.Context) error {
	all := len(n.lab.Nodes())
	err := waitFor(ctx, n.Shoal(), func() error {
		m, err := n.Metrics(ctx)
		if err != nil {
			return err
		}
		if met := int(m["shoal_members"]); met != all {
			return fmt.Errorf("it has met %d of %d members", met, all)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s does not meet the others: %w", n.Name, err)
	}
	return nil
}

// Shoal is the node's shoal process, nil if the laboratory has none.
func (n *Node) Shoal() *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.shoal
}

// Metrics are samples by name: the sum over all label sets, and besides each
// label set by itself as name{label="value",...} with the labels sorted. Of
// histograms only _sum and _count.
type Metrics map[string]float64

// Metrics reads what the node's Shoal says of itself.
func (n *Node) Metrics(ctx context.Context) (Metrics, error) {
	m, err := n.metrics(ctx)
	if err != nil {
		return nil, fmt.Errorf("read metrics of %s: %w", n.Name, err)
	}
	return m, nil
}

func (n *Node) metrics(ctx context.Context) (Metrics, error) {
	client := n.Client()
	defer client.CloseIdleConnections()
	return ReadMetrics(ctx, client, "http://127.0.0.1:"+MetricsPort+"/metrics")
}

// ReadMetrics reads what a server says of itself.
func ReadMetrics(ctx context.Context, client *http.Client, url string) (Metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	dec := &expfmt.SampleDecoder{
		Dec:  expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header)),
		Opts: &expfmt.DecodeOptions{},
	}
	return collect(dec)
}

// collect sums samples up.
func collect(dec *expfmt.SampleDecoder) (Metrics, error) {
	m := Metrics{}
	for {
		var v model.Vector
		if err := dec.Decode(&v); err != nil {
			if errors.Is(err, io.EOF) {
				return m, nil
			}
			return nil, err
		}
		for _, s := range v {
			m[string(s.Metric[model.MetricNameLabel])] += float64(s.Value)
			if len(s.Metric) > 1 {
				m[s.Metric.String()] += float64(s.Value)
			}
		}
	}
}
