package engine

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	torrents, peers             prometheus.Gauge
	received, sent, wasted, bad prometheus.Counter
	cut                         *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
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
			Help: "Bytes of pieces received from other pullers that were asked for.",
		}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_wire_sent_bytes_total",
			Help: "Bytes of pieces sent to other pullers.",
		}),
		wasted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_wire_wasted_bytes_total",
			Help: "Bytes of pieces received twice, too late, or wrong.",
		}),
		bad: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_wire_bad_pieces_total",
			Help: "Pieces from other pullers that were discarded because they did not verify.",
		}),
		cut: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_wire_cut_peers_total",
			Help: "Connections ended because the peer sent wrong bytes (lied), owed an answer (silent) or broke the protocol (protocol).",
		}, []string{"reason"}),
	}
	for _, reason := range []string{"lied", "silent", "protocol"} {
		m.cut.WithLabelValues(reason)
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.torrents, m.peers, m.received, m.sent, m.wasted, m.bad, m.cut} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}
