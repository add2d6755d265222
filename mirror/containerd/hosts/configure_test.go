package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-cmp/cmp"
)

// tree makes a directory with files; a name that ends in a slash is a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs.d")
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// snapshot is all that is in the parent of a directory: mode, owner and content
// by path.
func snapshot(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	root := filepath.Dir(dir)
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		owner := info.Sys().(*syscall.Stat_t)
		all[rel] = fmt.Sprintf("%v %d:%d ", info.Mode(), owner.Uid, owner.Gid)
		switch {
		case info.Mode().IsRegular():
			text, err := os.ReadFile(p)
			all[rel] += string(text)
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			all[rel] += to
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func configure(t *testing.T, dir string, registries ...string) map[string]Outcome {
	t.Helper()
	changes, err := Configure(Config{Dir: dir, Mirror: mirror, Registries: registries})
	if err != nil {
		t.Fatal(err)
	}
	return outcomes(dir, changes)
}

func unconfigure(t *testing.T, dir string) map[string]Outcome {
	t.Helper()
	changes, err := Unconfigure(dir)
	if err != nil {
		t.Fatal(err)
	}
	return outcomes(dir, changes)
}

func outcomes(dir string, changes []Change) map[string]Outcome {
	all := map[string]Outcome{}
	for _, c := range changes {
		rel, _ := filepath.Rel(dir, c.Path)
		all[rel] = c.Outcome
		if c.Backup != "" {
			all[rel] += ", backup left"
		}
	}
	return all
}

// first is the host that containerd asks first for an image of the registry.
func first(t *testing.T, dir, registry string) string {
	t.Helper()
	hosts, err := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(dir)})(registry)
	if err != nil {
		t.Fatal(err)
	}
	return hosts[0].Scheme + "://" + hosts[0].Host
}

// TestRoundTrip: all registries are configured, a second time changes nothing,
// and unconfigure restores every byte, mode, owner, link and directory.
func TestRoundTrip(t *testing.T) {
	const theirs = "# ours\nserver = \"https://registry.test\"\n[host.\"https://m.test\"]\n"
	for _, c := range []struct {
		name       string
		files      map[string]string
		registries []string
		want       map[string]Outcome
	}{
		{"nothing", nil, nil, map[string]Outcome{"_default/hosts.toml": Written}},
		{"empty", map[string]string{"./": ""}, nil, map[string]Outcome{"_default/hosts.toml": Written}},
		{"all that have a directory", map[string]string{
			"_default/hosts.toml": theirs, "registry.test/hosts.toml": theirs, "empty.test/": "", "port.test_5000_/hosts.toml": "",
			"registry.test:5000/": "", "[fd00::1]_5000_/": "", "_backup/hosts.toml": theirs, "README": "x", "Not A Registry/hosts.toml": "",
		}, nil, map[string]Outcome{
			"_default/hosts.toml": Written, "registry.test/hosts.toml": Written, "empty.test/hosts.toml": Written,
			"port.test_5000_/hosts.toml": Written, "registry.test:5000/hosts.toml": Written, "[fd00::1]_5000_/hosts.toml": Written,
		}},
		{"some", map[string]string{"registry.test/hosts.toml": theirs, "port.test_5000_/hosts.toml": theirs, "left.test/hosts.toml": theirs},
			[]string{"registry.test", "docker.io", "port.test:5000", "[::1]:5000", "registry.test"},
			map[string]Outcome{"registry.test/hosts.toml": Written, "docker.io/hosts.toml": Written, "port.test_5000_/hosts.toml": Written, "[::1]:5000/hosts.toml": Written}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, c.files)
			before := snapshot(t, dir)
			if diff := cmp.Diff(c.want, configure(t, dir, c.registries...)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			after := snapshot(t, dir)
			for _, r := range append([]string{"port.test:5000", "registry.test"}, c.registries...) {
				if got := first(t, dir, r); got != mirror {
					t.Errorf("%s: first host %s", r, got)
				}
				if c.registries == nil && first(t, dir, "other.test") != mirror {
					t.Error("other.test is not configured")
				}
				if _, ok := c.files["registry.test/hosts.toml"]; !ok {
					break
				}
			}
			for file, outcome := range configure(t, dir, c.registries...) {
				if outcome != Unchanged {
					t.Errorf("second time: %s %s", file, outcome)
				}
			}
			if diff := cmp.Diff(after, snapshot(t, dir)); diff != "" {
				t.Errorf("second time (-first +second):\n%s", diff)
			}
			for path := range after {
				if strings.Contains(filepath.Base(path), ".toml.") && !strings.HasSuffix(path, backupSuffix) {
					t.Errorf("a temporary file is left: %s", path)
				}
			}
			unconfigure(t, dir)
			if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
				t.Errorf("unconfigured (-before +after):\n%s", diff)
			}
			unconfigure(t, dir)
		})
	}
}

