package main

import (
	"crypto/x509"
	"os"
	"os/exec"
	"testing"
)

// TestRoots: on a system without certificate authorities, as in the image, public
// registries can be verified all the same, by both ways of asking for the roots.
func TestRoots(t *testing.T) {
	const child = "SHOAL_TEST_ROOTS"
	if os.Getenv(child) == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), exe, "-test.run=^TestRoots$", "-test.v")
		cmd.Env = []string{child + "=1", "SSL_CERT_FILE=/nonexistent", "SSL_CERT_DIR=/nonexistent"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	if pool.Equal(x509.NewCertPool()) {
		t.Error("no authorities")
	}
}
