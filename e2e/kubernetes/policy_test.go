//go:build e2e

package kubernetes

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// Ports of a Shoal pod as values.yaml has them, and what becomes of a stranger who
// speaks to them without a policy. Nobody answers what is no gossip.
var (
	metricsPort = "tcp/" + lab.MetricsPort
	openPorts   = map[string]string{
		"tcp/6500": "reached", "tcp/6501": "reached", "tcp/6502": "reached",
		"tcp/6503": "reached", "udp/6503": "unanswered", metricsPort: "reached",
	}
)

// networkPolicy: a pod that is not Shoal reaches no port of one that is, on its own
// node or another, except for the metrics, and these by the selector. That pulls go
// on as ever is for all other parts to see: the policy is in force in them.
func (s *suite) networkPolicy(t *testing.T) {
	closed := maps.Clone(openPorts)
	for port := range closed {
		closed[port] = "refused"
	}
	metricsOnly := maps.Clone(closed)
	metricsOnly[metricsPort] = "reached"
	for _, c := range []struct {
		name string
		set  string
		want map[string]string
	}{
		{"as installed", "", metricsOnly},
		{"metrics for somebody else", metricsFrom("other"), closed},
		{"metrics for this pod", metricsFrom("app"), metricsOnly},
		// The refusals above were the policy's.
		{"without a policy", "networkPolicy.enabled=false", openPorts},
		{"back again", "networkPolicy.enabled=true", metricsOnly},
	} {
		if c.set != "" {
			s.helm(t, "upgrade", s.chart, "--values", s.values, "--set-json", c.set)
		}
		s.strangerReaches(t, c.name, c.want)
	}
	// The mirror is for the pod's own node.
	for _, n := range s.Nodes {
		for _, pod := range s.pods(t) {
			conn, err := n.DialContext(t.Context(), "tcp", pod.Status.PodIP+":6500")
			if err == nil {
				conn.Close()
			}
			if own := pod.Spec.NodeName == n.Name; own && err != nil || !own && !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s dials the mirror of the pod on %s: %v", n.Name, pod.Spec.NodeName, err)
			}
		}
	}
}

// metricsFrom is a value of the chart: the pods of an application may read metrics.
func metricsFrom(app string) string {
	return fmt.Sprintf(`networkPolicy.metricsFrom=[{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": %q}}}]`, app)
}

// strangerReaches waits until a pod of the application on the first node finds all
// ports of Shoal's pods as they should be.
func (s *suite) strangerReaches(t *testing.T, when string, ports map[string]string) {
	t.Helper()
	var stranger string
	for _, pod := range s.podsOf(t, "default", "app=app") {
		if pod.Spec.NodeName == s.Nodes[0].Name {
			stranger = pod.Metadata.Name
		}
	}
	want := map[string]string{}
	args := []string{"exec", stranger, "--", "/hello", "reach"}
	for _, pod := range s.pods(t) {
		for port, what := range ports {
			target := strings.Replace(port, "/", "/"+pod.Status.PodIP+":", 1)
			want[target] = what
			args = append(args, target)
		}
	}
	var diff string
	defer func() {
		if diff != "" {
			t.Logf("%s, -want +got:\n%s", when, diff)
		}
	}()
	// A router learns of a change within a second or two.
	eventually(t, 20*time.Second, "the policy "+when, func() bool {
		got := map[string]string{}
		_, lines, _ := strings.Cut(s.kubectl(t, args...), "\n") // after the greeting
		for line := range strings.Lines(lines) {
			target, what, _ := strings.Cut(strings.TrimSpace(line), " ")
			got[target] = what
		}
		diff = cmp.Diff(want, got)
		return diff == ""
	})
}