// TestFilesKeepTheirNature: mode, owner and links are as before, while
// configured too.
func TestFilesKeepTheirNature(t *testing.T) {
	dir := tree(t, map[string]string{"registry.test/hosts.toml": "# x\n", "../elsewhere/hosts.toml": "# y\n"})
	file := filepath.Join(dir, "registry.test", fileName)
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(file, 1234, 4321); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"file.test/hosts.toml": "../../elsewhere/hosts.toml", "dir.test": "../elsewhere"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	before := snapshot(t, dir)
	configure(t, dir)
	for _, r := range []string{"registry.test", "file.test", "dir.test"} {
		if got := first(t, dir, r); got != mirror {
			t.Errorf("%s: first host %s", r, got)
		}
	}
	during := snapshot(t, dir)
	for path, was := range before {
		is := during[path]
		if strings.Join(strings.Fields(was)[:2], " ") != strings.Join(strings.Fields(is)[:2], " ") {
			t.Errorf("%s: was %q, is %q", path, was, is)
		}
	}
	unconfigure(t, dir)
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Errorf("unconfigured (-before +after):\n%s", diff)
	}
}

// TestNothingTouched: what cannot be done to one file is done to none.
func TestNothingTouched(t *testing.T) {
	const theirs = "[host.\"https://m.test\"]\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		spoil func(dir string) error
		names []string
		want  string
	}{
		{name: "does not parse", files: map[string]string{"a.test/hosts.toml": theirs, "b.test/hosts.toml": "# x\nserver = oops\n"}, want: "b.test/hosts.toml: line 2:"},
		{name: "two do not", files: map[string]string{"a.test/hosts.toml": "x", "b.test/hosts.toml": "# x\n[host\n"}, want: "b.test/hosts.toml: line 2:"},
		{name: "a directory", files: map[string]string{"a.test/hosts.toml": theirs, "b.test/hosts.toml/": ""}, want: "not a regular file"},
		{name: "a pipe", files: map[string]string{"a.test/hosts.toml": theirs, "b.test/": ""}, want: "not a regular file",
			spoil: func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "b.test", fileName), 0o644) }},
		{name: "a broken link", files: map[string]string{"a.test/hosts.toml": theirs, "b.test/": ""}, want: "leads nowhere",
			spoil: func(dir string) error { return os.Symlink("nowhere", filepath.Join(dir, "b.test", fileName)) }},
		{name: "huge", files: map[string]string{"a.test/hosts.toml": theirs, "b.test/hosts.toml": strings.Repeat("# x\n", maxFile/4+1)}, want: "larger than"},
		{name: "cannot be written", files: map[string]string{"a.test/hosts.toml": theirs, "b.test/hosts.toml": theirs, "b.test/hosts.toml.shoal-backup/x": ""}, want: "hosts.toml.shoal-backup"},
		{name: "the registry is a file", files: map[string]string{"a.test/hosts.toml": theirs, "b.test": ""}, names: []string{"a.test", "b.test"}, want: "not a directory"},
		{name: "would hide _default", files: map[string]string{"_default/hosts.toml": theirs}, names: []string{"a.test"}, want: "it would hide"},
		{name: "would hide the certificate of _default", files: map[string]string{"_default/ca.crt": ""}, names: []string{"a.test"}, want: "it would hide"},
		{name: "no parent", names: []string{"a.test"}, spoil: func(dir string) error { return os.RemoveAll(filepath.Dir(dir)) }, want: "is containerd configured elsewhere?"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, c.files)
			if c.spoil != nil {
				if err := c.spoil(dir); err != nil {
					t.Fatal(err)
				}
			}
			var before map[string]string
			exists := func() bool { _, err := os.Stat(filepath.Dir(dir)); return err == nil }
			if exists() {
				before = snapshot(t, dir)
			}
			changes, err := Configure(Config{Dir: dir, Mirror: mirror, Registries: c.names})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q; changes %v", err, c.want, changes)
			}
			if exists() {
				if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
					t.Errorf("(-before +after):\n%s", diff)
				}
			}
		})
	}
}

// TestNotAllowed runs as somebody who may not write, or not read.
func TestNotAllowed(t *testing.T) {
	for _, c := range []struct {
		name, path string
		mode       fs.FileMode
	}{
		{"directory is read only", "b.test", 0o555},
		{"file is unreadable", "b.test/hosts.toml", 0o200},
		{"directory is unreadable", "b.test", 0},
		{"all is read only", ".", 0o555},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, map[string]string{"a.test/hosts.toml": "# a\n", "b.test/hosts.toml": "# b\n"})
			giveAway(t, dir)
			before := snapshot(t, dir)
			path := filepath.Join(dir, c.path)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			err = withoutPrivileges(func() error {
				_, err := Configure(Config{Dir: dir, Mirror: mirror})
				return err
			})
			if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("error %v", err)
			}
			if err := os.Chmod(path, info.Mode()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
		})
	}
}

