package kubernetes

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/shoal-dev/shoal/e2e/lab"
)

const (
	// cniDir is where Debian's containernetworking-plugins are.
	cniDir = "/usr/lib/cni"
	// HostsDir is containerd's config_path on each node.
	HostsDir = "/etc/containerd/certs.d"
)

// Node is a node of the cluster.
type Node struct {
	*lab.Machine
	// Dir holds its logs, and its files as they survive a reboot.
	Dir string

	cluster *Cluster
	number  int
	made    bool // its files are there

	// Containerd, Kubelet, Proxy and Router are what runs on it. The router does
	// nothing but enforce network policies.
	Containerd, Kubelet, Proxy, Router *lab.Process
}

func (n *Node) podCIDR() string { return fmt.Sprintf("10.244.%d.0/24", n.number) }

//go:embed node.sh
var nodeScript string

const containerdConfig = `version = 3
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "` + pauseImage + `"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "` + HostsDir + `"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_cdi = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["` + cniDir + `"]
`

// registryHosts is the file of a user who has told containerd of a registry
// without TLS. Shoal has to leave it as it is.
const registryHosts = `# the laboratory's registry
server = "http://` + lab.RegistryHost + `"
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: %q}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%q]
clusterDomain: ` + domain + `
resolvConf: /etc/resolv.conf
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
serializeImagePulls: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {memory.available: 50Mi, nodefs.available: 1Mi, nodefs.inodesFree: 1%%, imagefs.available: 1Mi}
nodeStatusUpdateFrequency: 2s
syncFrequency: 5s
registryPullQPS: 0
`

const cniConfig = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// start makes a node of the machine and starts what runs on it.
func (n *Node) start(ctx context.Context) error {
	if err := os.MkdirAll(n.Dir, 0o755); err != nil {
		return fmt.Errorf("make node %s: %w", n.Name, err)
	}
	if out, err := output(n.Machine, []string{"PATH=" + os.Getenv("PATH")}, nodeScript, "bash", "-s", n.Name, n.Dir, services); err != nil {
		return fmt.Errorf("make node %s: %w: %s", n.Name, err, out)
	}
	if err := n.cluster.route(n.Machine); err != nil {
		return err
	}
	server := n.cluster.server()
	kubelet, err := n.cluster.pki.kubeconfig(n.Name, server, "system:node:"+n.Name, "system:nodes")
	if err != nil {
		return err
	}
	for path, text := range map[string]string{
		"/etc/hosts": "127.0.0.1 localhost\n" + n.Address + " " + n.Name + "\n" +
			n.cluster.Lab.Registry.Address + " registry.lab\n",
		"/etc/resolv.conf":                                "nameserver " + n.cluster.control.Address + "\n",
		"/etc/containerd/config.toml":                     containerdConfig,
		HostsDir + "/" + lab.RegistryHost + "/hosts.toml": registryHosts,
		"/etc/cni/net.d/10-pods.conflist":                 fmt.Sprintf(cniConfig, n.podCIDR()),
		"/etc/kubernetes/kubelet.yaml":                    fmt.Sprintf(kubeletConfig, n.cluster.pki.path("ca.crt"), n.cluster.control.Address),
	} {
		if n.made {
			break // as it left them before a reboot
		}
		path = n.Path(path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make node %s: %w", n.Name, err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("make node %s: %w", n.Name, err)
		}
	}
	n.made = true
	if err := n.startContainerd(ctx); err != nil {
		return err
	}
	if n.Kubelet, err = n.serve("kubelet", filepath.Join(n.cluster.bin, "kubelet"),
		"--config=/etc/kubernetes/kubelet.yaml", "--kubeconfig="+kubelet,
		"--hostname-override="+n.Name, "--node-ip="+n.Address); err != nil {
		return err
	}
	if n.Proxy, err = n.serve("kube-proxy", filepath.Join(n.cluster.bin, "kube-proxy"),
		"--kubeconfig="+n.cluster.pki.path("admin.kubeconfig"), "--hostname-override="+n.Name,
		"--proxy-mode=nftables", "--cluster-cidr="+pods,
		"--conntrack-max-per-core=0", "--conntrack-min=0",
		"--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"); err != nil {
		return err
	}
	// Its own pod would not start before.
	if err := lab.WaitFor(ctx, n.Kubelet, func() error {
		_, err := n.cluster.Kubectl(ctx, "", "get", "node", n.Name)
		return err
	}); err != nil {
		return err
	}
	n.Router, err = n.serve("kube-router", n.cluster.addons.KubeRouter,
		"--kubeconfig="+n.cluster.pki.path("admin.kubeconfig"), "--hostname-override="+n.Name,
		"--run-firewall", "--run-router=false", "--run-service-proxy=false",
		"--service-cluster-ip-range="+services, "--health-port=0")
	return err
}

// startContainerd starts containerd, on a node whose own may have been killed.
func (n *Node) startContainerd(ctx context.Context) (err error) {
	if n.Containerd, err = n.serve("containerd", n.cluster.Lab.Programs().Containerd); err != nil {
		return err
	}
	return lab.WaitFor(ctx, n.Containerd, func() error {
		conn, err := net.Dial("unix", n.Path("/run/containerd/containerd.sock"))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// Kill stops everything on the node at once, as a power cut does.
func (n *Node) Kill() error { return n.cluster.Lab.Reboot(n.Machine, n.cluster.cfg.Rate) }

// Start brings the node back after [Node.Kill].
func (n *Node) Start(ctx context.Context) error { return n.start(ctx) }

// WaitReady waits until the API server takes the node for ready.
func (n *Node) WaitReady(ctx context.Context) error {
	return lab.WaitFor(ctx, n.Kubelet, func() error {
		const condition = `{.status.conditions[?(@.type=="Ready")].status}`
		out, err := n.cluster.Kubectl(ctx, "", "get", "node", n.Name, "-o", "jsonpath="+condition)
		if err == nil && out != "True" {
			err = fmt.Errorf("node %s is not ready: %q", n.Name, out)
		}
		return err
	})
}

// serve starts a program below the node's control group.
func (n *Node) serve(name string, args ...string) (*lab.Process, error) {
	const enter = `for c in /sys/fs/cgroup/*/; do echo 0 >"$c/cgroup.procs"; done; exec unshare -C "$@"`
	path := filepath.Dir(n.cluster.Lab.Programs().Containerd) + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return n.StartProcess(name, filepath.Join(n.Dir, name+".log"),
		[]string{"PATH=" + path, "HOME=/root", "CONTAINERD_DISABLE_PIGZ=1"},
		append([]string{"bash", "-c", enter, name}, args...)...)
}
