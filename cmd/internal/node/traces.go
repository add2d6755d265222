package node

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/shoal-dev/shoal/swarm"
)

const (
	// tracesPath is where OTLP over HTTP has them, by its specification.
	tracesPath = "/v1/traces"
	// flushTimeout bounds how long a node that stops waits for the last spans to
	// be taken.
	flushTimeout = 2 * time.Second
	// complainEvery is how often a collector that does not answer is logged.
	complainEvery = 10 * time.Minute
)

// openTraces starts to export spans. They wait in a bounded queue, and are lost
// if it is full: no pull waits for the collector.
func (n *Node) openTraces() error {
	c := n.cfg
	if c.OTLPEndpoint == "" {
		return nil
	}
	u, err := parseOTLPEndpoint(c.OTLPEndpoint)
	if err != nil {
		return fmt.Errorf("otlp-endpoint: %w", err)
	}
	// OTEL_* variables add to this: headers, authorities, compression, sampling.
	to, err := otlptracehttp.New(context.Background(), otlptracehttp.WithEndpointURL(u.String()))
	if err != nil {
		return fmt.Errorf("otlp-endpoint: %w", err)
	}
	about, err := resource.New(context.Background(),
		resource.WithAttributes(
			attribute.String("service.name", "shoal"), attribute.String("service.namespace", c.Cluster),
			attribute.String("service.instance.id", c.Name), attribute.String("service.version", c.Version)),
		resource.WithFromEnv())
	if err != nil {
		return fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	e := &exporter{SpanExporter: to, log: part(c.Log, "traces")}
	e.life, e.end = context.WithCancel(context.Background())
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(e), sdktrace.WithResource(about))
	n.tracer = provider.Tracer(swarm.Tracing, trace.WithInstrumentationVersion(c.Version))
	n.undo = append(n.undo, func() error {
		late := time.AfterFunc(flushTimeout, e.end)
		defer late.Stop()
		defer e.end()
		_ = provider.Shutdown(context.Background()) // what it would say is logged
		return nil
	})
	return nil
}

// parseOTLPEndpoint reads a URL, whose path may be left out.
func parseOTLPEndpoint(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%q is no URL", s)
	case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
		return nil, fmt.Errorf("%q: want http://host:port or https://host:port", s)
	case u.User != nil, u.RawQuery != "", u.Fragment != "":
		return nil, fmt.Errorf("want a URL without user, query and fragment: credentials belong in OTEL_EXPORTER_OTLP_HEADERS")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = tracesPath
	}
	return u, nil
}

// exporter keeps failures from whoever hands spans in: the SDK would write each of
// them to standard error.
type exporter struct {
	sdktrace.SpanExporter
	log  zerolog.Logger
	life context.Context // of what is under way
	end  context.CancelFunc

	mu    sync.Mutex
	lost  int
	quiet time.Time // until when nothing is logged
}

// ExportSpans implements the SDK's interface, and never fails.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.life, cancel)()
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.complain(len(spans), err, time.Now())
	}
	return nil
}

func (e *exporter) complain(lost int, err error, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lost += lost
	if now.Before(e.quiet) {
		return
	}
	e.log.Warn().Err(err).Int("lost", e.lost).Dur("quiet", complainEvery).
		Msg("spans are lost, since the collector does not take them; pulls are not affected")
	e.lost, e.quiet = 0, now.Add(complainEvery)
}
