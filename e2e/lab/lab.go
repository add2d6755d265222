package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// lockPath is held by the one laboratory of this computer.
	lockPath = "/run/shoal-lab.lock"
	// tempPrefix begins the name of a laboratory's directory.
	tempPrefix = "shoal-lab-"
	// cgroupName is the control group that containers are put below.
	cgroupName = "shoal-lab"
	// maxNodes is what the numbering of addresses allows for.
	maxNodes = 250
)

// Config says what the laboratory consists of.
type Config struct {
	// Nodes to begin with; [Lab.AddNode] adds more. At most 250 in all, and none
	// for a laboratory that is made of [Lab.AddMachine].
	Nodes int
	// Rate of each node's link, and RegistryRate of the registry's. Zero is
	// unshaped, which means several Gbit/s shared by all.
	Rate, RegistryRate Rate
	// Containerd are the versions that the nodes have, in turn. Empty: the newest.
	Containerd []Containerd
	// ContainerdConfig is more of their configuration, in turn too: tables of
	// TOML that are not in it already.
	ContainerdConfig []string
	// Memory keeps containerd's and the registry's files in memory. containerd
	// syncs each layer to disk; a dozen nodes doing that on one disk at the
	// same moment would be measured in place of the network, and so would an
	// image that was just pushed, on its way to disk. It needs the image's
	// size in RAM per node and once more. Shoal's own files stay on disk: it
	// never syncs.
	Memory bool
	// Shoal is the path of the shoal binary. Empty: no node runs it, unless
	// BuildShoal says to make one of the source tree that this program was
	// started in. It goes with the laboratory.
	Shoal      string
	BuildShoal bool
	// ShoalArgs are further arguments of every `shoal serve`.
	ShoalArgs []string
	// RegistryAuth is the auth section of the registry's configuration, in
	// YAML. Empty: the registry gives everything to everybody. [Lab.Push] then
	// needs [Registry.Authorization].
	RegistryAuth string
	// RegistryHeaders are sent with each of the registry's answers.
	RegistryHeaders map[string]string
	// Log tells of steps that take time.
	Log zerolog.Logger
}

func (c Config) validate() error {
	switch {
	case c.Nodes < 0 || c.Nodes > maxNodes:
		return fmt.Errorf("%d nodes: want 0 to %d", c.Nodes, maxNodes)
	case c.Rate < 0 || c.RegistryRate < 0:
		return errors.New("negative rate")
	}
	return nil
}

// Lab is a running laboratory. Close it.
type Lab struct {
	// Dir holds configurations, sockets and logs while the laboratory lives.
	Dir string
	// Registry serves images.
	Registry *Registry

	cfg      Config
	programs Programs
	// containerd are the folders of the versions that nodes have.
	containerd map[Containerd]string
	hello      string // the images' entry point
	lock       *os.File
	bridge     *Machine
	restore    func() error // takes back what the computer was made to allow

	mu     sync.Mutex
	nodes  []*Node
	guests []*Machine
}

// BusyError says that another laboratory runs on this computer.
type BusyError struct {
	// Owner is the other's process id as it left it in the lock.
	Owner string
}

func (e *BusyError) Error() string {
	return fmt.Sprintf("another laboratory runs on this computer (process %s holds %s): wait for it to end", e.Owner, lockPath)
}

