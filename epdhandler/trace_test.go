package epdhandler

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// Every stage and sub-request has a span below that of the request, and engines get
// that of their sub-request.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	var parents []string // traceparent of each request to an engine
	fake := func(statuses ...int) string {
		return engine(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/health" {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			parents = append(parents, r.Header.Get("Traceparent"))
			if len(statuses) > 0 {
				w.WriteHeader(statuses[0])
				statuses = statuses[1:]
			}
			_, _ = w.Write([]byte(`{"choices":[]}`))
		})
	}
	one := func(address string) string { return fmt.Sprintf(`{"upstreams":[{"dial":"%s"}]}`, address) }
	h, err := load(t, fmt.Sprintf(`{"encode":{"upstreams":[{"dial":"%s"},{"dial":"%s"}]},"prefill":%s,"decode":%s}`,
		fake(500), fake(), one(fake()), one(fake())))
	require.NoError(t, err)

	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	send := func(traced bool) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, chatPath, strings.NewReader(
			`{"messages":[{"content":[{"image_url":"data:,a"},{"image_url":"data:,b"}]}]}`))
		r.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
		if traced {
			ctx, span := provider.Tracer("test").Start(r.Context(), "request")
			defer span.End()
			r = r.WithContext(ctx)
		}
		r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, &caddyhttp.Server{})
		require.NoError(t, h.ServeHTTP(w, r, nil))
		require.Equal(t, http.StatusOK, w.Code, w.Body)
		return w
	}
	send(true)

	spans := exporter.GetSpans()
	byName := make(map[string]tracetest.SpanStubs)
	for _, s := range spans {
		byName[s.Name] = append(byName[s.Name], s)
		assert.Equal(t, spans[0].SpanContext.TraceID(), s.SpanContext.TraceID())
	}
	root := byName["request"][0].SpanContext.SpanID()
	stageOf := make(map[string]string) // by span id
	for _, stage := range stages {
		require.Len(t, byName[stage], 1, stage)
		assert.Equal(t, root, byName[stage][0].Parent.SpanID(), stage)
		stageOf[byName[stage][0].SpanContext.SpanID().String()] = stage
	}
	calls := byName["POST "+chatPath]
	require.Len(t, calls, 5, "two items, one of them twice, prefill and decode")
	count := map[string]int{}
	failed := 0
	known := make(map[string]bool)
	for _, c := range calls {
		stage := stageOf[c.Parent.SpanID().String()]
		count[stage]++
		known[fmt.Sprintf("00-%s-%s-01", c.SpanContext.TraceID(), c.SpanContext.SpanID())] = true
		a := attribute.NewSet(c.Attributes...)
		assert.Equal(t, stage == "encode", a.HasValue("epd.media_items"), stage)
		assert.True(t, a.HasValue("server.address") && a.HasValue("server.port") && a.HasValue("epd.attempt"))
		status, _ := a.Value("http.response.status_code")
		if c.Status.Code == codes.Error {
			failed++
			assert.EqualValues(t, 500, status.AsInt64())
		} else {
			assert.EqualValues(t, 200, status.AsInt64())
		}
	}
	assert.Equal(t, map[string]int{"encode": 3, "prefill": 1, "decode": 1}, count)
	assert.Equal(t, 1, failed)
	assert.Len(t, parents, 5)
	for _, parent := range parents {
		assert.True(t, known[parent], parent)
		delete(known, parent)
	}

	exporter.Reset()
	parents = nil
	send(false)
	assert.Empty(t, exporter.GetSpans(), "spans without tracing")
	assert.NotEmpty(t, parents)
	for _, parent := range parents {
		assert.Equal(t, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", parent, "the client's own, if Caddy traces nothing")
	}
}
