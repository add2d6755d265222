package containerd

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	up, blobs, bytes, damaged prometheus.Gauge
	walks                     prometheus.Counter
	opens                     *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		up: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_containerd_up",
			Help: "1 while containerd is connected and its content known.",
		}),
		blobs: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_containerd_blobs",
			Help: "Blobs in containerd's content store that this node can serve, all namespaces.",
		}),
		bytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_containerd_bytes",
			Help: "Bytes in containerd's content store that this node can serve, each blob counted once.",
		}),
		damaged: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "shoal_containerd_damaged_blobs",
			Help: "Blobs whose file in containerd's content store is gone, or not as long as it should be; they are not served.",
		}),
		walks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "shoal_containerd_walks_total",
			Help: "Comparisons of what is known with all of containerd's content.",
		}),
		opens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_containerd_opens_total",
			Help: "Blobs opened in containerd's content store, by way: file, api, or gone (it was not there any more, or not readable).",
		}, []string{"way"}),
	}
	if r != nil {
		r.MustRegister(m.up, m.blobs, m.bytes, m.damaged, m.walks, m.opens)
	}
	return m
}
