//go:build e2e

package kubernetes

import (
	"testing"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// TestCluster: the cluster does what a cluster does, without Shoal.
func TestCluster(t *testing.T) {
	c := newCluster(t, Config{Nodes: 3, Rate: 500 * lab.Mbit, RegistryRate: 500 * lab.Mbit})
	img := push(t, c, "direct", "v1", 50e6, 2, 0)
	took, bytes := rollOut(t, c, "direct", daemonSet("direct", img.Ref), 3)
	copies := float64(bytes) / float64(img.Size())
	t.Logf("rolled out in %v, %.3f copies", took, copies)
	if copies < 2.9 {
		t.Errorf("%.3f copies left the registry, want one for each of 3 nodes", copies)
	}
	if failed := failedPulls(t, c, "direct"); len(failed) > 0 {
		t.Errorf("failed pulls: %v", failed)
	}
	t.Log(c.kubectl(t, "get", "pods", "-o", "wide"))
	t.Log(c.kubectl(t, "logs", "daemonset/direct"))
}
