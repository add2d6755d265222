//go:build e2e

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// roleVariable makes the test binary a helper process.
const roleVariable = "SHOAL_E2E_ROLE"

// TestLabDirect shows that the laboratory measures what it should: without
// Shoal each node pulls its own copy through the registry's shaped uplink.
func TestLabDirect(t *testing.T) {
	const rate = 200 * lab.Mbit
	l := newPlainLab(t, lab.Config{Nodes: 4, Rate: rate, RegistryRate: rate})
	for _, c := range []struct {
		name  string
		nodes []*lab.Node
	}{
		{"one", nodes(l, 0)},
		{"four", l.Nodes()},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := push(t, l, "direct-"+c.name, 60*mib, 2)
			m := startMeter(t, l)
			took := pull(t, img.Ref, c.nodes...)
			n := float64(len(c.nodes))
			if got := m.copies(t, img); got < n || got > 1.08*n {
				t.Errorf("%.3f copies left the registry, want %.0f", got, n)
			}
			var slowest, bound = took[0], rate.Time(img.Size() * int64(len(c.nodes)))
			for _, d := range took {
				slowest = max(slowest, d)
			}
			if slowest < bound {
				t.Errorf("%d copies in %v: the link is not shaped, the bound is %v", len(c.nodes), slowest, bound)
			}
		})
	}
}

// TestLabLeavesNothing kills a process that runs a laboratory. While it runs, a
// second laboratory is refused; afterwards none of its processes is left, and
// the next one removes its files.
func TestLabLeavesNothing(t *testing.T) {
	if os.Getenv(roleVariable) == "victim" {
		runVictim(t)
		return
	}
	victim := exec.Command(os.Args[0], "-test.run", "^TestLabLeavesNothing$", "-test.v")
	victim.Env = append(os.Environ(), roleVariable+"=victim")
	victim.Stderr = os.Stderr
	in, err := victim.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	dir := readDir(t, out)

	var busy *lab.BusyError
	if _, err := lab.New(t.Context(), lab.Config{Nodes: 1, Log: zerolog.Nop()}); !errors.As(err, &busy) {
		t.Errorf("a second laboratory: %v, want a BusyError", err)
	} else if want := fmt.Sprint(victim.Process.Pid); busy.Owner != want {
		t.Errorf("the lock names process %s, want %s", busy.Owner, want)
	}
	if n := processesNaming(t, dir); n < 3 {
		t.Errorf("%d processes of a laboratory with a registry and two nodes", n)
	}
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait() // killed
	eventually(t, "the killed laboratory's processes to end", func() bool { return processesNaming(t, dir) == 0 })

	l := newPlainLab(t, lab.Config{Nodes: 1})
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the killed laboratory's directory is still there: %v", err)
	}
	if err := l.Node(0).SetMirrors(); err != nil {
		t.Error(err)
	}
}

// runVictim runs a laboratory until it is killed.
func runVictim(t *testing.T) {
	l, err := lab.New(t.Context(), lab.Config{Nodes: 2, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("laboratory=%s\n", l.Dir)
	var forever [1]byte
	_, err = os.Stdin.Read(forever[:])
	t.Fatalf("not killed: %v", err)
}

// readDir reads the victim's output up to the line that names its directory.
func readDir(t *testing.T, out interface{ Read([]byte) (int, error) }) string {
	t.Helper()
	var all bytes.Buffer
	buf := make([]byte, 1024)
	for {
		n, err := out.Read(buf)
		all.Write(buf[:n])
		_, rest, found := strings.Cut(all.String(), "laboratory=")
		if dir, _, whole := strings.Cut(rest, "\n"); found && whole {
			return dir
		}
		if err != nil {
			t.Fatalf("the victim ended early: %v\n%s", err, all.String())
		}
	}
}

// processesNaming counts the processes with dir in their command line.
func processesNaming(t *testing.T, dir string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, path := range lines {
		p, err := os.ReadFile(path)
		if err == nil && bytes.Contains(p, []byte(dir)) { // others end while we look
			count++
		}
	}
	return count
}
