package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/shoal-dev/shoal/cmd/internal/pull"
)

const (
	// startTimeout bounds the start of one node, meetTimeout the time until
	// all see each other. Both take a second or two.
	startTimeout = 20 * time.Second
	meetTimeout  = 60 * time.Second
	// killAfter is how long a process may take to stop.
	killAfter = 15 * time.Second
)

// cluster is a set of shoal processes.
type cluster struct {
	shoal, dir, registry string
	nodes                []*process
}

// process is one node.
type process struct {
	name    string
	cmd     *exec.Cmd
	log     string
	mirror  string
	gossip  string
	metrics string
	exited  chan struct{}
}

// start makes certificates and starts n nodes that see each other.
func (c *cluster) start(ctx context.Context, n int) error {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("node-%d", i+1)
	}
	ca, certs := filepath.Join(c.dir, "ca"), filepath.Join(c.dir, "certs")
	if err := c.certs(ctx, "ca", "--cluster", "demo", "--dir", ca); err != nil {
		return err
	}
	if err := c.certs(ctx, append([]string{"node", "--ca", ca, "--out", certs}, names...)...); err != nil {
		return err
	}
	for _, name := range names {
		join := ""
		if len(c.nodes) > 0 {
			join = c.nodes[0].gossip
		}
		p, err := c.node(ctx, name, filepath.Join(certs, name), join)
		if err != nil {
			return errors.Join(err, c.logs())
		}
		c.nodes = append(c.nodes, p)
	}
	ctx, cancel := context.WithTimeout(ctx, meetTimeout)
	defer cancel()
	for _, p := range c.nodes {
		for {
			live, err := p.metric(ctx, "shoal_members", "")
			if err == nil && live == float64(n) {
				break
			}
			select {
			case <-ctx.Done():
				return errors.Join(fmt.Errorf("%s does not see %d nodes: %w", p.name, n, ctx.Err()), c.logs())
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

func (c *cluster) certs(ctx context.Context, args ...string) error {
	out, err := c.command(ctx, append([]string{"certs"}, args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make certificates: %w: %s", err, out)
	}
	return nil
}

// command is a shoal process that gets SIGTERM when ctx ends, and sees neither
// this terminal's Ctrl-C nor the user's environment of settings. It dies with
// this process, however that ends.
func (c *cluster) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.shoal, args...)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "SHOAL_") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	return cmd
}

// node starts a node on free ports and waits until it serves.
func (c *cluster) node(ctx context.Context, name, certs, join string) (*process, error) {
	const anyPort = "127.0.0.1:0"
	args := []string{"serve",
		"--cluster", "demo", "--node", name, "--certs-dir", certs,
		"--data-dir", filepath.Join(c.dir, "data", name), "--disk-reserve", "0",
		"--containerd-socket", "", "--registry", c.registry, "--insecure-registry", c.registry,
		"--mirror-addr", anyPort, "--control-addr", anyPort, "--wire-addr", anyPort,
		"--gossip-addr", anyPort, "--metrics-addr", anyPort, "--log-format", "json", "--drain", "1s",
	}
	if join != "" {
		args = append(args, "--join", join)
	}
	p := &process{name: name, log: filepath.Join(c.dir, name+".log"), exited: make(chan struct{})}
	f, err := os.Create(p.log)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer f.Close()
	p.cmd = c.command(context.WithoutCancel(ctx), args...)
	p.cmd.Stdout, p.cmd.Stderr = f, f
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(p.exited)
		_ = p.cmd.Wait()
	}()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for !p.serving() {
		select {
		case <-p.exited:
			err = errors.New("it ended")
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(20 * time.Millisecond):
			continue
		}
		c.nodes = append(c.nodes, p) // to be stopped, and its log shown
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// serving finds the line with the addresses in the node's log.
func (p *process) serving() bool {
	f, err := os.Open(p.log)
	if err != nil {
		return false
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var line struct{ Message, Mirror, Gossip, Metrics string }
		if json.Unmarshal(s.Bytes(), &line) == nil && line.Message == "serving" {
			p.mirror, p.gossip, p.metrics = line.Mirror, line.Gossip, line.Metrics
			return true
		}
	}
	return false
}

// stop ends all nodes and waits for them.
func (c *cluster) stop() {
	for _, p := range c.nodes {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	late := time.After(killAfter)
	for _, p := range c.nodes {
		select {
		case <-p.exited:
			continue
		case <-late:
		}
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// pull pulls the image through a node's mirror with a process of its own.
func (c *cluster) pull(ctx context.Context, p *process, img image) (pull.Result, error) {
	var res pull.Result
	var stderr bytes.Buffer
	cmd := c.command(ctx, "pull", img.ref, "--mirror", "http://"+p.mirror, "--output", "json")
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return res, fmt.Errorf("pull: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return res, fmt.Errorf("read the result of a pull: %w", err)
	}
	// The pull has verified the bytes; that they are those that were pushed
	// is seen here.
	got := 0
	for _, b := range res.Blobs {
		if !img.digests[b.Digest] {
			return res, fmt.Errorf("pulled %s, which was not pushed", b.Digest)
		}
		got++
	}
	if got != len(img.digests) {
		return res, fmt.Errorf("pulled %d blobs of %d", got, len(img.digests))
	}
	return res, nil
}

// sources tells where the bytes of the node's blobs came from.
func (p *process) sources(ctx context.Context) (origin, peers int64, err error) {
	from := map[string]float64{}
	for _, source := range []string{"origin", "lease", "swarm"} {
		if from[source], err = p.metric(ctx, "shoal_swarm_received_bytes_total", source); err != nil {
			return 0, 0, err
		}
	}
	return int64(from["origin"]), int64(from["lease"] + from["swarm"]), nil
}

// metric reads one value, of the series with the given source label if one is
// given. A series that is not there yet is 0.
func (p *process) metric(ctx context.Context, name, source string) (float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.metrics+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return 0, fmt.Errorf("read metrics: %w", err)
	}
	for _, m := range families[name].GetMetric() {
		match := source == ""
		for _, l := range m.GetLabel() {
			match = match || l.GetName() == "source" && l.GetValue() == source
		}
		if match {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue(), nil
		}
	}
	return 0, nil
}

// logs returns the end of the nodes' logs as an error, for when something
// failed.
func (c *cluster) logs() error {
	var b strings.Builder
	for _, p := range c.nodes {
		f, err := os.Open(p.log)
		if err != nil {
			continue
		}
		if info, err := f.Stat(); err == nil && info.Size() > 2000 {
			_, _ = f.Seek(-2000, io.SeekEnd)
		}
		text, _ := io.ReadAll(f)
		_ = f.Close()
		fmt.Fprintf(&b, "\n--- end of the log of %s\n%s", p.name, text)
	}
	if b.Len() == 0 {
		return nil
	}
	return errors.New(b.String())
}
