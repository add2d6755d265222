package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

func TestLayer(t *testing.T) {
	for _, size := range []int64{1, 511, 512, 513, 100_000} {
		l, err := newLayer("x", size)
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(l.reader())
		if err != nil || int64(len(p)) != l.length() {
			t.Fatalf("size %d: %d bytes, want %d (%v)", size, len(p), l.length(), err)
		}
		again, err := digest.FromReader(l.reader())
		if err != nil || again != digest.FromBytes(p) {
			t.Errorf("size %d: reading twice gives different bytes", size)
		}
		tr := tar.NewReader(bytes.NewReader(p))
		h, err := tr.Next()
		if err != nil || h.Size != size {
			t.Fatalf("size %d: %+v, %v", size, h, err)
		}
		if n, err := io.Copy(io.Discard, tr); n != size || err != nil {
			t.Errorf("size %d: %d bytes in the tar, %v", size, n, err)
		}
		if _, err := tr.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("size %d: more than one file: %v", size, err)
		}
	}
}

func TestCounting(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var sent atomic.Int64
	go func() {
		c, err := countingListener{ln, &sent}.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.Copy(c, strings.NewReader(strings.Repeat("x", 100_000)))
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != 100_000 || sent.Load() != n {
		t.Errorf("received %d, counted %d, %v", n, sent.Load(), err)
	}
}

func TestNoSpace(t *testing.T) {
	if err := checkSpace(t.TempDir(), 1<<60); err == nil || !strings.Contains(err.Error(), "choose another place") {
		t.Errorf("error %v", err)
	}
}

// build makes the binary that the demo runs.
func build(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds the binary")
	}
	bin := filepath.Join(t.TempDir(), "shoal")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false",
		"-tags", "nosqlite noboltdb disable_libutp", "-ldflags", "-s -w", "-o", bin, "../shoal")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return bin
}

// TestDemo runs a small demo from beginning to end, and one that is
// interrupted. Both leave nothing behind.
func TestDemo(t *testing.T) {
	bin := build(t)
	t.Run("whole", func(t *testing.T) {
		dir := t.TempDir()
		var out strings.Builder
		if err := run(t.Context(), options{shoal: bin, nodes: 3, size: 24, layers: 2, dir: dir}, &out); err != nil {
			t.Fatalf("%v\n%s", err, &out)
		}
		for _, want := range []string{"3 nodes see each other", "node-3", "every digest verified", "copies that left the registry: 1.0"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("no %q in\n%s", want, &out)
			}
		}
		empty(t, dir)
	})
	t.Run("interrupted", func(t *testing.T) {
		dir := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		// The line before the pull is the moment of Ctrl-C.
		out := writerFunc(func(p []byte) {
			if bytes.Contains(p, []byte("pulling cold")) {
				cancel()
			}
		})
		if err := run(ctx, options{shoal: bin, nodes: 2, size: 8, layers: 1, dir: dir}, out); err == nil {
			t.Error("no error although it was interrupted")
		}
		empty(t, dir)
	})
	t.Run("broken binary", func(t *testing.T) {
		dir := t.TempDir()
		if err := run(t.Context(), options{shoal: "/bin/false", nodes: 2, size: 1, layers: 1, dir: dir}, io.Discard); err == nil {
			t.Error("no error")
		}
		empty(t, dir)
	})
}

type writerFunc func([]byte)

func (f writerFunc) Write(p []byte) (int, error) { f(p); return len(p), nil }

// empty checks that no file and no process of a demo is left.
func empty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if cmdline, err := os.ReadFile(p); err == nil && bytes.Contains(cmdline, []byte(dir)) {
			t.Error("still running: ", fmt.Sprintf("%q", cmdline))
		}
	}
}
