package telemetry

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

// propagators tell an engine which span its own belong to, in the formats of Caddy's tracing.
var propagators = sync.OnceValue(func() propagation.TextMapPropagator { return autoprop.NewTextMapPropagator() })

// StartSpan begins a span below that of ctx. Without Caddy's tracing it does nothing.
func StartSpan(ctx context.Context, name string, kind trace.SpanKind) (context.Context, trace.Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.SpanContext().IsValid() {
		return ctx, parent
	}
	return parent.TracerProvider().Tracer("github.com/caddy-epd/caddy-epd/epdhandler").Start(ctx, name, trace.WithSpanKind(kind))
}

// Inject tells an engine the span of ctx.
func Inject(ctx context.Context, header http.Header) {
	if trace.SpanContextFromContext(ctx).IsValid() {
		propagators().Inject(ctx, propagation.HeaderCarrier(header))
	}
}

// FailSpan marks a span as failed.
func FailSpan(span trace.Span, why string) {
	span.SetAttributes(attribute.String("error.type", why))
	span.SetStatus(codes.Error, why)
}

// Server names an instance as OpenTelemetry does.
func Server(address string) []attribute.KeyValue {
	host, port, err := net.SplitHostPort(address)
	if err != nil { // a unix socket
		return []attribute.KeyValue{attribute.String("server.address", address)}
	}
	n, _ := strconv.Atoi(port)
	return []attribute.KeyValue{attribute.String("server.address", host), attribute.Int("server.port", n)}
}
