package epdhandler

import (
	"errors"
	"net/http"

	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// failure is a failed attempt, and what the client gets if it is the last word.
type failure struct {
	*engine.Attempt

	item     string         // the media item, in encode; empty if that is not known
	brought  brought        // what the call brought of the stages before
	final    bool           // there is no further attempt
	unpaid   bool           // because the retry budget is spent
	optional bool           // the request goes on without the stage
	answer   *stream.Answer // the engine's own; nil if there is none
	verdict  apiError
}

// brought is what a call brings of the stages before.
type brought struct {
	references bool // to embeddings
	once       bool // something that can be read only once
}

// lacks reports whether an engine may have failed because it could not get what other engines
// made for it: it answers 500 then.
func (f *failure) lacks() bool {
	return (f.brought.references || f.brought.once) && f.Reason == telemetry.BadStatus && f.Status == http.StatusInternalServerError
}

// newFailure returns the failure of an attempt that has been judged, with the engine's answer if
// there is one.
func newFailure(a *engine.Attempt, answer *stream.Answer) *failure {
	f := &failure{Attempt: a}
	if a.Reason == telemetry.BadStatus && a.Err == nil {
		f.answer = answer
	}
	f.verdict = f.explain()
	return f
}

func nonsense(a *engine.Attempt, cause error) *failure {
	a.Fail(telemetry.Broken, 0, cause)
	return newFailure(a, nil)
}

// expired returns the failure of an attempt that brought something useless. No engine has failed.
func expired(a *engine.Attempt, why error) *failure {
	a.Fail(telemetry.Expired, 0, why)
	a.End()
	return &failure{Attempt: a}
}

// stale returns the failure of a call that was not sent, because what it brings is of no use any
// more. It does not count as an attempt.
func (g *generation) stale(a *attempts) *failure {
	a.made--
	if errors.Is(a.attempt.Stale, dispatch.ErrElsewhere) {
		g.seen.moves++
		a.avoid(a.attempt.Reserved.Address)
		a.pool.Logger.Info("the instance that embeddings were pushed to is busy or down; encoding again for another one",
			zap.String("request_id", g.id), zap.String("upstream", a.pool.Name(a.attempt.Reserved.Address)))
	}
	return expired(a.attempt, a.attempt.Stale)
}

func (f *failure) isAnswered() bool {
	return f.answer != nil && f.Status >= http.StatusBadRequest
}

// explain returns what the client is told. It never has the address of an engine.
func (f *failure) explain() apiError {
	switch f.Reason {
	case telemetry.Canceled:
		return apiError{status: telemetry.StatusClientClosed}
	case telemetry.TimedOut:
		return serverError(http.StatusGatewayTimeout, f.Stage+"_timeout", "the %s stage did not answer in time", f.Stage)
	case telemetry.Unavailable, telemetry.Refused:
		return serverError(http.StatusServiceUnavailable, f.Stage+"_unavailable", "no instance of the %s stage can be reached", f.Stage)
	case telemetry.Overloaded:
		if errors.Is(f.Cause, memory.ErrExhausted) {
			return noMemoryError()
		}
		return overloadedError(f.Stage)
	case telemetry.BadStatus:
		return engineError(f.Stage, f.Status, f.answer)
	}
	return serverError(http.StatusBadGateway, f.Stage+"_failed", "the %s stage gave no valid answer", f.Stage)
}

func (f *failure) count(m *telemetry.Metrics) {
	if f.Reason == telemetry.Canceled {
		return
	}
	why := f.Why()
	m.StageFailures.WithLabelValues(f.Stage, string(why)).Inc()
	if f.Upstream() != "" && why != telemetry.Rejected && why != telemetry.Overloaded {
		f.Instance().Failed(why)
	}
}

// log logs a failed attempt, unless the client left or another media item failed.
func (x *exchange) log(f *failure, a *attempts) {
	if f.Reason == telemetry.Canceled {
		return
	}
	fields := []zap.Field{
		zap.String("request_id", x.id),
		zap.String("stage", f.Stage),
		zap.String("upstream", a.pool.Name(f.Upstream())),
		zap.Int("attempt", a.made),
		zap.String("reason", string(f.Why())),
		zap.Int("status", f.verdict.status),
		zap.Bool("retrying", !f.final),
		zap.String("error", a.pool.WithoutAddresses(f.Cause, f.Attempt)),
	}
	if f.item != "" {
		fields = append(fields, zap.String("item", f.item))
	}
	if f.unpaid {
		fields = append(fields, zap.String("retry_budget", "spent"))
	}
	switch {
	case !f.final:
		x.h.logger.Warn("attempt failed", fields...)
	case f.optional:
		x.h.logger.Warn("going on without encoders", fields...)
	case f.verdict.status < http.StatusInternalServerError:
		x.h.logger.Warn("request failed", fields...)
	default:
		x.h.logger.Error("request failed", fields...)
	}
}
