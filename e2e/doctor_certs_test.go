//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// testCertificateFaults gives a node certificates that end, have ended, and are of
// another authority. Each is mended by what the doctor says, without a restart.
func testCertificateFaults(t *testing.T, l *lab.Lab) {
	n := l.Node(0)
	issue := func(authority string, life time.Duration) {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), *shoalBinary, "certs", "node", "--ca", authority,
			"--out", filepath.Dir(n.CertsDir()), "--life", life.String(), "--force", n.Name).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	expect := func(name, shows string, want ...string) {
		t.Helper()
		found := examine(t, n)
		if got := worse(found); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		} else if shows != "" && !strings.Contains(strings.Join(found[0].Evidence, "\n"), shows) {
			t.Errorf("%s: %q does not show %q", name, found[0].Evidence, shows)
		}
	}
	const year = 365 * 24 * time.Hour
	issue(l.AuthorityDir(), 48*time.Hour)
	expect("two days left", "in 48h", "certificate-expiring")
	issue(l.AuthorityDir(), time.Second)
	time.Sleep(1100 * time.Millisecond) // the lives of certificates are whole seconds
	expect("none left", "expired", "certificate")
	issue(l.AuthorityDir(), year)
	expect("renewed", "")

	foreign := filepath.Join(l.Dir, "foreign")
	if err := l.NewAuthority(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(l.Dir, "own")
	if err := os.CopyFS(own, os.DirFS(n.CertsDir())); err != nil {
		t.Fatal(err)
	}
	issue(foreign, year)
	expect("another authority", "certificate", "peer-refuses")
	if err := os.RemoveAll(n.CertsDir()); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(n.CertsDir(), os.DirFS(own)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the nodes to see each other again", func() bool { return metric(t, n, "shoal_members") == 3 })
	expect("its own", "")
}

// testHint does what the doctor says of other clients.
func testHint(t *testing.T, l *lab.Lab, n *lab.Node) {
	found := examine(t, n)
	i := slices.IndexFunc(found, func(f finding) bool { return f.ID == "other-clients" })
	if i < 0 {
		t.Fatalf("no hint in %+v", found)
	}
	ref := push(t, l, "doctor-hint", 4e6, 1).Ref
	line, _, _ := strings.Cut(found[i].Fix, "\n")
	args := strings.Fields(strings.Replace(line, "IMAGE", ref, 1))
	const landed = `shoal_mirror_landed_blobs_total{through="mirror"}`
	before := metric(t, n, landed)
	programs, err := lab.BuildContainerd(t.Context(), lab.ContainerdNewest)
	if err != nil {
		t.Fatal(err)
	}
	command(t, n, filepath.Join(programs, args[0]), args[1:]...)
	eventually(t, "three blobs to land through the mirror", func() bool { return metric(t, n, landed) == before+3 })
}
