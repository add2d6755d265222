package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// congestion is how TCP finds its speed on all machines: Linux's own default, which
// most nodes of clusters run with. With BBR 16 nodes on links of 50 Mbit/s made the
// registry send 7 % of an image again, and 2 % with this one, in the same time:
// BBR does not slow down when a short queue overflows.
const congestion = "cubic"

// allowedPath lists what namespaces may choose.
const allowedPath = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"

// allowCongestion lets namespaces choose it: those of a computer that has another
// default may choose only what the computer allows to everybody. restore leaves the
// computer as it was, when the laboratory ends.
func allowCongestion() (restore func() error, err error) {
	allowed, err := os.ReadFile(allowedPath)
	if err != nil {
		return nil, err
	}
	names := strings.Fields(string(allowed))
	if slices.Contains(names, congestion) {
		return func() error { return nil }, nil
	}
	if err := os.WriteFile(allowedPath, []byte(strings.Join(append(names, congestion), " ")), 0); err != nil {
		return nil, err
	}
	return func() error { return os.WriteFile(allowedPath, allowed, 0) }, nil
}

// Machine is a set of namespaces that stands for a computer. Its methods are
// safe for concurrent use, except for boot and close.
type Machine struct {
	// Name is the host name.
	Name string
	// Address is the IP address on the laboratory's network. The bridge has
	// none.
	Address string

	holder *exec.Cmd
	pipe   io.Closer // the holder lives until this closes
	// Open files of /proc/<holder>/ns: they stay valid whatever becomes of
	// the process id.
	net, mnt, pid, uts, ipc *os.File
}

// boot makes the namespaces. Mounts made in them stay in them.
func (m *Machine) boot() error {
	// cat ends when its standard input does, and needs no code of ours.
	m.holder = exec.Command("cat")
	m.holder.Dir = "/"
	m.holder.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		// A Ctrl-C at the terminal is for us; we end the rest in order.
		Setpgid: true,
	}
	var err error
	if m.pipe, err = m.holder.StdinPipe(); err != nil {
		return fmt.Errorf("make machine %s: %w", m.Name, err)
	}
	if err := m.holder.Start(); err != nil {
		return fmt.Errorf("make namespaces of %s: %w", m.Name, err)
	}
	if err := m.prepare(); err != nil {
		return fmt.Errorf("prepare machine %s: %w", m.Name, err)
	}
	return nil
}

func (m *Machine) prepare() error {
	for _, ns := range []struct {
		name string
		into **os.File
	}{{"net", &m.net}, {"mnt", &m.mnt}, {"pid", &m.pid}, {"uts", &m.uts}, {"ipc", &m.ipc}} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", m.holder.Process.Pid, ns.name))
		if err != nil {
			return err
		}
		*ns.into = f
	}
	err := m.inside(func() error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		// Programs that write below /run find a clean one of their own.
		if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount /run: %w", err)
		}
		if err := unix.Sethostname([]byte(m.Name)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
		// The host's own setting is passed on otherwise, and figures with it.
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte(congestion), 0); err != nil {
			return fmt.Errorf("choose TCP's congestion control: %w", err)
		}
		// Addresses of the other family would only add chatter to the links.
		for _, which := range []string{"all", "default"} {
			path := filepath.Join("/proc/sys/net/ipv6/conf", which, "disable_ipv6")
			if err := os.WriteFile(path, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// /proc shows the namespace of the process that mounts it, which setns
	// does not change: a child has to do it.
	if err := m.command("", "mount", "-t", "proc", "proc", "/proc"); err != nil {
		return err
	}
	return m.command("link set lo up\n", "ip", "-batch", "-")
}

// inside calls fn on a thread within the machine's namespaces. fn must not
// start goroutines that count on being there too.
func (m *Machine) inside(fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, so
		// a changed thread is not used for anything else.
		runtime.LockOSThread()
		errs <- m.enter(fn)
	}()
	return <-errs
}

func (m *Machine) enter(fn func() error) error {
	// A mount namespace can be entered only by a thread that shares its root
	// and working directory with no other.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	for _, ns := range []struct {
		file *os.File
		kind int
	}{
		{m.net, unix.CLONE_NEWNET}, {m.uts, unix.CLONE_NEWUTS}, {m.ipc, unix.CLONE_NEWIPC},
		{m.pid, unix.CLONE_NEWPID}, {m.mnt, unix.CLONE_NEWNS},
	} {
		if err := unix.Setns(int(ns.file.Fd()), ns.kind); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.file.Name(), err)
		}
	}
	return fn()
}

// start starts cmd within the machine.
func (m *Machine) start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
	return m.inside(cmd.Start)
}

// command runs a program to its end within the machine, stdin given.
func (m *Machine) command(stdin, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	if err := m.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("run %s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return nil
}

// Start starts cmd within the machine, for a test's own tools. The caller
// waits for it. Whatever still runs when the laboratory closes is killed.
func (m *Machine) Start(cmd *exec.Cmd) error { return m.start(cmd) }

// DialContext connects from within the machine. The address must be numeric:
// names are not resolved there.
func (m *Machine) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := m.inside(func() error {
		var err error
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens within the machine, for a test's own servers. The address must
// be numeric.
func (m *Machine) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := m.inside(func() error {
		var err error
		var c net.ListenConfig
		l, err = c.Listen(ctx, network, address)
		return err
	})
	return l, err
}

// Client is an HTTP client that speaks from within the machine. Addresses must
// be numeric. Close its idle connections after use.
func (m *Machine) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:           m.DialContext,
		DisableCompression:    true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute,
	}}
}

// Path is where a file of the machine, private mounts included, is seen from
// outside, until the machine is rebooted.
func (m *Machine) Path(p string) string { return m.path(p) }

// Traffic is what went over the machine's link so far.
func (m *Machine) Traffic() (Traffic, error) { return m.traffic() }

// path is where a file of the machine, private mounts included, is seen from
// outside.
func (m *Machine) path(p string) string {
	return filepath.Join(fmt.Sprintf("/proc/%d/root", m.holder.Process.Pid), p)
}

// traffic reads the byte counters of the machine's only link.
func (m *Machine) traffic() (Traffic, error) {
	p, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", m.holder.Process.Pid))
	if err != nil {
		return Traffic{}, fmt.Errorf("read counters of %s: %w", m.Name, err)
	}
	t, err := parseTraffic(p, linkName)
	if err != nil {
		return Traffic{}, fmt.Errorf("read counters of %s: %w", m.Name, err)
	}
	return t, nil
}

// close ends every process of the machine and with them the machine. It may be
// called on one that never booted, or half.
func (m *Machine) close() {
	if m.holder == nil || m.holder.Process == nil {
		return
	}
	m.pipe.Close()
	_ = m.holder.Wait() // its exit status says nothing
	for _, f := range []*os.File{m.net, m.mnt, m.pid, m.uts, m.ipc} {
		if f != nil {
			f.Close()
		}
	}
}
