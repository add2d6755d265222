package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// requirements are the programs that have to be installed, and the Debian
// packages that bring them.
var requirements = []struct{ program, pkg string }{
	{"ip", "iproute2"},
	{"tc", "iproute2"},
	{"runc", "runc"},
	{"tcpdump", "tcpdump"},
	{"go", "golang"},
}

// Check says what is missing for a laboratory: root, or programs.
func Check() error {
	if runtime.GOOS != "linux" {
		return errors.New("the laboratory needs Linux")
	}
	if os.Geteuid() != 0 {
		return errors.New("the laboratory needs root to make namespaces and shaped links: run it with sudo")
	}
	var programs, pkgs []string
	for _, r := range requirements {
		if _, err := exec.LookPath(r.program); err != nil {
			programs = append(programs, r.program)
			pkgs = append(pkgs, r.pkg)
		}
	}
	if len(programs) > 0 {
		return fmt.Errorf("the laboratory needs %s: install with: apt-get install -y %s",
			strings.Join(programs, ", "), strings.Join(pkgs, " "))
	}
	return nil
}

// Programs are the paths of what the laboratory runs.
type Programs struct {
	Containerd, Registry string
}

// Containerd is a version of it.
type Containerd string

// The versions there are.
const (
	// ContainerdNewest is the release of 2.x that e2e/programs/containerd pins.
	ContainerdNewest Containerd = ""
	// Containerd17 is the release of 1.7 that e2e/programs/containerd-1.7 pins.
	Containerd17 Containerd = "1.7"
	// ContainerdDebian is what this computer's release of Debian or Ubuntu has:
	// 1.6.20 in Debian 12.
	ContainerdDebian Containerd = "debian"
)

// BuildContainerd returns the folder with containerd, its shim and ctr, built, or
// unpacked, unless the cache has them.
func BuildContainerd(ctx context.Context, version Containerd) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	switch version {
	case ContainerdNewest:
		return buildCached(ctx, filepath.Join(root, "e2e/programs/containerd"), "",
			"github.com/containerd/containerd/v2/cmd/containerd",
			"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/v2/cmd/ctr")
	case Containerd17:
		return buildCached(ctx, filepath.Join(root, "e2e/programs/containerd-1.7"), "",
			"github.com/containerd/containerd/cmd/containerd",
			"github.com/containerd/containerd/cmd/containerd-shim-runc-v2",
			"github.com/containerd/containerd/cmd/ctr")
	case ContainerdDebian:
		cache, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find cache: %w", err)
		}
		dir := filepath.Join(cache, "shoal", "bin", "containerd-debian")
		if out, err := exec.CommandContext(ctx, filepath.Join(root, ".ci/unpack"), "containerd", dir).CombinedOutput(); err != nil {
			return "", fmt.Errorf("unpack Debian's containerd: %w: %s", err, out)
		}
		return filepath.Join(dir, "usr/bin"), nil
	default:
		return "", fmt.Errorf("no containerd %q", version)
	}
}

// BuildNerdctl returns the path of nerdctl, built as [BuildPrograms] does.
func BuildNerdctl(ctx context.Context) (string, error) {
	return buildProgram(ctx, "nerdctl", false, "github.com/containerd/nerdctl/v2/cmd/nerdctl")
}

// buildFlags make binaries that depend on nothing of this computer.
var buildFlags = []string{"-trimpath", "-buildvcs=false"}

// linkFlags leave out what only a debugger needs.
const linkFlags = "-s -w"

// BuildPrograms returns the programs, building those that the cache
// (${XDG_CACHE_HOME:-~/.cache}/shoal/bin) does not have. Cached builds are keyed
// by pinned versions, Go version and flags.
func BuildPrograms(ctx context.Context) (Programs, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return Programs{}, err
	}
	containerd, err := BuildContainerd(ctx, ContainerdNewest)
	if err != nil {
		return Programs{}, err
	}
	registry, err := buildCached(ctx, filepath.Join(root, "e2e/programs/registry"), "",
		"github.com/distribution/distribution/v3/cmd/registry")
	if err != nil {
		return Programs{}, err
	}
	return Programs{
		Containerd: filepath.Join(containerd, "containerd"),
		Registry:   filepath.Join(registry, "registry"),
	}, nil
}

// BuildStargz returns the path of the stargz snapshotter, built as [BuildPrograms]
// does; see e2e/programs/stargz.
func BuildStargz(ctx context.Context) (string, error) {
	return buildProgram(ctx, "stargz", false, ".")
}

// BuildSoci does the same for the SOCI snapshotter, see e2e/programs/soci. It has zlib
// in it, in C.
func BuildSoci(ctx context.Context) (string, error) {
	return buildProgram(ctx, "soci", true, ".")
}

// BuildKubernetes returns the folder with Kubernetes's own programs, etcd (as
// server), CoreDNS and helm, built as [BuildPrograms] does.
func BuildKubernetes(ctx context.Context) (kubernetes, helm string, err error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", "", err
	}
	const version = "k8s.io/component-base/version."
	kubernetes, err = buildCached(ctx, filepath.Join(root, "e2e/programs/kubernetes"),
		// Charts ask for the version, which its own build sets.
		" -X "+version+"gitVersion="+KubernetesVersion+" -X "+version+"gitMajor=1 -X "+version+"gitMinor=36 -X "+
			version+"gitTreeState=clean",
		"go.etcd.io/etcd/server/v3", "./coredns",
		"k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kube-controller-manager",
		"k8s.io/kubernetes/cmd/kube-proxy", "k8s.io/kubernetes/cmd/kube-scheduler",
		"k8s.io/kubernetes/cmd/kubectl", "k8s.io/kubernetes/cmd/kubelet")
	if err != nil {
		return "", "", err
	}
	helm, err = buildCached(ctx, filepath.Join(root, "e2e/programs/helm"), "", "helm.sh/helm/v3/cmd/helm")
	return kubernetes, helm, err
}

