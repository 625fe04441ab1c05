package epdhandler

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// report is a request's entry in the access log, in the field "epd", and its metrics. Caddy's own
// fields have no stages, and have status 200 and duration 0 for a stream that was cut.
type report struct {
	metrics                 *telemetry.Metrics
	id                      string // x-request-id
	api                     string
	start                   time.Time
	begun                   time.Time // when the first byte of a stream was sent
	duration                time.Duration
	outcome                 telemetry.Outcome
	parsed                  bool   // the body was parsed
	items                   int    // media items in the body
	without                 string // the member because of which prefill is skipped
	encode, prefill, decode stageReport
}

func newReport(m *telemetry.Metrics, id, api string) *report {
	m.RequestsInFlight.WithLabelValues(api).Inc()
	return &report{metrics: m, id: id, api: api, start: time.Now(), outcome: telemetry.Failed}
}

type stageReport struct {
	duration time.Duration
	attempts []*attempts
}

func (r *report) received(in *input) {
	items := in.media.Items()
	r.parsed, r.items = true, len(items)
	if !in.chat {
		return
	}
	r.metrics.RequestItems.Observe(float64(len(items)))
	for _, item := range items {
		kind := item.Modality()
		r.metrics.MediaItems.WithLabelValues(kind).Inc()
		r.metrics.MediaBytes.WithLabelValues(kind).Add(float64(item.Size()))
	}
}

// enter records that the request is in a stage, with these attempts, until leave is called
// with the failure of the stage, or nil. The stage must use the returned context.
func (r *report) enter(ctx context.Context, s *stageReport, attempts ...*attempts) (_ context.Context, leave func(*failure)) {
	ctx, span := telemetry.StartSpan(ctx, attempts[0].pool.Stage, trace.SpanKindInternal)
	s.attempts = attempts
	start := time.Now()
	return ctx, func(f *failure) {
		s.duration += time.Since(start)
		if f != nil && f.Reason != telemetry.Canceled {
			telemetry.FailSpan(span, string(f.Why()))
		}
		span.End()
	}
}

func (r *report) begins() {
	if r.begun.IsZero() {
		r.begun = time.Now()
		r.metrics.TimeToFirstToken.WithLabelValues(r.api).Observe(r.begun.Sub(r.start).Seconds())
	}
}

// finish adds the report to the access log, if there is one, and counts the request.
func (r *report) finish(ctx context.Context) {
	r.duration = time.Since(r.start)
	if extra, ok := ctx.Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.Object("epd", r))
	}
	m := r.metrics
	m.RequestsInFlight.WithLabelValues(r.api).Dec()
	m.Requests.WithLabelValues(r.api, string(r.outcome)).Inc()
	if r.encode.attempts == nil && r.prefill.attempts == nil && r.decode.attempts == nil || r.api == telemetry.Models {
		return // durations of such requests would only lower the others
	}
	m.RequestDuration.WithLabelValues(r.api).Observe(r.duration.Seconds())
	for stage, s := range r.stages() {
		m.StageDuration.WithLabelValues(stage).Observe(s.duration.Seconds())
	}
	if !r.begun.IsZero() {
		m.StreamDuration.WithLabelValues(r.api).Observe((r.duration - r.begun.Sub(r.start)).Seconds())
	}
}

func (r *report) stages() iter.Seq2[string, *stageReport] {
	return func(yield func(string, *stageReport) bool) {
		for i, s := range []*stageReport{&r.encode, &r.prefill, &r.decode} {
			if s.attempts != nil && !yield(telemetry.Stages()[i], s) {
				return
			}
		}
	}
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (r *report) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("request_id", r.id)
	enc.AddString("outcome", string(r.outcome))
	enc.AddDuration("duration", r.duration)
	if r.parsed {
		enc.AddInt("media_items", r.items)
	}
	if r.without != "" {
		enc.AddString("no_prefill", r.without)
	}
	for stage, s := range r.stages() {
		if err := enc.AddObject(stage, s); err != nil {
			return err
		}
	}
	return nil
}

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (s *stageReport) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	made := 0
	var upstreams []string
	for _, a := range s.attempts {
		made += a.made
		if name := a.pool.Name(a.upstream); name != "" && !slices.Contains(upstreams, name) {
			upstreams = append(upstreams, name)
		}
	}
	enc.AddDuration("duration", s.duration)
	enc.AddInt("attempts", made)
	zap.Strings("upstreams", upstreams).AddTo(enc)
	return nil
}
