package mirror

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	fallbacks *prometheus.CounterVec
	degraded  *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	inFlight  prometheus.Gauge
	ahead     prometheus.Counter
	whole     prometheus.Counter
	landed    *prometheus.CounterVec
	// burst is where two gauges come from.
	burst burst
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_requests_total",
			Help: "Pull requests, by registry and cache: hit when this node or its peers answered without the registry, miss when the registry was needed or the request was left to it.",
		}, []string{"registry", "cache"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_bytes_total",
			Help: "Bytes of content sent to clients, by where this node had them from: local, peers or origin.",
		}, []string{"source"}),
		fallbacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_fallbacks_total",
			Help: "Requests left to the client's next host, by reason; those named cut_ after part of the body was sent.",
		}, []string{"reason"}),
		degraded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_degraded_total",
			Help: "Requests served although the registry did not answer, by what it was not asked: tag (the last known digest was served) or permission.",
		}, []string{"what"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "shoal_mirror_request_seconds",
			Help: "Time to answer a pull request completely, by kind: manifest or blob.",
			// From a HEAD out of memory to a 10 GB layer on a slow link.
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500},
		}, []string{"kind"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_mirror_requests_in_flight",
			Help: "Pull requests being answered.",
		}),
		ahead: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_mirror_layers_ahead_total",
			Help: "Layers that this node joined in fetching before its containerd asked for them, since it pulled the same image and other nodes were at them.",
		}),
		whole: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_mirror_whole_for_part_total",
			Help: "Blobs fetched whole although a part of it was asked for, since their registry ignores ranges.",
		}),
		landed: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_mirror_landed_blobs_total",
			Help: "Blobs that came into containerd's content store, by how: through this mirror (mirror), or past it (elsewhere), from a registry or an import.",
		}, []string{"through"}),
	}
	// What alerts count has to be there before it happens: an increase from
	// nothing to 1 is none.
	for _, way := range []string{throughMirror, throughElsewhere} {
		m.landed.WithLabelValues(way)
	}
	for _, what := range []string{degradedTag, degradedPermission} {
		m.degraded.WithLabelValues(what)
	}
	for _, reason := range []string{
		reasonUpstream, reasonSlow, reasonDisk, reasonFailed, reasonCooldown, reasonCutStalled, reasonCutFailed,
	} {
		m.fallbacks.WithLabelValues(reason)
	}
	began := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_mirror_burst_began_timestamp_seconds",
		Help: "Unix time at which this node began to pull, after nothing was pulled for 30 seconds; 0 before the first pull.",
	}, func() float64 { return unixSeconds(m.burst.beginning()) })
	ended := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "shoal_mirror_burst_ended_timestamp_seconds",
		Help: "Unix time at which the last pull on this node ended; now, while something is pulled; 0 before the first pull.",
	}, func() float64 { return unixSeconds(m.burst.end(time.Now())) })
	if r != nil {
		r.MustRegister(m.requests, m.bytes, m.fallbacks, m.degraded, m.seconds, m.inFlight, m.ahead, m.whole, m.landed, began, ended)
	}
	return m
}
