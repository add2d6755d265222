//go:build e2e

package chunker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestDiskFull uses a file system that really has no room: a small tmpfs,
// filled behind the store's back, so that only the allocation can notice.
func TestDiskFull(t *testing.T) {
	dir := small(t, "size=8m")
	s := openStore(t, dir)
	var full *NoSpaceError
	if _, err := s.Acquire(digest.FromString("big"), 9<<20); !errors.As(err, &full) || full.Limit != "disk" {
		t.Errorf("got %v, want a NoSpaceError of the disk before anything is written", err)
	}
	data, d := testBlob(2 << 20)
	storeWhole(t, s, data, d)
	// An older blob makes room for a newer one.
	newer, nd := testBlob(7 << 20)
	storeWhole(t, s, newer, nd)
	if _, ok := s.Get(d); ok {
		t.Error("the older blob was not evicted")
	}
	if u := s.Usage(); u != 7<<20 {
		t.Errorf("usage %d, want the newer blob alone", u)
	}
}

// TestDiskFullOfFiles uses a file system that has room, and no inodes for it.
func TestDiskFullOfFiles(t *testing.T) {
	dir := small(t, "size=64m,nr_inodes=64")
	s := openStore(t, dir)
	older, od := testBlob(2 << 20)
	storeWhole(t, s, older, od)
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint("foreign", i)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// The older blob's file is one, and a blob takes two.
	var full *NoSpaceError
	if _, err := s.Acquire(digest.FromString("big"), 9<<20); !errors.As(err, &full) || full.Limit != "inodes" {
		t.Errorf("got %v, want a NoSpaceError of inodes", err)
	}
	if err := os.Remove(filepath.Join(dir, "foreign0")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "foreign1")); err != nil {
		t.Fatal(err)
	}
	newer, nd := testBlob(3 << 20)
	storeWhole(t, s, newer, nd)
}

// small is a directory on a file system of its own.
func small(t *testing.T, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("mounting a tmpfs needs root: run the e2e tier with sudo")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	return dir
}
