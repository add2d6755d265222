package node

import (
	"encoding/json"
	"net/http"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health knows whether the node can do its work now.
type health struct {
	// serving is true from the time the listeners are served until the order
	// to stop.
	serving atomic.Bool
	// containerd is nil without one.
	containerd interface{ Ready() bool }
}

// readiness is the body of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Checks tell for each condition what is missing, or "ok".
	Checks map[string]string `json:"checks"`
}

func (h *health) readiness() readiness {
	r := readiness{Ready: true, Checks: map[string]string{}}
	check := func(name string, ok bool, otherwise string) {
		if ok {
			r.Checks[name] = "ok"
			return
		}
		r.Ready = false
		r.Checks[name] = otherwise
	}
	check("mirror", h.serving.Load(), "starting or stopping")
	if h.containerd != nil {
		check("containerd", h.containerd.Ready(), "not connected: what it holds is not known")
	}
	return r
}

// handler serves /metrics, /healthz and /readyz.
//
// /healthz says that the process answers; there is no state of a node that a
// restart would mend, so nothing else is asked. /readyz says that pulls are
// answered and that what containerd holds is known. A node without company is
// ready: the first one always is alone.
func (h *health) handler(g prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("ok\n"))
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := h.readiness()
		w.Header().Set("Content-Type", "application/json")
		if !r.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(r)
	})
	return mux
}
