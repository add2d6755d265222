package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopPatience is how long a process may take to stop when asked to.
const stopPatience = 15 * time.Second

// Process is a server that runs on a machine, its output in a log file.
type Process struct {
	// Name of the program and of the log file.
	Name string
	// LogPath is where standard output and error go. A process that is
	// started again appends.
	LogPath string

	cmd  *exec.Cmd
	done chan struct{}
}

// startProcess starts a server on m.
func startProcess(m *Machine, name, logPath string, env []string, args ...string) (*Process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, m.Name, err)
	}
	defer log.Close()
	p := &Process{Name: name, LogPath: logPath, done: make(chan struct{})}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = env
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := m.start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, m.Name, err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the state is kept in cmd
	}()
	return p, nil
}

// StartProcess starts a server on m, its output in the log file. It is killed
// with the machine at the latest.
func (m *Machine) StartProcess(name, logPath string, env []string, args ...string) (*Process, error) {
	return startProcess(m, name, logPath, env, args...)
}

// WaitFor repeats ask until it succeeds, for a minute at most. It ends early
// with ctx, or when p, which is to answer, has ended.
func WaitFor(ctx context.Context, p *Process, ask func() error) error { return waitFor(ctx, p, ask) }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// PID is the process's id as this program sees it.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal.
func (p *Process) Signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Kill ends the process as a crash would and waits for its end.
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the process to end, waits, and fails when it had to be killed.
func (p *Process) Stop() error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopPatience):
	}
	if err := p.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("stop %s: still running %v after SIGTERM", p.Name, stopPatience)
}

// failed describes the end of a process that ought to run.
func (p *Process) failed() error {
	return fmt.Errorf("%s ended: %v\n%s", p.Name, p.cmd.ProcessState, p.tail())
}

// tail is the end of the log.
func (p *Process) tail() string {
	const lines = 30
	b, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return p.LogPath + ":\n" + strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Usage is what a process has used. Memory in bytes.
type Usage struct {
	// CPU time of the process and of the children it has waited for.
	CPU time.Duration
	// RSS is what is resident now, mapped files included, and PeakRSS the
	// most it ever was, or since [Process.ResetPeak].
	RSS, PeakRSS int64
	// Anon is the part of RSS that is no page cache: heap, stacks, buffers.
	Anon int64
	// Written is what it has written to files, pipes and connections; Disk the
	// part of it that went to files on a disk, memory file systems left out.
	Written, Disk int64
}

// Usage reads the process's entry in /proc. After the end of the process only
// its CPU time is known.
func (p *Process) Usage() (Usage, error) {
	select {
	case <-p.done:
		s := p.cmd.ProcessState
		return Usage{CPU: s.UserTime() + s.SystemTime()}, nil
	default:
	}
	dir := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of %s: %w", p.Name, err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of %s: %w", p.Name, err)
	}
	u, err := parseUsage(stat, status)
	if err == nil {
		err = u.parseIO(filepath.Join(dir, "io"))
	}
	if err != nil {
		return Usage{}, fmt.Errorf("read usage of %s: %w", p.Name, err)
	}
	return u, nil
}

// ResetPeak makes the present size the peak.
func (p *Process) ResetPeak() error {
	// proc_pid_clear_refs(5): 5 resets the peak resident set size.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak of %s: %w", p.Name, err)
	}
	return nil
}

// userHz is the unit of times in /proc, fixed by the kernel's interface at 100
// on every architecture that Go runs on.
const userHz = 100

func parseUsage(stat, status []byte) (Usage, error) {
	// The second field is the name in parentheses, which may hold anything.
	end := bytes.LastIndexByte(stat, ')')
	if end < 0 {
		return Usage{}, errors.New("parse stat: no name")
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 15 {
		return Usage{}, fmt.Errorf("parse stat: %d fields", len(f))
	}
	var u Usage
	for _, s := range f[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("parse stat: %w", err)
		}
		u.CPU += time.Duration(n) * time.Second / userHz
	}
	err := parseFields(status, map[string]*int64{"VmRSS": &u.RSS, "VmHWM": &u.PeakRSS, "RssAnon": &u.Anon})
	if err != nil {
		return Usage{}, fmt.Errorf("parse status: %w", err)
	}
	return u, nil
}

// parseIO reads what a process has written.
func (u *Usage) parseIO(path string) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := parseFields(p, map[string]*int64{"wchar": &u.Written, "write_bytes": &u.Disk}); err != nil {
		return fmt.Errorf("parse io: %w", err)
	}
	return nil
}

// parseFields reads lines "name: value" of a file in /proc, where what is in kB
// becomes bytes. Names that are not asked for are passed over.
func parseFields(text []byte, into map[string]*int64) error {
	for line := range bytes.Lines(text) {
		name, value, _ := strings.Cut(string(line), ":")
		to := into[name]
		if to == nil {
			continue
		}
		value, kib := strings.CutSuffix(strings.TrimSpace(value), " kB")
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if kib {
			n <<= 10
		}
		*to = n
	}
	return nil
}

// CPUTime is the machine's accumulated time over all processors.
type CPUTime struct{ Idle, Total time.Duration }

// ReadCPUTime reads the clock of the computer that the laboratory runs on.
func ReadCPUTime() (CPUTime, error) {
	p, err := os.ReadFile("/proc/stat")
	if err != nil {
		return CPUTime{}, err
	}
	line, _, _ := bytes.Cut(p, []byte("\n"))
	f := strings.Fields(string(line))
	if len(f) < 9 || f[0] != "cpu" {
		return CPUTime{}, fmt.Errorf("parse /proc/stat: %q", line)
	}
	var t CPUTime
	for i, s := range f[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return CPUTime{}, fmt.Errorf("parse /proc/stat: %w", err)
		}
		d := time.Duration(n) * time.Second / userHz
		t.Total += d
		if i == 3 || i == 4 {
			t.Idle += d
		}
	}
	return t, nil
}

// IdleSince is the idle share of the time since an earlier reading, 0 to 1.
func (t CPUTime) IdleSince(earlier CPUTime) float64 {
	if t.Total == earlier.Total {
		return 0
	}
	return float64(t.Idle-earlier.Idle) / float64(t.Total-earlier.Total)
}