// TestEdits: what others change meanwhile survives unconfigure.
func TestEdits(t *testing.T) {
	const theirs = "# x\n[host.\"https://m.test\"]\n"
	add := func(text string) func(string) error {
		return func(path string) error {
			old, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, append(old, text...), 0o644))
		}
	}
	for _, c := range []struct {
		name    string
		before  map[string]string
		edit    func(path string) error
		after   map[string]string
		outcome Outcome
	}{
		{"a host more", map[string]string{"a.test/hosts.toml": theirs}, add("[host.\"https://n.test\"]\n"),
			map[string]string{"a.test/hosts.toml": theirs + "[host.\"https://n.test\"]\n", "a.test/hosts.toml.shoal-backup": theirs}, "written, backup left"},
		{"in a file of ours", nil, add("[host.\"https://n.test\"]\n"),
			map[string]string{"a.test/hosts.toml": "[host.\"https://n.test\"]\n"}, Written},
		{"overwritten", map[string]string{"a.test/hosts.toml": theirs}, func(p string) error { return os.WriteFile(p, []byte("# new\n"), 0o644) },
			map[string]string{"a.test/hosts.toml": "# new\n", "a.test/hosts.toml.shoal-backup": theirs}, "unchanged, backup left"},
		{"our block deleted", map[string]string{"a.test/hosts.toml": theirs}, func(p string) error { return os.WriteFile(p, []byte(theirs), 0o644) },
			map[string]string{"a.test/hosts.toml": theirs}, Unchanged},
		{"file deleted", map[string]string{"a.test/": ""}, os.Remove, map[string]string{"a.test/": ""}, ""},
		{"directory deleted", map[string]string{"a.test/hosts.toml": theirs}, func(p string) error { return os.RemoveAll(filepath.Dir(p)) }, map[string]string{"./": ""}, ""},
		{"a file beside ours", nil, func(p string) error { return os.WriteFile(filepath.Dir(p)+"/notes", nil, 0o644) },
			map[string]string{"a.test/notes": ""}, Removed},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := tree(t, c.before)
			configure(t, dir, "a.test")
			if err := c.edit(filepath.Join(dir, "a.test", fileName)); err != nil {
				t.Fatal(err)
			}
			if got := unconfigure(t, dir)["a.test/hosts.toml"]; got != c.outcome {
				t.Errorf("outcome %q, want %q", got, c.outcome)
			}
			if diff := cmp.Diff(snapshot(t, tree(t, c.after)), snapshot(t, dir)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestBackup: it is the file as it was when the block went in, not what it was
// at some time long ago, and not our own work.
func TestBackup(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/hosts.toml": "# one\n"})
	file := filepath.Join(dir, "a.test", fileName)
	backup := func() string { p, _ := os.ReadFile(file + backupSuffix); return string(p) }
	configure(t, dir)
	if _, err := Configure(Config{Dir: dir, Mirror: "http://127.0.0.1:7000"}); err != nil || backup() != "# one\n" {
		t.Errorf("%v, backup %q", err, backup())
	}
	if err := os.WriteFile(file, []byte("# two\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	configure(t, dir)
	if backup() != "# two\n" {
		t.Errorf("backup %q", backup())
	}
}

// TestUnconfigureRefuses: a file of ours that no longer parses is reported, and
// no other one touched.
func TestUnconfigureRefuses(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/": "", "b.test/": ""})
	configure(t, dir)
	file := filepath.Join(dir, "b.test", fileName)
	if err := os.WriteFile(file, []byte(ours+"oops\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, dir)
	if _, err := Unconfigure(dir); err == nil || !strings.Contains(err.Error(), "b.test/hosts.toml: line 5:") {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// TestCertificates: what containerd found in the directory before there was a
// hosts.toml it still finds.
func TestCertificates(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/": ""})
	writeCertificate(t, filepath.Join(dir, "a.test", "my \"own\".crt"))
	before := snapshot(t, dir)
	authorities := func() int {
		hosts, err := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(dir)})("a.test")
		if err != nil {
			t.Fatal(err)
		}
		last := hosts[len(hosts)-1]
		return len(tlsOf(last.Client).RootCAs.Subjects()) //nolint:staticcheck // counting them is all that is wanted
	}
	want := authorities()
	configure(t, dir)
	if got := authorities(); got != want {
		t.Errorf("%d authorities, want %d", got, want)
	}
	file := filepath.Join(dir, "a.test", fileName)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(text, "[host.\"https://m.test\"]\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := configure(t, dir)["a.test/hosts.toml"]; got != Unchanged || authorities() != want {
		t.Errorf("edited: %s, %d authorities", got, authorities())
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	unconfigure(t, dir)
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

func TestClientCertificates(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/one.cert": "", "a.test/one.key": "", "a.test/two.cert": "", "a.test/x.crt/": ""})
	configure(t, dir)
	text, err := os.ReadFile(filepath.Join(dir, "a.test", fileName))
	if want := "client = [['one.cert', 'one.key'], ['two.cert', 'two.cert']]\n"; err != nil || !strings.Contains(string(text), want) {
		t.Errorf("%v, %s, want %s", err, text, want)
	}
}

// TestConcurrently: whoever comes first, the file is whole and the last word is
// that of one of them.
func TestConcurrently(t *testing.T) {
	dir := tree(t, nil)
	before := snapshot(t, dir)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				if i%4 == 0 {
					if _, err := Unconfigure(dir); err != nil {
						t.Error(err)
					}
				} else if _, err := Configure(Config{Dir: dir, Mirror: fmt.Sprintf("http://127.0.0.1:%d", 7000+i)}); err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	configure(t, dir)
	if got := first(t, dir, "a.test"); got != mirror {
		t.Errorf("first host %s", got)
	}
	unconfigure(t, dir)
	if diff := cmp.Diff(before, snapshot(t, dir)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// TestLock: who has waited for a directory that was made anew meanwhile has the
// lock on the new one.
func TestLock(t *testing.T) {
	dir := tree(t, map[string]string{"./": ""})
	first, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan *os.File)
	go func() {
		defer close(waited)
		second, err := lock(dir)
		if err != nil {
			t.Error(err)
		}
		waited <- second
	}()
	time.Sleep(50 * time.Millisecond) // it is waiting, most probably
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	first.Close()
	second := <-waited
	defer second.Close()
	has, err := second.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if is, err := os.Stat(dir); err != nil || !os.SameFile(has, is) {
		t.Errorf("%v, or the lock is on the old directory", err)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		mirror   string
		registry string
		want     string
	}{
		{mirror, "docker.io", ""},
		{"http://[::1]:6500", "registry.test:5000", ""},
		{"http://localhost:6500", "_default", ""},
		{"http://127.0.0.2:1", "[::1]:5000", ""},
		{"http://10.0.0.1:6500", "docker.io", "not a loopback"},
		{"http://registry.test:6500", "docker.io", "not a loopback"},
		{"https://127.0.0.1:6500", "docker.io", "want http://"},
		{"127.0.0.1:6500", "docker.io", "want http://"},
		{"http://127.0.0.1", "docker.io", "want http://"},
		{"http://127.0.0.1:6500/x", "docker.io", "want http://"},
		{"http://u@127.0.0.1:6500", "docker.io", "want http://"},
		{mirror, "*.gcr.io", "patterns"},
		{mirror, "..", "want host"},
		{mirror, "docker.io/library", "want host"},
		{mirror, "../etc.d", "want host"},
		{mirror, "index.docker.io", "want host"},
		{mirror, "", "want host"},
	} {
		err := Config{Dir: "/", Mirror: c.mirror, Registries: []string{c.registry}}.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s %s: %v, want %q", c.mirror, c.registry, err, c.want)
		}
	}
}

func TestFind(t *testing.T) {
	for _, c := range []struct {
		dirs []string
		want string
	}{
		{nil, "/etc/containerd/certs.d"},
		{[]string{"/etc/containerd"}, "/etc/containerd/certs.d"},
		{[]string{"/etc/containerd/certs.d", "/var/lib/rancher/k3s/agent/etc/containerd"}, "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"},
		{[]string{"/var/lib/rancher/rke2/agent/etc/containerd"}, "/var/lib/rancher/rke2/agent/etc/containerd/certs.d"},
		{[]string{"/etc/k0s/containerd.d"}, "/etc/k0s/containerd.d/certs.d"},
		{[]string{"/etc/cri/conf.d/hosts"}, "/etc/cri/conf.d/hosts"},
		{[]string{"/etc/containerd/hosts.d"}, "/etc/containerd/hosts.d"},
		{[]string{"/etc/k0s/containerd.d", "/etc/cri/conf.d"}, ""},
	} {
		root := t.TempDir()
		for _, d := range c.dirs {
			if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if l, err := Find(root); l.Hosts != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%v: %v, %v, want %s", c.dirs, l, err, c.want)
		}
	}
}

// TestLayoutsAreDocumented: each has a page that names its files.
func TestLayoutsAreDocumented(t *testing.T) {
	for _, l := range Layouts() {
		text, err := os.ReadFile(filepath.Join("../../../docs/distributions", l.Name+".md"))
		if err != nil {
			t.Error(err)
		}
		for _, path := range []string{l.Config, l.Hosts} {
			if !strings.Contains(string(text), path) {
				t.Errorf("docs/distributions/%s.md does not name %s", l.Name, path)
			}
		}
	}
}
