//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// testStorageFaults takes from a node's Shoal its inodes, its space, the room in its
// cache, and a file of containerd's.
func testStorageFaults(t *testing.T, l *lab.Lab) {
	n := l.Node(0)
	if got := diagnose(t, n); len(got) > 0 {
		t.Fatalf("before: %q", got)
	}
	expect := func(name, shows string, want ...string) {
		t.Helper()
		found := examine(t, n)
		if got := worse(found); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		} else if len(found) > 0 && !strings.Contains(strings.Join(found[0].Evidence, "\n"), shows) {
			t.Errorf("%s: %q does not show %q", name, found[0].Evidence, shows)
		}
	}

	img := push(t, l, "doctor-damage", 6*mib, 1)
	if _, err := n.Pull(t.Context(), img.Ref); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(n.ContentPath(img.Layers[0].Digest)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the blob to be withdrawn", func() bool { return metric(t, n, "shoal_containerd_damaged_blobs") == 1 })
	expect("a file of containerd's deleted", img.Layers[0].Digest.String()+": the file is gone", "content-damaged")
	if err := n.Remove(t.Context(), img.Ref); err != nil {
		t.Fatal(err)
	}
	expect("removed", "")
	if _, err := n.Pull(t.Context(), img.Ref); err != nil {
		t.Error(err)
	}
	expect("pulled again", "")

	// A small file system below the piece store, of the node alone.
	if err := n.Shoal().Stop(); err != nil {
		t.Fatal(err)
	}
	command(t, n, "mount", "-t", "tmpfs", "-o", "size=128m,nr_inodes=1000", "tmpfs", n.ShoalDir())
	start := func(more ...string) {
		t.Helper()
		if err := n.StartShoal(t.Context(), more...); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the nodes to see each other", func() bool { return metric(t, n, "shoal_members") == 3 })
	}
	settings := []string{"--disk-reserve", "16MiB", "--cache-size", "24MiB"}
	start(settings...)
	expect("a small disk", "")

	dir := n.Path(filepath.Join(n.ShoalDir(), "foreign"))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600)
		if errors.Is(err, unix.ENOSPC) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("no inodes", " 0 of 1000 inodes free", "disk-inodes")
	mustPull := func(name string, size int64) {
		t.Helper()
		if _, err := n.Pull(t.Context(), push(t, l, name, size, 1).Ref); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustPull("doctor-inodes", 40*mib)
	expect("a pull without inodes", " 0 of 1000 inodes free", "disk-inodes", "cache-full")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}

	big := n.Path(filepath.Join(n.ShoalDir(), "big"))
	if err := os.WriteFile(big, make([]byte, 120*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	expect("no space", "16 MiB are to stay free", "disk-full", "cache-full")
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}

	if err := n.Shoal().Stop(); err != nil {
		t.Fatal(err)
	}
	start(settings...)
	mustPull("doctor-cap", 41*mib)
	expect("an image larger than the cache", " of 24 MiB", "cache-full")
	if err := n.Shoal().Stop(); err != nil {
		t.Fatal(err)
	}
	command(t, n, "umount", n.ShoalDir())
	start()
	expect("as before", "")
}

// command runs a program on a node.
func command(t *testing.T, n *lab.Node, name string, args ...string) {
	t.Helper()
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, &out)
	}
}
