package epdhandler

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Every stage and sub-request has a span below that of the request, and engines get the
// traceparent of their sub-request.
func TestTraces(t *testing.T) {
	var mu sync.Mutex
	var parents []string // traceparent of each request to an engine
	fake := func(statuses ...int) string {
		return fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
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
		r.Header.Set("Content-Type", "application/json")
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
	for _, stage := range telemetry.Stages() {
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

// Spans have the reason why a sub-request and its stage have failed, also in the middle of an answer.
func TestTracesOfFailures(t *testing.T) {
	fine := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }
	hang := func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // otherwise the server would not notice that the client leaves
		<-r.Context().Done()
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte("data: {}\n\n"))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	within := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = w.Write([]byte(`data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\n" + `data: {"error":{"code":500}}` + "\n\n"))
	}
	nobody := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	for name, tc := range map[string]struct {
		encode, decode string
		stage          string
		call, whole    string // error.type of the sub-request and the stage
		outcome        telemetry.Outcome
	}{
		"time-out":         {fakeEngine(t, hang), fakeEngine(t, fine), "encode", "timeout", "timeout", telemetry.Failed},
		"nobody there":     {nobody, fakeEngine(t, fine), "encode", "refused", "refused", telemetry.Failed},
		"redirect":         {fakeEngine(t, status(302)), fakeEngine(t, fine), "encode", "302", "bad_status", telemetry.Failed},
		"refusal":          {fakeEngine(t, status(400)), fakeEngine(t, fine), "encode", "400", "rejected", telemetry.Turned},
		"decode fails":     {fakeEngine(t, fine), fakeEngine(t, status(500)), "decode", "500", "bad_status", telemetry.Failed},
		"decode redirects": {fakeEngine(t, fine), fakeEngine(t, status(302)), "decode", "302", "bad_status", telemetry.Failed},
		"decode says so":   {fakeEngine(t, fine), fakeEngine(t, within), "decode", "500", "bad_status", telemetry.BrokeOff},
		"decode breaks":    {fakeEngine(t, fine), fakeEngine(t, half), "decode", "broken", "broken", telemetry.BrokeOff},
	} {
		t.Run(name, func(t *testing.T) {
			pool := func(address string) string {
				return fmt.Sprintf(`{"upstreams":[{"dial":"%s"}],"health_checks":{"active":{}}}`, address)
			}
			h, err := load(t, fmt.Sprintf(`{"retries":0,"encode_timeout":"100ms","encode":%s,"decode":%s}`, pool(tc.encode), pool(tc.decode)))
			require.NoError(t, err)
			exporter := tracetest.NewInMemoryExporter()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
			before := testutil.ToFloat64(testProcess.Metrics.Requests.WithLabelValues(telemetry.Chat, string(tc.outcome)))

			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodPost, chatPath, strings.NewReader(`{"stream":true,"messages":[{"content":[{"image_url":"data:,a"}]}]}`))
			r.Header.Set("Content-Type", "application/json")
			ctx, span := provider.Tracer("test").Start(r.Context(), "request")
			r = caddyhttp.PrepareRequest(r.WithContext(ctx), caddy.NewReplacer(), w, &caddyhttp.Server{})
			func() {
				defer func() { _ = recover() }() // the panic that resets the connection
				_ = h.ServeHTTP(w, r, nil)
			}()
			span.End()

			assert.Equal(t, before+1, testutil.ToFloat64(testProcess.Metrics.Requests.WithLabelValues(telemetry.Chat, string(tc.outcome))))
			assert.Zero(t, testutil.ToFloat64(testProcess.Metrics.RequestsInFlight.WithLabelValues(telemetry.Chat)))
			why := make(map[string]string)
			stage := ""
			for _, s := range exporter.GetSpans() { // the span of a stage ends after those in it
				a := attribute.NewSet(s.Attributes...)
				if reason, ok := a.Value("error.type"); ok {
					why[s.Name] = reason.AsString()
					assert.Equal(t, codes.Error, s.Status.Code, s.Name)
					stage = s.Name
				}
			}
			assert.Equal(t, tc.stage, stage)
			assert.Equal(t, map[string]string{tc.stage: tc.whole, "POST " + chatPath: tc.call}, why)
		})
	}
}
