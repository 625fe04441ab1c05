package epdhandler

import (
	"net/http"
	"slices"

	"go.uber.org/zap"
)

// attempts counts what one stage of a request (in encode: one media item) has
// tried, and decides whether it may try again.
//
// Caddy's own retries cannot do this: they may choose the dead instance again,
// throw away the answer that they retry on, and do not know what an attempt has
// spent. Where a user configures them, they happen inside an attempt.
type attempts struct {
	pool     *pool
	turn     *turn
	left     int      // further attempts that may be made
	late     int      // further attempts that may be made after a time limit
	repeats  []int    // statuses that lead to another attempt
	failed   []string // instances that failed
	made     int
	reached  int // attempts that an engine may have seen
	upstream string
	last     *failure
}

func (x *exchange) attempts(p *pool) *attempts {
	a := &attempts{pool: p, turn: new(turn), left: *x.h.Retries, repeats: gatewayErrors}
	switch p.stage {
	case "encode":
		a.late = 1
		a.repeats = serverErrors
	case "prefill":
		a.repeats = serverErrors
	}
	return a
}

var (
	gatewayErrors = []int{http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout}
	serverErrors  = append([]int{http.StatusInternalServerError}, gatewayErrors...)
)

// begin notes that an attempt is made with c.
func (a *attempts) begin(c *call) {
	a.made++
	c.attempt = a.made
	c.skip = a.failed
	c.turn = a.turn
}

// note keeps what is known of the attempt when it is over.
func (a *attempts) note(c *call) {
	if c.upstream() != "" {
		a.upstream = c.upstream()
	}
	if c.reached {
		a.reached++
	}
}

// avoid has the next attempt made elsewhere than the last one, if there is anybody. Nobody
// knows that of dynamic upstreams before they are asked for.
func (a *attempts) avoid() {
	failed := append(slices.Clip(a.failed), a.upstream)
	if !a.pool.dynamic && a.pool.othersThan(failed) {
		a.failed = failed
	}
}

// repeatable reports whether an answer of this status would lead to another
// attempt if another instance were available.
func (a *attempts) repeatable(status int) bool {
	return a.left > 0 && slices.Contains(a.repeats, status)
}

// settle decides after a failed attempt whether there is another one, and logs the
// failure. If it was the last one, f becomes what the client gets.
func (x *exchange) settle(a *attempts, f *failure) {
	countFailure(f)
	nobody := f.reason == unavailable
	if nobody && a.last != nil {
		*f = *a.last // says more than that there is nobody else
	}
	a.last = f
	failed := append(slices.Clip(a.failed), f.call.chosen...)
	others := a.pool.othersThan(failed)
	if others || !x.lost(f) { // an embedding can be made again for the same instance
		a.failed = failed
	}
	f.final = nobody || !a.may(f) || !others && !x.lost(f)
	if !f.final && (f.reason != refused || f.call.pinned != "") {
		a.left--
	}
	if !f.final && f.reason == timedOut {
		a.late--
	}
	if !f.final {
		stageRetries.WithLabelValues(f.stage).Inc()
	}
	x.logFailure(f, a)
}

// may reports whether a failure is one after which another attempt makes sense.
func (a *attempts) may(f *failure) bool {
	switch f.reason {
	case refused:
		return f.call.pinned == "" || a.left > 0 // else bounded by the size of the pool, and it costs nothing
	case broken:
		return a.left > 0
	case timedOut:
		return a.left > 0 && a.late > 0
	case badStatus:
		return a.repeatable(f.status)
	}
	return false
}

// logFailure logs a failed attempt, unless the client has gone or a sibling has
// failed, which is not its fault.
func (x *exchange) logFailure(f *failure, a *attempts) {
	if f.reason == canceled {
		return
	}
	fields := []zap.Field{
		zap.String("request_id", x.id),
		zap.String("stage", f.stage),
		zap.String("upstream", a.pool.name(f.call.upstream())),
		zap.Int("attempt", a.made),
		zap.String("reason", string(f.why())),
		zap.Int("status", f.verdict.status),
		zap.Bool("retrying", !f.final),
		zap.String("error", a.pool.withoutAddresses(f.cause, f.call)),
	}
	if f.item != "" {
		fields = append(fields, zap.String("item", f.item))
	}
	switch {
	case !f.final:
		x.h.logger.Warn("attempt failed", fields...)
	case x.optional(f):
		x.h.logger.Warn("going on without encoders", fields...)
	case f.verdict.status < http.StatusInternalServerError:
		x.h.logger.Warn("request failed", fields...)
	default:
		x.h.logger.Error("request failed", fields...)
	}
}
