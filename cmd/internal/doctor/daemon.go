package doctor

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// daemons are the programs that containerd is part of, and their services.
var daemons = []string{"containerd", "k3s", "k3s-server", "k3s-agent", "rke2", "rke2-server", "rke2-agent", "k0s", "k0scontroller", "k0sworker"}

// unitDirs are where systemd finds units, the weakest first.
var unitDirs = []string{"/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/system", "/etc/systemd/system"}

// daemon is containerd as a process, or else as a service.
type daemon struct {
	err error // neither is seen from here
	// env is its environment, and from where that was found.
	env  map[string]string
	from string
	// config is the absolute path of the configuration that it was started with,
	// empty if that is not known for sure.
	config string
}

// findDaemon looks for the process behind containerd's socket, or one by name, in
// proc, where processes are seen, and then for a service.
func findDaemon(e *Env, proc string) daemon {
	dir := listener(e.socket(), proc)
	sure := dir != ""
	if !sure {
		found, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "comm")) // no pattern of ours is bad
		i := slices.IndexFunc(found, func(p string) bool { return slices.Contains(daemons, comm(filepath.Dir(p))) })
		if i >= 0 {
			dir = filepath.Dir(found[i])
		}
	}
	if dir == "" {
		return findService(e)
	}
	text, err := os.ReadFile(filepath.Join(dir, "environ"))
	if err != nil {
		return daemon{err: err}
	}
	d := daemon{env: map[string]string{}, from: "process " + filepath.Base(dir) + " (" + comm(dir) + ")"}
	for v := range bytes.SplitSeq(text, []byte{0}) {
		if name, value, ok := strings.Cut(string(v), "="); ok {
			d.env[name] = value
		}
	}
	// Another one's would mislead more than none.
	if args, err := os.ReadFile(filepath.Join(dir, "cmdline")); err == nil && sure && comm(dir) == "containerd" {
		d.config = configArgument(strings.Split(string(args), "\x00"))
	}
	return d
}

// comm is the name of a process by its directory.
func comm(dir string) string {
	name, _ := os.ReadFile(filepath.Join(dir, "comm")) // it may have ended: no name of ours
	return strings.TrimSpace(string(name))
}

// listener is the directory in proc of the process that listens at a socket, empty
// if it cannot be seen from here.
func listener(socket, proc string) string {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket})
	if err != nil {
		return ""
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return ""
	}
	pid := int32(0) // what the kernel says of a process in a foreign namespace
	err = raw.Control(func(fd uintptr) {
		if c, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = c.Pid
		}
	})
	dir := filepath.Join(proc, strconv.Itoa(int(pid)))
	if err != nil || pid == 0 || comm(dir) == "" {
		return ""
	}
	return dir
}

// configArgument is the configuration in containerd's command line.
func configArgument(args []string) string {
	for i, a := range args {
		name, value, joined := strings.Cut(a, "=")
		if name != "-c" && name != "--config" && name != "-config" {
			continue
		}
		if !joined && i+1 < len(args) {
			value = args[i+1]
		}
		if filepath.IsAbs(value) {
			return value
		}
	}
	return ""
}

// findService reads what systemd would give to containerd: Environment= and
// EnvironmentFile= of units and drop-ins.
func findService(e *Env) daemon {
	env := map[string]string{}
	var files []string
	for _, dir := range unitDirs {
		for _, d := range daemons {
			drop, _ := filepath.Glob(e.path(filepath.Join(dir, d+".service.d", "*.conf"))) // no pattern of ours is bad
			for _, file := range append([]string{e.path(filepath.Join(dir, d+".service"))}, drop...) {
				text, err := os.ReadFile(file)
				if err != nil {
					continue
				}
				files = append(files, file)
				for line := range strings.Lines(strings.ReplaceAll(string(text), "\\\n", " ")) {
					line = strings.TrimSpace(line)
					if v, ok := strings.CutPrefix(line, "Environment="); ok {
						maps.Copy(env, assignments(v))
					}
					if v, ok := strings.CutPrefix(line, "EnvironmentFile="); ok {
						more, _ := os.ReadFile(e.path(strings.TrimPrefix(v, "-"))) // it need not be there
						for line := range strings.Lines(string(more)) {
							if line = strings.TrimSpace(line); !strings.HasPrefix(line, "#") {
								maps.Copy(env, assignments(line))
							}
						}
					}
				}
			}
		}
	}
	if len(files) == 0 {
		return daemon{err: fmt.Errorf("no process of containerd is seen from here, nor a service of it below %s", e.path("/etc/systemd/system"))}
	}
	return daemon{env: env, from: strings.Join(files, ", ")}
}

// assignments reads NAME=value pairs, which may be quoted, as systemd does.
func assignments(s string) map[string]string {
	env := map[string]string{}
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		end := strings.IndexAny(s, " \t")
		if q := s[0]; q == '"' || q == '\'' {
			s = s[1:]
			end = strings.IndexByte(s, q)
		}
		word := s
		if end >= 0 {
			word, s = s[:end], s[end+1:]
		} else {
			s = ""
		}
		if name, value, ok := strings.Cut(word, "="); ok {
			env[name] = strings.Trim(value, `"'`)
		}
	}
	return env
}