// New builds a laboratory. The nodes' containerd (and Shoal, if configured)
// answer when it returns, and every Shoal has met all others. What a killed run
// left behind is removed first.
func New(ctx context.Context, c Config) (_ *Lab, err error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("make laboratory: %w", err)
	}
	if err := Check(); err != nil {
		return nil, err
	}
	l := &Lab{cfg: c}
	// The lock comes before the builds, so that a second run is told at once.
	if l.lock, err = acquireLock(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if err := sweep(); err != nil {
		return nil, fmt.Errorf("remove an earlier run's leftovers: %w", err)
	}
	if l.restore, err = allowCongestion(); err != nil {
		return nil, fmt.Errorf("allow %s: %w", congestion, err)
	}
	c.Log.Info().Msg("building containerd and the registry, unless cached")
	if l.programs, err = BuildPrograms(ctx); err != nil {
		return nil, err
	}
	l.containerd = map[Containerd]string{ContainerdNewest: filepath.Dir(l.programs.Containerd)}
	for _, v := range c.Containerd {
		if l.containerd[v], err = BuildContainerd(ctx, v); err != nil {
			return nil, err
		}
	}
	// Sockets live in here, and their paths have a hundred-odd characters.
	if l.Dir, err = os.MkdirTemp("", tempPrefix); err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	if l.hello, err = buildOwn(ctx, l.Dir, "hello", false, "./e2e/programs/hello"); err != nil {
		return nil, err
	}
	if l.bridge, err = newBridge(); err != nil {
		return nil, err
	}
	if l.Registry, err = l.newRegistry(ctx); err != nil {
		return nil, err
	}
	if c.Shoal == "" && c.BuildShoal {
		if l.cfg.Shoal, err = BuildShoal(ctx, l.Dir, false); err != nil {
			return nil, err
		}
	}
	if l.cfg.Shoal != "" {
		if err := l.NewAuthority(ctx, l.AuthorityDir()); err != nil {
			return nil, err
		}
	}
	for range c.Nodes {
		l.addNode()
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, n := range l.Nodes() {
		g.Go(func() error { return l.bringUp(gctx, n) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if l.cfg.Shoal != "" {
		for _, n := range l.Nodes() {
			if err := n.Meet(ctx); err != nil {
				return nil, err
			}
		}
	}
	c.Log.Info().Int("nodes", c.Nodes).Stringer("rate", c.Rate).Stringer("registry", c.RegistryRate).
		Str("dir", l.Dir).Msg("the laboratory is up")
	return l, nil
}

// Nodes are the nodes there are, in the order of their numbers.
func (l *Lab) Nodes() []*Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*Node(nil), l.nodes...)
}

// Node is node i, counted from 0; n1 is node 0.
func (l *Lab) Node(i int) *Node { return l.Nodes()[i] }

// AddNode adds a node like the others and waits until it answers.
func (l *Lab) AddNode(ctx context.Context) (*Node, error) {
	if len(l.Nodes()) >= maxNodes {
		return nil, fmt.Errorf("add node: there are %d already", maxNodes)
	}
	n := l.addNode()
	if err := l.bringUp(ctx, n); err != nil {
		return nil, err
	}
	return n, nil
}

// AddMachine plugs an empty machine into the network, for what is neither
// registry nor node of this laboratory. It goes with it.
func (l *Lab) AddMachine(name string, rate Rate) (*Machine, error) {
	l.mu.Lock()
	m := &Machine{Name: name, Address: fmt.Sprintf("%s.2.%d", network, len(l.guests)+1)}
	l.guests = append(l.guests, m)
	l.mu.Unlock()
	if err := m.boot(); err != nil {
		return nil, err
	}
	return m, plug(l.bridge, m, rate)
}

// Reboot kills everything on a machine of [Lab.AddMachine], as a power cut
// does, and boots it again. What it had mounted is gone, files are not.
func (l *Lab) Reboot(m *Machine, rate Rate) error {
	m.close()
	if err := m.boot(); err != nil {
		return err
	}
	return plug(l.bridge, m, rate)
}

// Log is where the laboratory tells of its steps.
func (l *Lab) Log() zerolog.Logger { return l.cfg.Log }

// Hello is the path of the program that images have as their entry point.
func (l *Lab) Hello() string { return l.hello }

// Programs are what the laboratory's machines run.
func (l *Lab) Programs() Programs { return l.programs }

// SetRegistryRate changes the speed of the registry's link.
func (l *Lab) SetRegistryRate(r Rate) error { return shape(l.bridge, l.Registry.Machine, r) }

// SetRate changes the speed of a node's link.
func (n *Node) SetRate(r Rate) error { return shape(n.lab.bridge, n.Machine, r) }

// CutRegistry pulls the registry's cable out: packets to and from it vanish.
func (l *Lab) CutRegistry() error { return connected(l.bridge, l.Registry.Machine, false) }

// RestoreRegistry plugs it in again.
func (l *Lab) RestoreRegistry() error { return connected(l.bridge, l.Registry.Machine, true) }

// RegistryTraffic is what went over the registry's link so far.
func (l *Lab) RegistryTraffic() (Traffic, error) { return l.Registry.traffic() }

// Close takes everything down. Nothing of the laboratory remains.
func (l *Lab) Close() error {
	var wg sync.WaitGroup
	for _, n := range l.Nodes() {
		wg.Go(n.shutdown)
	}
	wg.Wait()
	for _, m := range l.guests {
		m.close()
	}
	if l.Registry != nil {
		l.Registry.close()
	}
	if l.bridge != nil {
		l.bridge.close()
	}
	var errs []error
	if l.Dir != "" {
		errs = append(errs, os.RemoveAll(l.Dir))
	}
	if l.restore != nil {
		errs = append(errs, l.restore())
	}
	errs = append(errs, removeCgroups(), l.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close laboratory: %w", err)
	}
	return nil
}

// acquireLock takes the computer's lock or returns a [BusyError]. The kernel
// lets it go with our process.
func acquireLock() (*os.File, error) {
	f, err := lockFile(lockPath)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", lockPath, err)
		}
		var owner [32]byte
		n, _ := f.Read(owner[:])
		return nil, &BusyError{Owner: string(owner[:n])}
	}
	if err := f.Truncate(0); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	if _, err := fmt.Fprint(f, os.Getpid()); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock: %w", err)
	}
	return f, nil
}

// sweep removes what a killed run left. It is called with the lock held, so
// none of it is in use.
func sweep() error {
	old, err := filepath.Glob(filepath.Join(os.TempDir(), tempPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return removeCgroups()
}

// removeCgroups removes the control groups of containers that were killed with
// their node. Only empty groups can be removed, and ours are.
func removeCgroups() error {
	var roots []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + cgroupName, "/sys/fs/cgroup/*/" + cgroupName} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		roots = append(roots, found...)
	}
	for _, root := range roots {
		var dirs []string
		err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return err
		})
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			if err := unix.Rmdir(dirs[i]); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove control group %s: %w", dirs[i], err)
			}
		}
	}
	return nil
}
