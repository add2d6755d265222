package chunker

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	bytes, blobs     prometheus.Gauge
	verified, failed prometheus.Counter
	evictions        prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_cache_bytes",
			Help: "Bytes that the piece store occupies, preallocated ones included.",
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
	if r != nil {
		r.MustRegister(m.bytes, m.blobs, m.verified, m.failed, m.evictions)
	}
	return m
}
