package epdhandler

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"sync"

	"go.opentelemetry.io/contrib/propagators/autoprop"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// tracerName is what spans say of who has made them.
const tracerName = "github.com/caddy-epd/caddy-epd/epdhandler"

// propagators write what tells an engine which span its own belong to, in the formats in
// which Caddy's tracing does.
var propagators = sync.OnceValue(func() propagation.TextMapPropagator { return autoprop.NewTextMapPropagator() })

// startSpan begins a span below that of ctx. Without Caddy's tracing there is none, and
// it does nothing.
func startSpan(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.SpanContext().IsValid() {
		return ctx, parent
	}
	return parent.TracerProvider().Tracer(tracerName).Start(ctx, name, trace.WithSpanKind(kind))
}

// inject tells an engine the span of ctx.
func inject(ctx context.Context, header http.Header) {
	if trace.SpanContextFromContext(ctx).IsValid() {
		propagators().Inject(ctx, propagation.HeaderCarrier(header))
	}
}

// endStage ends the span of a stage.
func endStage(span trace.Span, f *failure) {
	if f != nil && f.reason != canceled {
		fail(span, string(f.why()))
	}
	span.End()
}

// end ends the span of a sub-request, with the failure that came of it, if there was one.
func (c *call) end(f *failure) {
	span := c.span
	defer span.End()
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("http.request.method", c.method),
		attribute.String("url.path", c.path),
		attribute.Int("epd.attempt", c.attempt),
	)
	if c.items != nil {
		span.SetAttributes(attribute.IntSlice("epd.media_items", c.items))
	}
	if address := c.upstream(); address != "" {
		span.SetAttributes(serverOf(address)...)
	}
	if c.status != 0 {
		span.SetAttributes(attribute.Int("http.response.status_code", c.status))
	}
	switch {
	case f == nil:
	case f.reason == canceled:
		span.SetAttributes(attribute.String("error.type", string(canceled)))
	case f.reason == badStatus:
		fail(span, strconv.Itoa(f.status))
	default:
		fail(span, string(f.why()))
	}
}

func fail(span trace.Span, why string) {
	span.SetAttributes(attribute.String("error.type", why))
	span.SetStatus(codes.Error, why)
}

// serverOf names an instance as OpenTelemetry does.
func serverOf(address string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(address)
	if err != nil { // a unix socket
		return []attribute.KeyValue{attribute.String("server.address", address)}
	}
	n, _ := strconv.Atoi(port)
	return []attribute.KeyValue{attribute.String("server.address", host), attribute.Int("server.port", n)}
}
