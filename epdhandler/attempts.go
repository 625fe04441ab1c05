package epdhandler

import (
	"net/http"
	"slices"
	"time"

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
	call     *call    // the last one
	left     int      // further attempts that may be made
	late     int      // further attempts that may be made after a time limit
	skip     []string // instances that are not asked again
	made     int
	begun    time.Time     // when the last one was
	dialing  time.Duration // that refused connections have taken
	reached  int           // attempts that an engine may have seen
	paid     bool          // the attempt that is made is one of the retry budget
	poison   int           // attempts that may have failed because of what was asked
	upstream string
	last     *failure
	suspects []suspect // instances that have failed, and may be at fault
}

func (x *exchange) attempts(p *pool) *attempts {
	a := &attempts{pool: p, turn: new(turn), left: *x.h.Retries}
	if p.stage == "encode" {
		a.late = 1
	}
	return a
}

// repeated are the statuses that lead to another attempt. An instance that answers 429 is
// busy, and another one may not be.
var repeated = []int{
	http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

// begin notes that an attempt is made with c.
func (a *attempts) begin(c *call) {
	if a.made == 0 && c.body != nil {
		a.pool.earn(time.Now())
	}
	a.made++
	a.begun = time.Now()
	c.attempt = a.made
	c.skip = a.skip
	c.turn = a.turn
	a.call = c
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
	skip := append(slices.Clip(a.skip), a.upstream)
	if !a.pool.dynamic && a.pool.othersThan(skip) {
		a.skip = skip
	}
}

// repeatable reports whether an answer of this status would lead to another
// attempt if another instance were available.
func (a *attempts) repeatable(status int) bool {
	return a.left > 0 && slices.Contains(repeated, status)
}

// settle decides after a failed attempt whether there is another one, and logs the
// failure. If it was the last one, f becomes what the client gets.
func (x *exchange) settle(a *attempts, f *failure) {
	x.fails(a, f)
	nobody := f.reason == unavailable
	if nobody && a.last != nil {
		*f = *a.last // says more than that there is nobody else
	}
	a.last = f
	skip := append(slices.Clip(a.skip), f.call.chosen...)
	others := a.pool.othersThan(skip)
	if others || !x.lost(f) { // an embedding can be made again for the same instance
		a.skip = skip
	}
	f.final = nobody || !a.may(f) || !others && !x.lost(f)
	if !f.final && !a.free(f) {
		a.spend(f)
	}
	if !f.final && f.reason == timedOut {
		a.late--
	}
	if !f.final {
		stageRetries.WithLabelValues(f.stage).Inc()
	}
	if !f.final || !x.mayBeOptional(f) { // else encode knows what becomes of the request
		x.logFailure(f, a)
	}
}

// fails counts a failed attempt.
func (x *exchange) fails(a *attempts, f *failure) {
	countFailure(f)
	now := time.Now()
	if f.isEngines() && f.call.body != nil {
		s := suspect{at: instance{f.stage, f.call.upstream()}, failed: now, chosen: f.call.chosenAt, weight: 1}
		if x.lost(f) {
			s.weight = 0.5 // the other half is for who has made what was lost
		}
		a.suspects = append(a.suspects, s)
		historyOf(s.at).fails(s.chosen, now)
	}
	if f.isEngines() || f.reason == canceled && f.call.reached {
		a.poison++
	}
	if f.reason == refused {
		a.dialing += now.Sub(a.begun) - f.call.waited
	}
	if a.paid && (f.isEngines() || f.status == http.StatusTooManyRequests) {
		a.paid = false
		a.pool.charge(now)
	}
}

// succeeds notes that an attempt has done what was asked.
func (a *attempts) succeeds() {
	now := time.Now()
	a.paid, a.poison = false, 0
	a.pool.clear(a.call, now)
	if a.suspects != nil {
		a.pool.judge(a.suspects, a.call, now)
		a.suspects = nil
	}
}

// spend makes the next attempt one of the retry budget. If that is spent, there is none.
func (a *attempts) spend(f *failure) {
	a.paid = f.call.body != nil // else it costs an engine nothing
	if a.paid && !a.pool.mayRetry(time.Now()) {
		f.final, f.unpaid = true, true
		return
	}
	a.left--
}

// may reports whether a failure is one after which another attempt makes sense.
func (a *attempts) may(f *failure) bool {
	switch f.reason {
	case refused:
		return a.free(f) || a.left > 0
	case broken:
		return a.left > 0
	case timedOut:
		return a.left > 0 && a.late > 0
	case badStatus:
		return a.repeatable(f.status)
	}
	return false
}

// maxDialing is how long the refused connections of a stage may take before they count as
// attempts: a host that is gone takes dial_timeout.
const maxDialing = 30 * time.Second

// free reports whether a failure takes none of the attempts: no engine knows of it, and there
// are no more of its kind than the pool has instances. The source of a dynamic pool could
// else go on with new ones for ever.
func (a *attempts) free(f *failure) bool {
	return f.reason == refused && f.call.pinned == "" && a.dialing < maxDialing &&
		(!a.pool.dynamic || a.made <= len(a.pool.known()))
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
