package members

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	changes  *prometheus.CounterVec
	joins    *prometheus.CounterVec
	rejected prometheus.Counter
}

func newMetrics() *metrics {
	m := &metrics{
		changes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_members_changes_total",
			Help: "Changes of the membership that this node noticed: join, leave (or death), update.",
		}, []string{"event"}),
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_members_joins_total",
			Help: "Attempts of this node to contact a seed, by result: ok or error.",
		}, []string{"result"}),
		rejected: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_members_rejected_total",
			Help: "Announcements of members refused because their metadata or address makes no sense.",
		}),
	}
	for _, l := range []string{"join", "leave", "update"} {
		m.changes.WithLabelValues(l)
	}
	for _, l := range []string{"ok", "error"} {
		m.joins.WithLabelValues(l)
	}
	return m
}

// register adds the metrics to r, if there is one. live and health are asked
// at each scrape.
func (m *metrics) register(r prometheus.Registerer, live, health func() float64) {
	if r == nil {
		return
	}
	r.MustRegister(m.changes, m.joins, m.rejected,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_members",
			Help: "Live nodes of the cluster as this node sees it, itself included.",
		}, live),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "shoal_members_health_score",
			Help: "How far this node lags behind in probing others: 0 is healthy, 7 the worst.",
		}, health))
}
