package peertls

import (
	"crypto/x509"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	reloads *prometheus.CounterVec
}

// newMetrics registers the metrics of c, whose first set is loaded.
func newMetrics(r prometheus.Registerer, c *Credentials) *metrics {
	m := &metrics{
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "shoal_peer_certificate_reloads_total",
			Help: "Changes of the credentials directory, by result: taken (ok), or refused with the previous set kept (error).",
		}, []string{"result"}),
	}
	m.reloads.WithLabelValues("ok")
	m.reloads.WithLabelValues("error")
	if r == nil {
		return m
	}
	r.MustRegister(m.reloads)
	for name, cert := range map[string]func(*set) *x509.Certificate{
		"node":      func(s *set) *x509.Certificate { return s.cert.Leaf },
		"authority": func(s *set) *x509.Certificate { return s.root },
	} {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name:        "shoal_peer_certificate_expiry_seconds",
			Help:        "Time until the certificate in use expires, negative afterwards: this node's own (node), and the authority that signed it (authority).",
			ConstLabels: prometheus.Labels{"certificate": name},
		}, func() float64 {
			return cert(c.set.Load()).NotAfter.Sub(c.now()).Truncate(time.Second).Seconds()
		}))
	}
	return m
}
