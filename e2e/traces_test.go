//go:build e2e

package e2e

import (
	"io"
	"net/http"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/shoal-dev/shoal/e2e/lab"
)

// tracedSpan is a span and the service that sent it.
type tracedSpan struct {
	*otlp.Span
	service string
}

// traceCollector takes spans, as OTLP over HTTP has them.
type traceCollector struct {
	mu    sync.Mutex
	spans map[string]tracedSpan // by id
}

// serve answers on a machine until the test ends.
func (c *traceCollector) serve(t *testing.T, on *lab.Machine, port string) {
	t.Helper()
	serve(t, on, port, func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the sender was stopped
		}
		var in collector.ExportTraceServiceRequest
		if err := proto.Unmarshal(body, &in); err != nil {
			t.Errorf("%s: not spans: %v", r.URL, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rs := range in.GetResourceSpans() {
			service := ""
			for _, a := range rs.GetResource().GetAttributes() {
				if a.GetKey() == "service.name" {
					service = a.GetValue().GetStringValue()
				}
			}
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					c.spans[string(s.GetSpanId())] = tracedSpan{s, service}
				}
			}
		}
	})
}

// root is the first span of the trace that a span belongs to, if all between have
// come.
func (c *traceCollector) root(s tracedSpan) (root tracedSpan, whole bool) {
	for len(s.GetParentSpanId()) > 0 {
		parent, ok := c.spans[string(s.GetParentSpanId())]
		if !ok {
			return s, false
		}
		s = parent
	}
	return s, true
}

// TestTraces: where containerd is traced, a pull is one trace, from CRI's request
// down to the single lease.
func TestTraces(t *testing.T) {
	const port = "4318"
	l := newLab(t, lab.Config{Nodes: 2, Rate: 200 * lab.Mbit, RegistryRate: 200 * lab.Mbit, ShoalArgs: []string{"--otlp-endpoint", "http://registry.lab:" + port}})
	spans := &traceCollector{spans: map[string]tracedSpan{}}
	spans.serve(t, l.Registry.Machine, port)
	for _, n := range l.Nodes() {
		if err := n.Containerd().Stop(); err != nil {
			t.Fatal(err)
		}
		if err := n.StartContainerd(t.Context(), "OTEL_EXPORTER_OTLP_ENDPOINT=http://registry.lab:"+port, "OTEL_SERVICE_NAME=containerd-"+n.Name); err != nil {
			t.Fatal(err)
		}
	}
	img := push(t, l, "traced", 8e6, 1)
	pull(t, img.Ref, l.Nodes()...)

	eventually(t, "each pull to be one trace", func() bool {
		spans.mu.Lock()
		defer spans.mu.Unlock()
		in := map[string]map[string]bool{} // by name of a span of Shoal's: whose pulls have it
		for _, s := range spans.spans {
			root, whole := spans.root(s)
			if !whole || s.service != "shoal" || root.service == "shoal" {
				continue
			}
			if in[s.GetName()] == nil {
				in[s.GetName()] = map[string]bool{}
			}
			in[s.GetName()][root.service] = true
		}
		for _, name := range []string{"HEAD manifest", "GET manifest", "GET blob", "fetch blob", "lease", "verify blob"} {
			if len(in[name]) != len(l.Nodes()) {
				return false
			}
		}
		return true
	})
}
