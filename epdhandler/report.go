package epdhandler

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// report is what the access log says about a request, in the field "epd". Caddy's
// own fields do not know the stages, and say status 200 and duration 0 for a
// stream that was cut.
type report struct {
	id                      string // x-request-id
	api                     string
	start                   time.Time
	begun                   time.Time // when the first byte of a stream was sent
	duration                time.Duration
	outcome                 string
	parsed                  bool   // there is a body, with so many
	items                   int    // media items
	direct                  string // the member for which decode does without prefill
	encode, prefill, decode stageReport
}

// newReport begins the report of a request.
func newReport(id, api string) *report {
	requestsInFlight.WithLabelValues(api).Inc()
	return &report{id: id, api: api, start: time.Now(), outcome: outcomeFailed}
}

// The outcomes of a request.
const (
	outcomeOK           = "ok"            // answered
	outcomeRejected     = "rejected"      // answered with 4xx: the request's own fault
	outcomeFailed       = "failed"        // answered with 5xx: an engine's fault, or a lack of engines or memory
	outcomeBrokeOff     = "broke_off"     // decode broke off in the middle of the answer
	outcomeClientClosed = "client_closed" // the client went away
)

// outcomeOf is the outcome of a request that was answered with an error.
func outcomeOf(status int) string {
	switch {
	case status == statusClientClosed:
		return outcomeClientClosed
	case status < http.StatusInternalServerError:
		return outcomeRejected
	}
	return outcomeFailed
}

// stageReport is one stage of a report.
type stageReport struct {
	duration time.Duration
	attempts []*attempts
}

// enter notes that the request is in a stage, with these attempts, until leave is called
// with the failure of the stage, if it failed. What is done there belongs to ctx.
func (x *exchange) enter(s *stageReport, attempts ...*attempts) (ctx context.Context, leave func(*failure)) {
	ctx, span := startSpan(x.r.Context(), attempts[0].pool.stage, trace.SpanKindInternal)
	s.attempts = attempts
	start := time.Now()
	return ctx, func(f *failure) {
		s.duration += time.Since(start)
		endStage(span, f)
	}
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (s *stageReport) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	made := 0
	var upstreams []string
	for _, a := range s.attempts {
		made += a.made
		if name := a.pool.name(a.upstream); name != "" && !slices.Contains(upstreams, name) {
			upstreams = append(upstreams, name)
		}
	}
	enc.AddDuration("duration", s.duration)
	enc.AddInt("attempts", made)
	zap.Strings("upstreams", upstreams).AddTo(enc)
	return nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (r *report) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("request_id", r.id)
	enc.AddString("outcome", r.outcome)
	enc.AddDuration("duration", r.duration)
	if r.parsed {
		enc.AddInt("media_items", r.items)
	}
	if r.direct != "" {
		enc.AddString("no_prefill", r.direct)
	}
	for i, s := range r.stages() {
		if s.attempts == nil {
			continue
		}
		if err := enc.AddObject(stages[i], s); err != nil {
			return err
		}
	}
	return nil
}

// stages returns the reports of the stages, in their order.
func (r *report) stages() [3]*stageReport {
	return [3]*stageReport{&r.encode, &r.prefill, &r.decode}
}

// finish puts the report into the access log, if there is one.
func (r *report) finish(ctx context.Context) {
	r.duration = time.Since(r.start)
	r.count()
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Object("epd", r))
	}
}
