package swarm

import "github.com/prometheus/client_golang/prometheus"

// What was corrupt, the label of shoal_swarm_corrupt_total.
const (
	corruptPiece = "piece"
	corruptBlob  = "blob"
	corruptSmall = "small"
	corruptSpan  = "span"
)

// Fallbacks like those in patience.go: a tag's last known digest was served, or what a
// span was said to be longer ago.
const (
	staleTag  = "stale_tag"
	staleSpan = "stale_span"
)

type metrics struct {
	received    *prometheus.CounterVec
	sent        prometheus.Counter
	fallbacks   *prometheus.CounterVec
	leases      *prometheus.CounterVec
	corrupt     *prometheus.CounterVec
	downloads   prometheus.Gauge
	held        prometheus.Gauge
	badMessages prometheus.Counter
	whole       *prometheus.CounterVec
	skew        prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_received_bytes_total",
			Help: "Bytes of blobs brought to this node, by source: origin, lease (from a node that holds the whole blob) or swarm (from other pullers).",
		}, []string{"source"}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_swarm_sent_bytes_total",
			Help: "Bytes of whole blobs on this node sent to other nodes that have a lease; shoal_wire_sent_bytes_total has what was traded.",
		}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_fallbacks_total",
			Help: "Times that a download helped itself from the origin instead of waiting for the swarm, by reason.",
		}, []string{"reason"}),
		leases: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_leases_total",
			Help: "Leases that ended on this node, by source (origin or holder) and result.",
		}, []string{"source", "result"}),
		corrupt: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_corrupt_total",
			Help: "Wrong bytes discarded on this node, by what was wrong: piece, blob, small or span.",
		}, []string{"what"}),
		downloads: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_swarm_downloads",
			Help: "Blobs in flight on this node, including those it still trades after having them whole.",
		}),
		held: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_swarm_held_blobs",
			Help: "Whole blobs on this node that the cluster is told of.",
		}),
		badMessages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_swarm_invalid_messages_total",
			Help: "Messages of peers that were refused because no correct node sends them.",
		}),
		whole: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_swarm_blobs_total",
			Help: "Downloads that ended on this node, by result: whole, failed or abandoned.",
		}, []string{"result"}),
		skew: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_peer_clock_skew_seconds",
			Help: "Largest difference, seen within ten minutes, between the clock of another node and this one's, positive or negative: the least that explains the dates of its answers.",
		}),
	}
	// What alerts count has to be there before it happens: an increase from
	// nothing to 1 is none.
	for _, what := range []string{corruptPiece, corruptBlob, corruptSmall, corruptSpan} {
		m.corrupt.WithLabelValues(what)
	}
	for _, reason := range []string{helpTracker, helpPeers, helpStalled, helpStarved, staleTag, staleSpan} {
		m.fallbacks.WithLabelValues(reason)
	}
	if r != nil {
		r.MustRegister(m.received, m.sent, m.fallbacks, m.leases, m.corrupt, m.downloads, m.held, m.badMessages, m.whole, m.skew)
	}
	return m
}
