package swarm

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Tracing names the instrumentation in spans.
const Tracing = "github.com/shoal-dev/shoal"

// StartSpan begins a span of something that costs time, as a part of the one in ctx.
// Without one, because traces are off or this one is not wanted, it costs nothing:
// whoever takes a request decides, and nothing below needs to be told.
//
// Spans leave the node. Of what registries, their token services and clients send,
// nothing may get into one but names and digests that were checked, and hosts: no
// headers, no URLs, no texts of errors.
func StartSpan(ctx context.Context, name string, kind trace.SpanKind, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, parent
	}
	return parent.TracerProvider().Tracer(Tracing).Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(attrs...))
}

// EndSpan ends a span. Of an error it says what kind it is.
func EndSpan(s trace.Span, err error) {
	if err != nil && s.IsRecording() {
		s.SetStatus(codes.Error, kindOf(err))
	}
	s.End()
}

func kindOf(err error) string {
	switch {
	case errors.Is(err, ErrNotFound):
		return "not found"
	case errors.Is(err, ErrDenied):
		return "denied"
	case errors.Is(err, ErrNoRange):
		return "no ranges"
	case errors.Is(err, errAbandoned):
		return "abandoned"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	default:
		return "failed"
	}
}

// startSpan begins the download's, which ends with finish. ctx is that of the first
// request for the blob; those that join in have no part in it.
func (d *download) startSpan(ctx context.Context, r Request) {
	_, d.span = StartSpan(ctx, "fetch blob", trace.SpanKindInternal,
		attribute.String("shoal.registry", r.Registry), attribute.String("shoal.repository", r.Repository),
		attribute.String("shoal.digest", r.Digest.String()), attribute.Int64("shoal.size", r.Size))
	d.ctx, d.cancel = context.WithCancelCause(trace.ContextWithSpan(d.n.life, d.span))
}

// endSpan says where the bytes came from.
func (d *download) endSpan(err error) {
	if d.span.IsRecording() {
		d.span.SetAttributes(
			attribute.Int64("shoal.bytes.origin", d.fromOrigin.Load()), attribute.Int64("shoal.bytes.lease", d.fromLease.Load()),
			attribute.Int64("shoal.bytes.swarm", d.fromSwarm.Load()))
	}
	EndSpan(d.span, err)
}

// leaseSpan begins that of a lease on the origin or a node.
func (d *download) leaseSpan(ctx context.Context, source string, first, count int) (context.Context, trace.Span) {
	if source == "" {
		source = "origin"
	}
	off, _ := d.id.Geometry.Piece(first)
	last, n := d.id.Geometry.Piece(first + count - 1)
	return StartSpan(ctx, "lease", trace.SpanKindInternal, attribute.String("shoal.source", source),
		attribute.Int64("shoal.offset", off), attribute.Int64("shoal.length", last+n-off))
}

// verifiedSpan is that of the time from the last piece on, in which the whole was
// hashed to its end.
func (d *download) verifiedSpan(ctx context.Context, err error) {
	if !d.span.IsRecording() {
		return
	}
	_, s := d.span.TracerProvider().Tracer(Tracing).Start(ctx, "verify blob", trace.WithTimestamp(time.Unix(0, d.lastPiece.Load())))
	if err != nil {
		s.SetStatus(codes.Error, "wrong digest")
	}
	s.End()
}