// BuildPrometheus returns the path of Prometheus's server, built as
// [BuildPrograms] does, without what finds targets elsewhere than in Kubernetes.
func BuildPrometheus(ctx context.Context) (string, error) {
	return buildProgram(ctx, "prometheus", false,
		"-tags", "remove_all_sd,enable_kubernetes_sd", "github.com/prometheus/prometheus/cmd/prometheus")
}

// buildProgram builds the one program of the folder of its name below e2e/programs,
// with C or without, and returns its path. packages may begin with flags.
func buildProgram(ctx context.Context, name string, cgo bool, packages ...string) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	dir, err := buildCachedWith(ctx, filepath.Join(root, "e2e/programs", name), "", cgo, packages...)
	return filepath.Join(dir, name), err
}

// KubernetesVersion is the one that e2e/programs/kubernetes pins.
const KubernetesVersion = "v1.36.3"

// ModuleRoot is the source tree that the calling program was started in.
func ModuleRoot(ctx context.Context) (string, error) { return moduleRoot(ctx) }

// BuildShoal compiles the shoal command of this source tree into dir and
// returns its path. With race it has the race detector in it, which says
// "DATA RACE" in the log of a process that has one.
func BuildShoal(ctx context.Context, dir string, race bool) (string, error) {
	// The tags leave out parts of the BitTorrent library that Shoal does not
	// use, and that would need cgo; the Makefile has them too.
	return buildOwn(ctx, dir, "shoal", race, "-tags", "nosqlite noboltdb disable_libutp", "./cmd/shoal")
}

// buildOwn compiles a command of this source tree into dir. args are further
// flags and the package.
func buildOwn(ctx context.Context, dir, name string, race bool, args ...string) (string, error) {
	root, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if race {
		args = append([]string{"-race"}, args...)
	}
	return path, build(ctx, root, path, linkFlags, race, args...)
}

// moduleRoot is the source tree that the calling program was started in.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/shoal-dev/shoal").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree (run this within it): %w", commandError(err))
	}
	return strings.TrimSpace(string(out)), nil
}

// buildCached compiles packages of the module in dir, with further flags of the
// linker, and returns the folder with the binaries. packages may begin with flags.
func buildCached(ctx context.Context, dir, ldflags string, packages ...string) (string, error) {
	return buildCachedWith(ctx, dir, ldflags, false, packages...)
}

// buildCachedWith is buildCached with C, or without.
func buildCachedWith(ctx context.Context, dir, ldflags string, cgo bool, packages ...string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache: %w", err)
	}
	ldflags = linkFlags + ldflags
	key, err := buildKey(dir, ldflags, packages)
	if err != nil {
		return "", err
	}
	target := filepath.Join(cache, "shoal", "bin", key)
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	// Two test binaries may come here at once.
	lock, err := lockFile(target + ".lock")
	if err != nil {
		return "", fmt.Errorf("lock cache: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock cache: %w", err)
	}
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	half := target + ".partial"
	if err := os.RemoveAll(half); err != nil {
		return "", fmt.Errorf("clear cache: %w", err)
	}
	if err := os.Mkdir(half, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	if err := build(ctx, dir, half+string(filepath.Separator), ldflags, cgo, packages...); err != nil {
		return "", err
	}
	if err := os.Rename(half, target); err != nil {
		return "", fmt.Errorf("fill cache: %w", err)
	}
	return target, nil
}

// buildKey names a build by all that goes into it: the module files fix every
// version, and programs of our own lie beside them.
func buildKey(dir, ldflags string, packages []string) (string, error) {
	own, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", fmt.Errorf("read pinned versions: %w", err)
	}
	h := sha256.New()
	for _, path := range append([]string{filepath.Join(dir, "go.mod"), filepath.Join(dir, "go.sum")}, own...) {
		p, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("read pinned versions: %w", err)
		}
		fmt.Fprintf(h, "%s %d\n%s", filepath.Base(path), len(p), p)
	}
	fmt.Fprintln(h, runtime.Version(), runtime.GOOS, runtime.GOARCH, packages, buildFlags, ldflags)
	return filepath.Base(dir) + "-" + hex.EncodeToString(h.Sum(nil))[:16], nil
}

// build compiles in the module at dir; args are further flags and the packages.
// It is polite: compiling containerd takes minutes of all processors.
func build(ctx context.Context, dir, output, ldflags string, cgo bool, args ...string) error {
	all := append([]string{"-n", "10", "go", "build", "-o", output, "-ldflags", ldflags}, buildFlags...)
	// A static binary runs in every mount namespace and in an empty image. The
	// race detector, which only our own servers get, is linked by gcc.
	enabled := "CGO_ENABLED=0"
	if cgo {
		enabled = "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "nice", append(all, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), enabled, "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

func lockFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
}

// commandError adds what a command said to the error of its failure.
func commandError(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
	}
	return err
}
