package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// criTimeout bounds the short CRI calls. A pull is bounded by its context
// alone, as it is in the kubelet.
const criTimeout = 30 * time.Second

// Node is a machine with containerd and, if the laboratory has it, Shoal.
type Node struct {
	*Machine
	// Dir holds the node's configuration, sockets and logs.
	Dir string

	lab     *Lab
	version Containerd
	config  string // further configuration of containerd
	cri     internalapi.ImageManagerService
	runs    sync.Mutex // one container at a time; guards run
	run     int

	mu         sync.Mutex
	containerd *Process
	shoal      *Process
	more       []string // arguments of Shoal's last start
}

// addNode reserves a number. The namespaces come with bringUp.
func (l *Lab) addNode() *Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := len(l.nodes) + 1
	n := &Node{
		Machine: &Machine{Name: fmt.Sprintf("n%d", i), Address: fmt.Sprintf("%s.1.%d", network, i)},
		Dir:     filepath.Join(l.Dir, fmt.Sprintf("n%d", i)),
		lab:     l,
	}
	if vs := l.cfg.Containerd; len(vs) > 0 {
		n.version = vs[(i-1)%len(vs)]
	}
	if cs := l.cfg.ContainerdConfig; len(cs) > 0 {
		n.config = cs[(i-1)%len(cs)]
	}
	l.nodes = append(l.nodes, n)
	return n
}

// bringUp makes the node and starts what runs on it.
func (l *Lab) bringUp(ctx context.Context, n *Node) error {
	if err := n.boot(); err != nil {
		return err
	}
	if err := plug(l.bridge, n.Machine, l.cfg.Rate); err != nil {
		return err
	}
	for _, dir := range []string{n.Dir, n.HostsDir(), n.containerdRoot(), n.ShoalDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", n.Name, err)
		}
	}
	if err := n.mounts(); err != nil {
		return fmt.Errorf("make %s: %w", n.Name, err)
	}
	if err := n.StartContainerd(ctx); err != nil {
		return err
	}
	if l.cfg.Shoal == "" {
		return n.SetMirrors()
	}
	if err := l.Issue(ctx, l.AuthorityDir(), n.Name, filepath.Dir(n.CertsDir())); err != nil {
		return err
	}
	if err := n.StartShoal(ctx); err != nil {
		return err
	}
	return n.SetMirrors(n.Mirror())
}

func (n *Node) mounts() error {
	hosts := filepath.Join(n.Dir, "hosts")
	text := fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", registryAddress, registryName)
	if err := os.WriteFile(hosts, []byte(text), 0o644); err != nil {
		return err
	}
	return n.inside(func() error {
		if err := unix.Mount(hosts, "/etc/hosts", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount hosts file: %w", err)
		}
		if !n.lab.cfg.Memory {
			return nil
		}
		if err := unix.Mount("tmpfs", n.containerdRoot(), "tmpfs", 0, "size=100%"); err != nil {
			return fmt.Errorf("mount memory: %w", err)
		}
		return nil
	})
}

// HostsDir is containerd's config_path.
func (n *Node) HostsDir() string       { return filepath.Join(n.Dir, "certs.d") }
func (n *Node) containerdRoot() string { return filepath.Join(n.Dir, "containerd") }

// ContainerdSocket is where containerd listens, on this file system too.
func (n *Node) ContainerdSocket() string { return filepath.Join(n.Dir, "containerd.sock") }

// ContentPath is where containerd keeps a blob, seen from outside the node.
func (n *Node) ContentPath(d digest.Digest) string {
	return n.path(filepath.Join(n.ContentRoot(), "blobs/sha256", d.Encoded()))
}

// HasBlobs tells whether containerd has committed all of these.
func (n *Node) HasBlobs(blobs ...ocispec.Descriptor) bool {
	for _, b := range blobs {
		if _, err := os.Stat(n.ContentPath(b.Digest)); err != nil {
			return false
		}
	}
	return true
}

// containerdConfig: one config_path, because with containerd's default of two
// no hosts file is read at all; no plugin that wants kernel features or files of
// the computer; no sandbox image, for nothing makes a pod.
const containerdConfig = `version = 3
root = %q
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.image-verifier.v1.bindir",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs", "io.containerd.mount-handler.v1.erofs",
]
[grpc]
  address = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = ""
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  enable_cdi = false
`

