package chunker

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	bytes, blobs     prometheus.Gauge
	limit            prometheus.Gauge
	verified, failed prometheus.Counter
	evictions        prometheus.Counter
}

func newMetrics() *metrics {
	return &metrics{
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_bytes",
			Help: "Bytes that the piece store occupies, preallocated ones included.",
		}),
		limit: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_limit_bytes",
			Help: "Most that the piece store may occupy, as configured; 0 is no limit.",
		}),
		blobs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_blobs",
			Help: "Blobs in the piece store, whole or partial.",
		}),
		verified: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_pieces_verified_total",
			Help: "Pieces that were verified and stored.",
		}),
		failed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_pieces_failed_total",
			Help: "Pieces whose bytes did not match their sum.",
		}),
		evictions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_cache_evictions_total",
			Help: "Blobs evicted from the piece store to make room.",
		}),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{m.bytes, m.limit, m.blobs, m.verified, m.failed, m.evictions} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
