//go:build e2e

package kubernetes

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/e2e/lab"
)

var keep = flag.Bool("keep", false, "wait for a signal before the cluster is taken down, to look around")

func TestMain(m *testing.M) {
	flag.Parse()
	for _, missing := range []error{lab.Check(), check()} {
		if missing != nil {
			fmt.Fprintln(os.Stderr, "end-to-end tests on Kubernetes:", missing)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// newCluster makes a cluster that ends with the test.
func newCluster(t *testing.T, cfg Config) *Cluster {
	t.Helper()
	cfg.Log = zerolog.New(zerolog.NewTestWriter(t))
	c, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			keepLogs(t, c)
		}
		if *keep {
			t.Logf("the cluster is in %s; `kill -INT %d` ends it", c.Lab.Dir, os.Getpid())
			interrupt := make(chan os.Signal, 1)
			signal.Notify(interrupt, os.Interrupt)
			<-interrupt
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// keepLogs copies the logs of all programs and pods to the test's artifacts.
func keepLogs(t *testing.T, c *Cluster) {
	for _, pattern := range []string{"*/*.log", "*/upper/var/log/pods/*/*/*.log"} {
		logs, err := filepath.Glob(filepath.Join(c.Lab.Dir, pattern))
		if err != nil {
			t.Error(err)
		}
		for _, from := range logs {
			p, err := os.ReadFile(from)
			if err != nil {
				t.Error(err)
				continue
			}
			rel, _ := filepath.Rel(c.Lab.Dir, from)
			name := strings.ReplaceAll(rel, "/", "-")
			if err := os.WriteFile(filepath.Join(t.ArtifactDir(), name), p, 0o644); err != nil {
				t.Error(err)
			}
			if lines := bytes.Split(bytes.TrimSpace(p), []byte("\n")); strings.Contains(rel, "upper/var/log/pods") {
				t.Logf("%s:\n%s", name, bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
			}
		}
	}
}

// kubectl runs kubectl and fails the test if it fails.
func (c *Cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply creates what a manifest says.
func (c *Cluster) apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := c.Kubectl(t.Context(), manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

// get reads an object or a list of the API into v.
func (c *Cluster) get(t *testing.T, v any, args ...string) {
	t.Helper()
	out := c.kubectl(t, append([]string{"get", "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		t.Fatal(err)
	}
}

// eventually polls a condition of the outside world.
func eventually(t *testing.T, patience time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// files are the names, modes and contents below a directory of a node, for
// comparing before with after.
func files(t *testing.T, n *Node, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	root := n.Path(dir)
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		var text []byte
		if info.Mode().IsRegular() {
			if text, err = os.ReadFile(p); err != nil {
				return err
			}
		}
		all[strings.TrimPrefix(p, root)] = fmt.Sprintf("%v %s", info.Mode(), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