// containerd1Config is the same for 1.6 and 1.7.
const containerd1Config = `version = 2
root = %q
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.blockfile",
]
[grpc]
  address = %q
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = %q
`

// ContainerdVersion is what the node's containerd says of itself.
func (n *Node) ContainerdVersion() (string, error) {
	out, err := exec.Command(n.program("containerd"), "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask containerd for its version: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// program is the path of a program of the node's containerd.
func (n *Node) program(name string) string { return filepath.Join(n.lab.containerd[n.version], name) }

// ContainerdConfig is the file that containerd is started with. It is written before
// the first start; a test may change it between a stop and the next one.
func (n *Node) ContainerdConfig() string { return filepath.Join(n.Dir, "config.toml") }

func (n *Node) writeContainerdConfig() error {
	text := containerdConfig
	if n.version != ContainerdNewest {
		text = containerd1Config
	}
	text = fmt.Sprintf(text, n.containerdRoot(), n.ContainerdSocket(), n.HostsDir()) + n.config
	return os.WriteFile(n.ContainerdConfig(), []byte(text), 0o644)
}

// StartContainerd starts containerd, with more environment if need be, and waits
// until CRI answers.
func (n *Node) StartContainerd(ctx context.Context, more ...string) error {
	if _, err := os.Stat(n.ContainerdConfig()); errors.Is(err, os.ErrNotExist) {
		if err := n.writeContainerdConfig(); err != nil {
			return fmt.Errorf("start containerd on %s: %w", n.Name, err)
		}
	}
	env := []string{
		// The shim lies beside containerd.
		"PATH=" + n.lab.containerd[n.version] + ":" + os.Getenv("PATH"),
		// Unpacking is to cost the same wherever the benchmark runs.
		"CONTAINERD_DISABLE_PIGZ=1", "CONTAINERD_DISABLE_IGZIP=1",
	}
	p, err := startProcess(n.Machine, "containerd", filepath.Join(n.Dir, "containerd.log"), append(env, more...),
		n.program("containerd"), "--config", n.ContainerdConfig(), "--log-level", "info")
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.containerd = p
	n.mu.Unlock()
	return waitFor(ctx, p, func() error {
		if _, err := os.Stat(n.ContainerdSocket()); err != nil {
			return err
		}
		if n.cri == nil {
			c, err := criclient.NewRemoteImageServiceBuilder().
				WithEndpoint("unix://" + n.ContainerdSocket()).WithConnectionTimeout(criTimeout).Build(ctx)
			if err != nil {
				return err
			}
			n.cri = c
		}
		_, err := n.cri.ImageFsInfo(klog.NewContext(ctx, logr.Discard())) // which logs what it returns
		return err
	})
}

// StartProgram starts a program of somebody else on the node, its output in
// name.log in the node's directory. It is killed with the node at the latest.
func (n *Node) StartProgram(name string, args ...string) (*Process, error) {
	return startProcess(n.Machine, name, filepath.Join(n.Dir, name+".log"), os.Environ(), args...)
}

// ContentRoot is containerd's content store, as it is seen on the node.
func (n *Node) ContentRoot() string {
	return filepath.Join(n.containerdRoot(), "io.containerd.content.v1.content")
}

// Containerd is the node's containerd process.
func (n *Node) Containerd() *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.containerd
}

// SetMirrors makes containerd ask these mirrors before the registry, in this
// order. It holds from the next pull on. None: the registry alone.
func (n *Node) SetMirrors(urls ...string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "server = %q\n", "http://"+RegistryHost)
	for _, u := range urls {
		fmt.Fprintf(&b, "\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", u)
	}
	return n.SetHosts(b.String())
}

// SetHosts writes containerd's hosts.toml for the registry as it is given.
func (n *Node) SetHosts(toml string) error {
	dir := filepath.Join(n.HostsDir(), RegistryHost)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("set mirrors of %s: %w", n.Name, err)
	}
	// A pull may read the file at any moment.
	half := filepath.Join(n.Dir, "hosts.toml")
	if err := os.WriteFile(half, []byte(toml), 0o644); err != nil {
		return fmt.Errorf("set mirrors of %s: %w", n.Name, err)
	}
	if err := os.Rename(half, filepath.Join(dir, "hosts.toml")); err != nil {
		return fmt.Errorf("set mirrors of %s: %w", n.Name, err)
	}
	return nil
}

