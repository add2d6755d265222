package hosts

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// syncBuffer is a log that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// startWatch watches a directory until the test ends.
func startWatch(t *testing.T, dir string, interval time.Duration) *syncBuffer {
	t.Helper()
	log := &syncBuffer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, Config{Dir: dir, Mirror: mirror}, interval, zerolog.New(log))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return log
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited for " + what)
		}
	}
}

// removeAll is an administrator's rm -rf beside a watch: that may put a file
// back between the emptying and the removal of a directory, and he tries again.
func removeAll(dir string) error {
	for {
		if err := os.RemoveAll(dir); !errors.Is(err, syscall.ENOTEMPTY) {
			return err
		}
	}
}

// TestWatch undoes the work in all the ways that others do.
func TestWatch(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/hosts.toml": "# x\n", "bad.test/hosts.toml": "oops\n"})
	log := startWatch(t, dir, time.Hour)
	file := func(name string) string { return filepath.Join(dir, name, fileName) }
	has := func(name string) bool {
		text, _ := os.ReadFile(file(name))
		return strings.Contains(string(text), mirror)
	}
	eventually(t, "the first time", func() bool { return has("a.test") && has(Default) })
	for _, step := range []struct {
		name string
		do   func() error
		in   string
	}{
		{"overwritten", func() error { return os.WriteFile(file("a.test"), []byte("# y\n"), 0o644) }, "a.test"},
		{"deleted", func() error { return os.Remove(file(Default)) }, Default},
		{"directory deleted", func() error { return removeAll(filepath.Join(dir, Default)) }, Default},
		{"a new registry", func() error { return os.Mkdir(filepath.Join(dir, "new.test"), 0o755) }, "new.test"},
		{"overwritten there", func() error { return os.WriteFile(file("new.test"), []byte("# z\n"), 0o644) }, "new.test"},
		{"corrected", func() error { return os.WriteFile(file("bad.test"), []byte("# z\n"), 0o644) }, "bad.test"},
		{"all deleted", func() error { return removeAll(dir) }, Default},
		{"deleted again", func() error { return os.Remove(file(Default)) }, Default},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		eventually(t, step.name, func() bool { return has(step.in) })
	}
	if n := strings.Count(log.String(), "bad.test/hosts.toml: line 1:"); n != 1 {
		t.Errorf("the mistake is told %d times in\n%s", n, log)
	}
}

// TestWatchPolls: what the kernel does not tell is found all the same.
func TestWatchPolls(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/": "", "../elsewhere/hosts.toml": "# x\n"})
	real := filepath.Join(dir, "../elsewhere/hosts.toml")
	if err := os.Symlink(real, filepath.Join(dir, "a.test", fileName)); err != nil {
		t.Fatal(err)
	}
	startWatch(t, dir, 50*time.Millisecond)
	has := func() bool { text, _ := os.ReadFile(real); return strings.Contains(string(text), mirror) }
	eventually(t, "the first time", has)
	if err := os.WriteFile(real, []byte("# y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the repair", has)
}

// TestWatchRemoval: what comes back is taken out again, and what is somebody
// else's stays.
func TestWatchRemoval(t *testing.T) {
	dir := tree(t, map[string]string{"a.test/hosts.toml": "# x\n"})
	configure := func() {
		t.Helper()
		if _, err := Configure(Config{Dir: dir, Mirror: mirror}); err != nil {
			t.Fatal(err)
		}
	}
	gone := func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "a.test", fileName))
		_, made := os.Stat(filepath.Join(dir, Default))
		return err == nil && string(text) == "# x\n" && os.IsNotExist(made)
	}
	configure()
	log := &syncBuffer{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		WatchRemoval(ctx, dir, time.Hour, zerolog.New(log))
		close(done)
	}()
	t.Cleanup(func() { cancel(); <-done })
	eventually(t, "the first time", gone)
	configure()
	eventually(t, "the second time", gone)
	bad := filepath.Join(dir, "a.test", fileName)
	if err := os.WriteFile(bad, []byte("[host\n"+endLine+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the mistake", func() bool { return strings.Contains(log.String(), "a.test/hosts.toml: line 1:") })
	if err := os.WriteFile(bad, []byte("# x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	configure()
	eventually(t, "the time after a mistake", gone)
}
