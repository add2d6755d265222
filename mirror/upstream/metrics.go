package upstream

import (
	"errors"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// labelledRegistries bounds the values of the registry label. Clusters
	// pull from a handful.
	labelledRegistries = 64
	otherRegistry      = "other"
)

type metrics struct {
	bytes    *prometheus.CounterVec
	requests *prometheus.CounterVec
	retries  *prometheus.CounterVec

	mu    sync.Mutex
	known map[string]bool // registries that have answered with success
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_bytes_total",
			Help: "Bytes of blobs and manifests received from origin registries and the stores that they redirect to.",
		}, []string{"registry"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_requests_total",
			Help: "HTTP requests sent on behalf of an origin registry, redirects and token requests included, by class of status (2xx to 5xx, or error when there was no answer).",
		}, []string{"registry", "code"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_origin_retries_total",
			Help: "Requests to origin registries that failed and were tried again, by reason: ratelimited, status, connection.",
		}, []string{"reason"}),
		known: map[string]bool{},
	}
	if r != nil {
		r.MustRegister(m.bytes, m.requests, m.retries)
	}
	return m
}

// label returns the registry's value in metrics: its name once it has
// answered with success, as long as there are few such.
func (m *metrics) label(registry string, success bool) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known[registry] {
		return registry
	}
	if !success || len(m.known) >= labelledRegistries {
		return otherRegistry
	}
	m.known[registry] = true
	return registry
}

// answered counts a round trip; status 0 means that there was no answer.
// Only the registry itself can earn the registry a label.
func (m *metrics) answered(registry string, status int, itself bool) {
	class := "error"
	if status >= 100 && status < 600 {
		class = strconv.Itoa(status/100) + "xx"
	}
	m.requests.WithLabelValues(m.label(registry, itself && class == "2xx"), class).Inc()
}

// received returns the counter of bytes from a registry that has answered with
// success.
func (m *metrics) received(registry string) prometheus.Counter {
	return m.bytes.WithLabelValues(m.label(registry, true))
}

func (m *metrics) retried(e *Error) {
	reason := "connection"
	switch {
	case errors.Is(e.kind, ErrRateLimited):
		reason = "ratelimited"
	case e.Status != 0:
		reason = "status"
	}
	m.retries.WithLabelValues(reason).Inc()
}