// Pull pulls an image through CRI, as the kubelet does, and returns how long it
// took, unpacking included.
func (n *Node) Pull(ctx context.Context, ref string) (time.Duration, error) {
	return n.pull(ctx, ref, nil)
}

// PullAs is Pull with a pod's pull secret, as the kubelet passes it on.
func (n *Node) PullAs(ctx context.Context, ref, user, password string) (time.Duration, error) {
	return n.pull(ctx, ref, &cri.AuthConfig{Username: user, Password: password})
}

func (n *Node) pull(ctx context.Context, ref string, auth *cri.AuthConfig) (time.Duration, error) {
	// The library logs what it returns.
	ctx = klog.NewContext(ctx, logr.Discard())
	start := time.Now()
	_, err := n.cri.PullImage(ctx, &cri.ImageSpec{Image: ref}, auth, nil)
	took := time.Since(start)
	if err != nil {
		return took, fmt.Errorf("pull %s on %s: %w", ref, n.Name, err)
	}
	return took, nil
}

// Has tells whether CRI knows the image.
func (n *Node) Has(ctx context.Context, ref string) (bool, error) {
	s, err := n.cri.ImageStatus(ctx, &cri.ImageSpec{Image: ref}, false)
	if err != nil {
		return false, fmt.Errorf("ask %s for %s: %w", n.Name, ref, err)
	}
	return s.Image != nil, nil
}

// Remove removes an image; containerd collects its content at once.
func (n *Node) Remove(ctx context.Context, ref string) error {
	if err := n.cri.RemoveImage(ctx, &cri.ImageSpec{Image: ref}); err != nil {
		return fmt.Errorf("remove %s on %s: %w", ref, n.Name, err)
	}
	return nil
}

// Run runs a container of a pulled image to its end and returns what it said.
func (n *Node) Run(ctx context.Context, ref string) (string, error) {
	return n.RunOn(ctx, "overlayfs", ref)
}

// RunOn is Run with another snapshotter than containerd's default.
func (n *Node) RunOn(ctx context.Context, snapshotter, ref string) (string, error) {
	n.runs.Lock()
	defer n.runs.Unlock()
	n.run++
	// The control group's name is seen by all nodes.
	id := fmt.Sprintf("%s-%d", n.Name, n.run)
	// The shim writes there. Of a container that ends at once the client itself may
	// have nothing to tell: it gives up opening the pipe when the task is deleted.
	said := filepath.Join(n.Dir, id+".out")
	if _, err := n.Ctr(ctx, "run", "--rm", "--snapshotter", snapshotter, "--cgroup", "/"+cgroupName+"/"+id,
		"--log-uri", "file://"+said, ref, id); err != nil {
		return "", err
	}
	out, err := os.ReadFile(said)
	if err != nil {
		return "", fmt.Errorf("read what %s said: %w", id, err)
	}
	return string(out), nil
}

// Ctr runs containerd's own client in the namespace of CRI and returns what it
// said. It has to be told of [Node.HostsDir].
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	return n.Output(ctx, n.program("ctr"), append([]string{"--address", n.ContainerdSocket(), "--namespace", "k8s.io"}, args...)...)
}

// Output runs a program on the node to its end and returns what it said.
func (n *Node) Output(ctx context.Context, program string, args ...string) (string, error) {
	what := fmt.Sprintf("run %s %s on %s", filepath.Base(program), strings.Join(args, " "), n.Name)
	var out, errs strings.Builder
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := n.start(cmd); err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", what, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// Disconnect pulls the node's cable out and Reconnect plugs it in again.
func (n *Node) Disconnect() error { return connected(n.lab.bridge, n.Machine, false) }

// Reconnect is the reverse of [Node.Disconnect].
func (n *Node) Reconnect() error { return connected(n.lab.bridge, n.Machine, true) }

func (n *Node) shutdown() {
	if n.cri != nil {
		if err := n.cri.Close(context.Background()); err != nil && !errors.Is(err, context.Canceled) {
			n.lab.cfg.Log.Debug().Err(err).Str("node", n.Name).Msg("close CRI connection")
		}
	}
	n.Machine.close()
}
