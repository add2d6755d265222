package engine

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	torrents, peers        prometheus.Gauge
	received, sent, wasted prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		torrents: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_wire_torrents",
			Help: "Blobs that this node trades with other pullers now.",
		}),
		peers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_wire_peers",
			Help: "Connections on which this node trades pieces now; a node counts once per blob.",
		}),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_wire_received_bytes_total",
			Help: "Bytes of pieces received from other pullers and of use.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_wire_sent_bytes_total",
			Help: "Bytes of pieces sent to other pullers, counted when a blob is no longer traded.",
		}),
		wasted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_wire_wasted_bytes_total",
			Help: "Bytes of pieces received twice or unasked, counted when a blob is no longer traded.",
		}),
	}
	if r != nil {
		r.MustRegister(m.torrents, m.peers, m.received, m.sent, m.wasted)
	}
	return m
}
