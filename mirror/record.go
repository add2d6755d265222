package mirror

import (
	"time"

	"github.com/rs/zerolog"

	"github.com/shoal-dev/shoal/swarm"
)

// What a registry could not be asked for, when a request was served all the same.
const (
	degradedTag        = "tag"
	degradedPermission = "permission"
)

// dearest is the source that names a whole download: the registry if it was
// needed at all, else peers if they were.
func dearest(s swarm.Stats) swarm.Source {
	switch {
	case s.Origin > 0:
		return swarm.SourceOrigin
	case s.Peers > 0:
		return swarm.SourcePeers
	default:
		return swarm.SourceLocal
	}
}

// apportion splits the bytes sent to one client by where the download had its
// bytes from. A download may be shared, and bring in more or less than one
// client reads; what it did not bring in was here before.
func apportion(sent int64, s swarm.Stats) swarm.Stats {
	total := s.Origin + s.Peers + s.Local
	if sent >= total {
		return swarm.Stats{Origin: s.Origin, Peers: s.Peers, Local: sent - s.Origin - s.Peers}
	}
	share := func(n int64) int64 { return int64(float64(sent) * (float64(n) / float64(total))) }
	out := swarm.Stats{Origin: share(s.Origin), Peers: share(s.Peers)}
	// Rounding must not invent a local byte where there was none.
	rest := sent - out.Origin - out.Peers
	switch {
	case s.Local > 0:
		out.Local = rest
	case s.Origin > 0:
		out.Origin += rest
	default:
		out.Peers += rest
	}
	return out
}

// record reports a request that is over: metrics, and one line of log.
func (m *Mirror) record(p *pull) {
	took := time.Since(p.began)
	served := p.reason == ""
	cache := "miss"
	if served && p.source != swarm.SourceOrigin {
		cache = "hit"
	}
	m.met.requests.WithLabelValues(m.registries.label(p.repo.Registry, served), cache).Inc()
	m.met.seconds.WithLabelValues(string(p.kind)).Observe(took.Seconds())
	if !served {
		m.met.fallbacks.WithLabelValues(p.reason).Inc()
	}
	if served && p.stale() {
		m.met.degraded.WithLabelValues(degradedTag).Inc()
	}
	if served && p.offline {
		m.met.degraded.WithLabelValues(degradedPermission).Inc()
	}
	by := apportion(p.sent, p.stats)
	for source, n := range map[swarm.Source]int64{
		swarm.SourceOrigin: by.Origin, swarm.SourcePeers: by.Peers, swarm.SourceLocal: by.Local,
	} {
		if n > 0 {
			m.met.bytes.WithLabelValues(string(source)).Add(float64(n))
		}
	}
	m.log(p, took, cache, by)
	if p.span != nil {
		p.endSpan(cache, by)
	}
}

func (m *Mirror) log(p *pull, took time.Duration, cache string, by swarm.Stats) {
	level := zerolog.InfoLevel
	switch p.reason {
	case reasonCutFailed, reasonCutStalled, reasonFailed, reasonDisk, reasonSlow:
		level = zerolog.WarnLevel
	}
	e := m.cfg.Log.WithLevel(level)
	if !e.Enabled() {
		return
	}
	e.Str("method", p.method).Str("kind", string(p.kind)).Str("registry", p.repo.Registry).
		Str("repository", p.repo.Name).Str("ref", p.ref.String()).Int("status", p.status).Str("cache", cache)
	if p.digest != "" && p.ref.tag != "" {
		e.Str("digest", p.digest.String())
	}
	if p.size > 0 {
		e.Int64("size", p.size)
	}
	if p.reason == "" || p.sent > 0 {
		e.Str("source", string(p.source)).Int64("sent", p.sent).
			Int64("origin_bytes", by.Origin).Int64("peer_bytes", by.Peers).Int64("local_bytes", by.Local)
	} else {
		e.Str("source", "refused")
	}
	if p.reason != "" {
		e.Str("reason", p.reason)
	}
	if p.lazy {
		e.Bool("lazy", true)
	}
	if p.stale() {
		e.Bool("stale", true)
	}
	if p.offline {
		e.Bool("offline", true)
	}
	if p.err != nil {
		e.AnErr("error", p.err)
	}
	e.Dur("took", took).Msg("pull")
}
