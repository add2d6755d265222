package mirror

import (
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/swarm"
)

// trace begins the span of a request, as a part of the client's if it sends one
// (traceparent): containerd does when it is traced itself. The registry gets to know
// nothing of it.
func (m *Mirror) trace(r *http.Request, p *pull) *http.Request {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	ctx, p.span = m.cfg.Tracer.Start(ctx, p.method+" "+string(p.kind), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(p.began))
	return r.WithContext(ctx)
}

// endSpan says in the span what the log says, but for the text of an error; see
// swarm.StartSpan.
func (p *pull) endSpan(cache string, by swarm.Stats) {
	source := string(p.source)
	if p.reason != "" && p.sent == 0 {
		source = "refused"
	}
	attrs := []attribute.KeyValue{
		attribute.String("http.request.method", p.method), attribute.Int("http.response.status_code", p.status),
		attribute.String("shoal.kind", string(p.kind)), attribute.String("shoal.registry", p.repo.Registry),
		attribute.String("shoal.repository", p.repo.Name), attribute.String("shoal.reference", p.ref.String()),
		attribute.String("shoal.digest", p.digest.String()), attribute.Int64("shoal.size", p.size),
		attribute.String("shoal.cache", cache), attribute.String("shoal.source", source),
		attribute.Int64("shoal.bytes.sent", p.sent), attribute.Int64("shoal.bytes.origin", by.Origin),
		attribute.Int64("shoal.bytes.peers", by.Peers), attribute.Int64("shoal.bytes.local", by.Local),
	}
	if p.reason != "" {
		attrs = append(attrs, attribute.String("shoal.reason", p.reason))
	}
	if p.lazy {
		attrs = append(attrs, attribute.Bool("shoal.lazy", true))
	}
	if p.stale() || p.offline {
		attrs = append(attrs, attribute.Bool("shoal.degraded", true))
	}
	p.span.SetAttributes(attrs...)
	switch p.reason {
	case reasonUpstream, reasonSlow, reasonDisk, reasonFailed, reasonCutStalled, reasonCutFailed:
		p.span.SetStatus(codes.Error, p.reason)
	}
	p.span.End()
}
