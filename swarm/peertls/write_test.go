package peertls

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// listing is the names and modes in a directory.
func listing(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]fs.FileMode{}
	for _, e := range es {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = info.Mode()
	}
	return m
}

func TestWrite(t *testing.T) {
	ca := authority(t)
	n, err := ca.Issue("a", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	caDir, nodeDir := filepath.Join(root, "x", "ca"), filepath.Join(root, "x", "node")
	if err := WriteCA(caDir, ca, false); err != nil {
		t.Fatal(err)
	}
	if err := WriteNode(nodeDir, n, false); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]fs.FileMode{CAFile: 0o644, CAKeyFile: 0o600, GossipFile: 0o600}, listing(t, caDir)); diff != "" {
		t.Errorf("authority's directory (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]fs.FileMode{CAFile: 0o644, CertFile: 0o644, KeyFile: 0o600, GossipFile: 0o600}, listing(t, nodeDir)); diff != "" {
		t.Errorf("node's directory (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(nodeDir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory made with %v, %v", info.Mode(), err)
	}
	load(t, nodeDir)
}

// TestWriteKeeps: without force nothing that exists is touched, whichever of
// the files it is, and nothing is left behind; with force all is replaced.
func TestWriteKeeps(t *testing.T) {
	ca := authority(t)
	n, err := ca.Issue("a", time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		write func(dir string, force bool) error
		names []string
	}{
		"authority": {func(dir string, force bool) error { return WriteCA(dir, ca, force) }, []string{CAFile, CAKeyFile, GossipFile}},
		"node":      {func(dir string, force bool) error { return WriteNode(dir, n, force) }, []string{CAFile, CertFile, KeyFile, GossipFile}},
	} {
		for _, name := range tc.names {
			t.Run(what+"/"+name, func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, name)
				write(t, path, []byte("precious"))
				err := tc.write(dir, false)
				if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
					t.Errorf("error is %v", err)
				}
				if got := string(read(t, path)); got != "precious" {
					t.Errorf("file now holds %q", got)
				}
				if got := listing(t, dir); len(got) != 1 {
					t.Errorf("left behind: %v", got)
				}
				if err := tc.write(dir, true); err != nil {
					t.Fatal(err)
				}
				want := slices.Sorted(slices.Values(tc.names))
				var got []string
				for name := range listing(t, dir) {
					got = append(got, name)
				}
				slices.Sort(got)
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("files (-want +got):\n%s", diff)
				}
				if got := string(read(t, path)); got == "precious" {
					t.Error("file was not replaced")
				}
			})
		}
	}
}

// TestWriteRace: a file that comes into being after the look around is kept
// as well, and what was written before it is taken back.
func TestWriteRace(t *testing.T) {
	dir := t.TempDir()
	if err := writeFile(filepath.Join(dir, "f"), file{"f", secretMode, []byte("new")}, false); err != nil {
		t.Fatal(err)
	}
	err := writeFiles(dir, false, []file{{"a", secretMode, nil}, {"b", secretMode, nil}, {"b", secretMode, nil}})
	if !errors.Is(err, fs.ErrExist) {
		t.Errorf("error is %v", err)
	}
	if diff := cmp.Diff(map[string]fs.FileMode{"f": 0o600}, listing(t, dir)); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
}

func TestLoadCA(t *testing.T) {
	ca := authority(t)
	dir := t.TempDir()
	if err := WriteCA(dir, ca, false); err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.Cluster != cluster || !again.Cert.Equal(ca.Cert) {
		t.Errorf("loaded %q, %v", again.Cluster, again.Cert.Subject)
	}
	// Nodes issued before and after know each other, and share the gossip key.
	a, b := load(t, issue(t, ca, "a")), load(t, issue(t, again, "b"))
	if s, c := connect(t, a.ServerConfig(), b.ClientConfig()); s.err != nil || c.err != nil {
		t.Errorf("server: %v, client: %v", s.err, c.err)
	}
	if string(a.GossipKey()) != string(b.GossipKey()) {
		t.Error("gossip keys differ")
	}

	other := t.TempDir()
	if err := WriteCA(other, authority(t), false); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, CAKeyFile), read(t, filepath.Join(other, CAKeyFile)))
	if _, err := LoadCA(dir); err == nil || !strings.Contains(err.Error(), "does not belong") {
		t.Errorf("foreign key: %v", err)
	}
	if _, err := LoadCA(issue(t, ca, "n")); err == nil {
		t.Error("a node's directory was taken for an authority's")
	}
}

func TestIssue(t *testing.T) {
	now := time.Now()
	ca := authority(t)
	for _, tc := range []struct {
		name, node string
		at         time.Time
		life       time.Duration
		want       string // error; empty for success
	}{
		{"plain", "node-1", now, time.Hour, ""},
		{"shared", AnyNode, now, time.Hour, ""},
		{"longest name", strings.Repeat("a", 253), now, time.Hour, ""},
		{"empty name", "", now, time.Hour, "empty"},
		{"slash", "a/b", now, time.Hour, "not allowed"},
		{"leading dash", "-a", now, time.Hour, "not allowed"},
		{"double dot", "a..b", now, time.Hour, "not allowed"},
		{"no life", "a", now, 0, "life"},
		{"dead authority", "a", now.Add(caLife + time.Hour), time.Hour, "expired"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := ca.Issue(tc.node, tc.at, tc.life)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("error is %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cl, node, err := identity(n.Cert)
			if err != nil || cl != cluster || node != tc.node {
				t.Errorf("identity %q, %q, %v", cl, node, err)
			}
		})
	}
	// Never longer than the authority.
	n, err := ca.Issue("a", now, 2*caLife)
	if err != nil {
		t.Fatal(err)
	}
	if !n.Cert.NotAfter.Equal(ca.Cert.NotAfter) {
		t.Errorf("ends %v, authority %v", n.Cert.NotAfter, ca.Cert.NotAfter)
	}
	if _, err := NewCA("", now); err == nil {
		t.Error("an authority without cluster")
	}
}
