package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/shoal-dev/shoal/e2e/lab"
)

const (
	// services and pods are the networks within the cluster; node i has the pods
	// 10.244.i.0/24.
	services = "10.96.0.0/16"
	apiVIP   = "10.96.0.1"
	pods     = "10.244.0.0/16"
	domain   = "cluster.local"
	apiPort  = "6443"
)

// Config says what the cluster consists of.
type Config struct {
	// Nodes with a kubelet.
	Nodes int
	// Rate of each node's link, and RegistryRate of the registry's.
	Rate, RegistryRate lab.Rate
	// RegistryAuth is as in [lab.Config].
	RegistryAuth string
	// Log tells of steps that take time.
	Log zerolog.Logger
}

// Cluster is a running cluster. Close it.
type Cluster struct {
	// Lab is what it stands on. It has no nodes of its own.
	Lab *lab.Lab
	// Nodes in the order of their numbers; n1 is the first.
	Nodes []*Node

	cfg     Config
	control *lab.Machine
	pki     *authority
	env     []string // of kubectl and helm
	bin     string   // Kubernetes's own programs
	addons  lab.Addons
	helm    string
}

// New makes a cluster whose nodes are ready when it returns.
func New(ctx context.Context, cfg Config) (_ *Cluster, err error) {
	if err := check(); err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg}
	c.Lab, err = lab.New(ctx, lab.Config{RegistryRate: cfg.RegistryRate, RegistryAuth: cfg.RegistryAuth, Memory: true, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	cfg.Log.Info().Msg("building Kubernetes, unless cached")
	kubernetes, helm, err := lab.BuildKubernetes(ctx)
	if err != nil {
		return nil, err
	}
	c.bin, c.helm = kubernetes, filepath.Join(helm, "helm")
	if c.addons, err = lab.BuildAddons(ctx); err != nil {
		return nil, err
	}
	if c.control, err = c.Lab.AddMachine("control", 0); err != nil {
		return nil, err
	}
	for i := range cfg.Nodes {
		m, err := c.Lab.AddMachine(fmt.Sprintf("n%d", i+1), cfg.Rate)
		if err != nil {
			return nil, err
		}
		c.Nodes = append(c.Nodes, &Node{Machine: m, Dir: filepath.Join(c.Lab.Dir, m.Name), cluster: c, number: i + 1})
	}
	began := time.Now()
	if err := c.startControlPlane(ctx); err != nil {
		return nil, fmt.Errorf("start control plane: %w", err)
	}
	if err := c.pushPause(ctx); err != nil {
		return nil, err
	}
	var g errgroup.Group
	for _, n := range c.Nodes {
		g.Go(func() error { return n.start(ctx) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if err := n.WaitReady(ctx); err != nil {
			return nil, err
		}
	}
	cfg.Log.Info().Dur("took", time.Since(began)).Int("nodes", cfg.Nodes).Msg("the cluster is up")
	return c, nil
}

// Close takes everything down.
func (c *Cluster) Close() error { return c.Lab.Close() }

// check says what is missing besides what the laboratory needs.
func check() error {
	for _, r := range []struct{ file, pkg string }{
		{cniDir + "/portmap", "containernetworking-plugins"},
		{"/usr/sbin/ipset", "ipset"},
		{"/usr/sbin/iptables", "iptables"},
		{"/usr/sbin/nft", "nftables"},
	} {
		if _, err := os.Stat(r.file); err != nil {
			return fmt.Errorf("the cluster needs %s: install with: apt-get install -y %s", r.file, r.pkg)
		}
	}
	if _, err := os.Stat("/sys/fs/cgroup/memory"); err != nil {
		return errors.New("the cluster's nodes know control groups of version 1 only, and this computer has none: boot it with systemd.unified_cgroup_hierarchy=0")
	}
	return nil
}

// startControlPlane starts it and waits until the API answers.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	dir := filepath.Join(c.Lab.Dir, "control")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var err error
	if c.pki, err = newAuthority(dir); err != nil {
		return fmt.Errorf("make authority: %w", err)
	}
	address := c.control.Address
	if err := errors.Join(
		c.pki.issue("apiserver", "kube-apiserver", nil,
			[]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + domain},
			address, apiVIP, "127.0.0.1"),
		c.pki.issue("kubelet-client", "kube-apiserver", []string{"system:masters"}, nil),
		c.pki.issue("accounts", "accounts", nil, nil),
	); err != nil {
		return fmt.Errorf("issue certificates: %w", err)
	}
	admin, err := c.pki.kubeconfig("admin", c.server(), "admin", "system:masters")
	if err != nil {
		return err
	}
	c.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "KUBECONFIG=" + admin}

	etcd, err := c.serve("etcd", filepath.Join(c.bin, "server"),
		"--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
		"--listen-peer-urls", "http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	client := c.control.Client()
	defer client.CloseIdleConnections()
	if err := lab.WaitFor(ctx, etcd, func() error {
		resp, err := client.Get("http://127.0.0.1:2379/health")
		if err != nil {
			return err
		}
		return resp.Body.Close()
	}); err != nil {
		return err
	}
	api, err := c.serve("kube-apiserver", filepath.Join(c.bin, "kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--service-cluster-ip-range="+services,
		"--advertise-address="+address, "--secure-port="+apiPort,
		"--tls-cert-file="+c.pki.path("apiserver.crt"), "--tls-private-key-file="+c.pki.path("apiserver.key"),
		"--client-ca-file="+c.pki.path("ca.crt"), "--authorization-mode=Node,RBAC",
		"--kubelet-client-certificate="+c.pki.path("kubelet-client.crt"),
		"--kubelet-client-key="+c.pki.path("kubelet-client.key"), "--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc."+domain,
		"--service-account-signing-key-file="+c.pki.path("accounts.key"),
		"--service-account-key-file="+c.pki.path("accounts.crt"),
		"--allow-privileged=true", "--enable-admission-plugins=NodeRestriction")
	if err != nil {
		return err
	}
	if err := lab.WaitFor(ctx, api, func() error {
		_, err := c.Kubectl(ctx, "", "get", "--raw", "/readyz")
		return err
	}); err != nil {
		return err
	}
	if _, err := c.serve("kube-controller-manager", filepath.Join(c.bin, "kube-controller-manager"),
		"--kubeconfig="+admin, "--leader-elect=false", "--use-service-account-credentials=true",
		"--service-account-private-key-file="+c.pki.path("accounts.key"), "--root-ca-file="+c.pki.path("ca.crt"),
		// A node that has died is noticed sooner than by default, so that a test
		// need not wait for a minute.
		"--node-monitor-grace-period=15s"); err != nil {
		return err
	}
	if _, err := c.serve("kube-scheduler", filepath.Join(c.bin, "kube-scheduler"),
		"--kubeconfig="+admin, "--leader-elect=false"); err != nil {
		return err
	}
	corefile := filepath.Join(dir, "Corefile")
	text := fmt.Sprintf(`.:53 {
	errors
	hosts {
		%s %s
		fallthrough
	}
	kubernetes %s in-addr.arpa {
		kubeconfig %s
	}
}
`, c.Lab.Registry.Address, strings.TrimSuffix(lab.RegistryHost, ":5000"), domain, admin)
	if err := os.WriteFile(corefile, []byte(text), 0o644); err != nil {
		return err
	}
	if _, err := c.serve("coredns", filepath.Join(c.bin, "coredns"), "-conf", corefile); err != nil {
		return err
	}
	return errors.Join(c.route(c.control), c.route(c.Lab.Registry.Machine))
}

func (c *Cluster) server() string { return "https://" + c.control.Address + ":" + apiPort }

// serve starts a program of the control plane.
func (c *Cluster) serve(name string, args ...string) (*lab.Process, error) {
	return c.control.StartProcess(name, filepath.Join(c.Lab.Dir, "control", name+".log"), c.env, args...)
}

// route teaches m the way to all pods.
func (c *Cluster) route(m *lab.Machine) error {
	for _, n := range c.Nodes {
		if m == n.Machine {
			continue
		}
		if _, err := output(m, nil, "", "ip", "route", "replace", n.podCIDR(), "via", n.Address); err != nil {
			return fmt.Errorf("route pods of %s: %w", n.Name, err)
		}
	}
	return nil
}

// pauseImage is what holds a pod's namespaces.
const pauseImage = lab.RegistryHost + "/lab/pause:v1"

func (c *Cluster) pushPause(ctx context.Context) error {
	_, err := c.Lab.Push(ctx, lab.ImageSpec{Repository: "lab/pause", Tag: "v1", Size: 8e6, Layers: 1, Seed: 1, Stay: true})
	return err
}

// StartCertManager adds cert-manager to the cluster.
func (c *Cluster) StartCertManager(ctx context.Context) error {
	if _, err := c.Kubectl(ctx, "", "apply", "--server-side", "--filename", c.addons.CertManagerKinds); err != nil {
		return err
	}
	if _, err := c.Kubectl(ctx, "", "wait", "--for=condition=Established", "--timeout=30s",
		"--filename", c.addons.CertManagerKinds); err != nil {
		return err
	}
	_, err := c.serve("cert-manager", c.addons.CertManager, "--kubeconfig", c.pki.path("admin.kubeconfig"))
	return err
}

// Kubectl runs kubectl as the cluster's administrator and returns what it printed.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return c.run(ctx, stdin, filepath.Join(c.bin, "kubectl"), args...)
}

// Helm runs helm as the cluster's administrator and returns what it printed.
func (c *Cluster) Helm(ctx context.Context, args ...string) (string, error) {
	return c.run(ctx, "", c.helm, args...)
}

func (c *Cluster) run(ctx context.Context, stdin, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = c.env
	return outputOf(c.control, cmd, stdin)
}

// output runs a program to its end on m and returns what it printed.
func output(m *lab.Machine, env []string, stdin, name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Env = env
	return outputOf(m, cmd, stdin)
}

func outputOf(m *lab.Machine, cmd *exec.Cmd, stdin string) (string, error) {
	var out, errs strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := m.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("run %s on %s: %w: %s", strings.Join(append([]string{filepath.Base(cmd.Path)}, cmd.Args[1:]...), " "),
			m.Name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
