package tracker

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	swarms    prometheus.Gauge
	inventory prometheus.Gauge
	disputes  prometheus.Counter
	fresh     prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		swarms: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_tracker_swarms",
			Help: "Blobs in flight that this node tracks.",
		}),
		inventory: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_tracker_blobs",
			Help: "Blobs of which this node, as their tracker or its standby, knows a holder.",
		}),
		disputes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_tracker_disputes_total",
			Help: "Published piece digests that a node proved wrong.",
		}),
		fresh: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_tracker_new_bytes_total",
			Help: "Bytes of blobs that the cluster brought in while no node had them, counted once for each blob, by its tracker.",
		}),
	}
	if r != nil {
		r.MustRegister(m.swarms, m.inventory, m.disputes, m.fresh)
	}
	return m
}
