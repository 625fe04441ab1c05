package epdhandler

import (
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// report is what the access log says about a request, in the field "epd". Caddy's
// own fields do not know the stages, and say status 200 and duration 0 for a
// stream that was cut.
type report struct {
	start                   time.Time
	outcome                 string
	parsed                  bool // there is a body, with these
	items                   []body.Item
	encode, prefill, decode stageReport
}

// The outcomes of a request.
const (
	outcomeOK           = "ok"            // answered
	outcomeRejected     = "rejected"      // refused before any engine was asked
	outcomeFailed       = "failed"        // answered with an error of, or about, an engine
	outcomeBrokeOff     = "broke_off"     // decode broke off in the middle of the answer
	outcomeClientClosed = "client_closed" // the client went away
)

// stageReport is one stage of a report.
type stageReport struct {
	duration time.Duration
	attempts []*attempts
}

// time measures a stage with these attempts until the function it returns is called.
func (s *stageReport) time(attempts ...*attempts) (done func()) {
	s.attempts = attempts
	start := time.Now()
	return func() { s.duration += time.Since(start) }
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

// logFields puts the report into the access log.
func (x *exchange) logFields() {
	extra, ok := x.r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if !ok {
		return
	}
	fields := []zap.Field{
		zap.String("request_id", x.id),
		zap.String("outcome", x.report.outcome),
		zap.Duration("duration", time.Since(x.report.start)),
	}
	if x.report.parsed {
		fields = append(fields, zap.Int("media_items", len(x.report.items)))
	}
	for _, s := range []struct {
		name   string
		report *stageReport
	}{{"encode", &x.report.encode}, {"prefill", &x.report.prefill}, {"decode", &x.report.decode}} {
		if s.report.attempts != nil {
			fields = append(fields, zap.Object(s.name, s.report))
		}
	}
	extra.Set(zap.Dict("epd", fields...))
}
