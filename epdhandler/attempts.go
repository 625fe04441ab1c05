package epdhandler

import (
	"cmp"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// attempts counts what one stage of a request (in encode: one batch of media items) has
// tried, and decides whether it may try again. Nothing else decides that.
//
// Caddy's own retries cannot do this: they may choose the dead instance again,
// throw away the answer that they retry on, and do not know what an attempt has
// spent. Where a user configures them, they happen inside an attempt.
type attempts struct {
	pool *engine.Pool
	turn *dispatch.Turn
	left int      // further attempts that may be made
	late int      // further attempts that may be made after a time limit
	skip []string // instances that are not asked again

	made     int
	begun    time.Time       // the last one
	attempt  *engine.Attempt // the last one
	upstream string          // that was asked last; empty: none was
	last     *failure
	dialing  time.Duration // that refused connections have taken
	reached  int           // attempts that an engine may have seen
	poison   int           // attempts that may have failed because of what was asked
	paid     bool          // the attempt that is made is one of the retry budget

	suspects []dispatch.Suspect // instances that have failed, and may be at fault
}

func (h *Handler) attempts(p *engine.Pool) *attempts {
	a := &attempts{pool: p, turn: new(dispatch.Turn), left: *h.Retries}
	if p.Stage == telemetry.Encode {
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

// next returns the next attempt, which makes this call.
func (a *attempts) next(client *engine.Client, c engine.Call) *engine.Attempt {
	if a.made == 0 && c.Body != nil {
		a.pool.Budget.Earn(time.Now())
	}
	a.made++
	a.begun = time.Now()
	c.Number, c.Skip, c.Turn = a.made, a.skip, a.turn
	a.attempt = a.pool.NewAttempt(client, c)
	return a.attempt
}

// sent notes that the attempt is over.
func (a *attempts) sent() {
	a.upstream = cmp.Or(a.attempt.Upstream(), a.upstream)
	if a.attempt.Reached {
		a.reached++
	}
}

// id is the x-request-id of an attempt: the one of the request, unless an engine may
// know it already.
func (a *attempts) id(of string) string {
	if a.reached == 0 {
		return of
	}
	return of + "-" + engine.RandomHex(6)
}

// avoid has the next attempt made elsewhere than the last one, if there is anybody. Nobody
// knows that of dynamic upstreams before they are asked for.
func (a *attempts) avoid() {
	skip := append(slices.Clip(a.skip), a.upstream)
	if !a.pool.Dynamic && a.pool.Others(skip) {
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
	nobody := f.Reason == telemetry.Unavailable
	if nobody && a.last != nil {
		*f = *a.last // says more than that there is nobody else
	}
	a.last = f
	skip := append(slices.Clip(a.skip), f.Chosen...)
	others := a.pool.Others(skip)
	if others || !f.lacks() { // what was lost can be made again for the same instance
		a.skip = skip
	}
	f.final = nobody || !a.may(f) || !others && !f.lacks()
	if !f.final && !a.free(f) {
		x.spend(a, f)
	}
	if !f.final && f.Reason == telemetry.TimedOut {
		a.late--
	}
	if !f.final {
		x.h.process.Metrics.StageRetries.WithLabelValues(f.Stage).Inc()
	}
	if !f.final || !x.h.mayBeOptional(f) { // else encode knows what becomes of the request
		x.log(f, a)
	}
}

// fails counts a failed attempt.
func (x *exchange) fails(a *attempts, f *failure) {
	f.count(x.h.process.Metrics)
	now := time.Now()
	if f.ByEngine() && f.HasBody() {
		s := dispatch.Suspect{At: f.Instance(), Failed: now, Chosen: f.Selected, Weight: 1}
		if f.lacks() {
			s.Weight = 0.5 // the other half is for who has made what was lost
		}
		a.suspects = append(a.suspects, s)
		s.At.Fails(s.Chosen, now)
	}
	if f.ByEngine() || f.Reason == telemetry.Canceled && f.Reached {
		a.poison++
	}
	if f.Reason == telemetry.Refused {
		a.dialing += now.Sub(a.begun) - f.Waited
	}
	if a.paid && (f.ByEngine() || f.Status == http.StatusTooManyRequests) {
		a.paid = false
		a.pool.Budget.Charge(now)
	}
}

// succeeds notes that the last attempt has done what was asked.
func (a *attempts) succeeds() {
	now, by := time.Now(), a.attempt
	a.paid, a.poison = false, 0
	if by.HasBody() && by.Instance().Succeeds(by.Selected, now) { // other questions can be answered by any engine
		a.pool.Logger.Info("instance is no longer ejected", zap.String("upstream", a.pool.Name(by.Upstream())))
	}
	suspects := slices.DeleteFunc(a.suspects, func(s dispatch.Suspect) bool { return s.At.Address == by.Upstream() })
	if len(suspects) > 0 {
		a.pool.Judge(suspects, now, func(at *dispatch.Instance, length time.Duration) {
			a.pool.Logger.Warn("instance is ejected", zap.String("upstream", a.pool.Name(at.Address)), zap.Duration("for", length),
				zap.String("reason", "requests fail there and succeed elsewhere"))
		})
	}
	a.suspects = nil
}

// spend makes the next attempt one of the retry budget. If that is spent, there is none.
func (x *exchange) spend(a *attempts, f *failure) {
	a.paid = f.HasBody() // else it costs an engine nothing
	if a.paid && a.pool.Budget.Tokens(time.Now()) < 1 {
		x.h.process.Metrics.BudgetSpent.WithLabelValues(f.Stage).Inc()
		f.final, f.unpaid = true, true
		return
	}
	a.left--
}

// may reports whether a failure is one after which another attempt makes sense.
func (a *attempts) may(f *failure) bool {
	switch f.Reason {
	case telemetry.Refused:
		return a.free(f) || a.left > 0
	case telemetry.Broken:
		return a.left > 0
	case telemetry.TimedOut:
		return a.left > 0 && a.late > 0
	case telemetry.BadStatus:
		return a.repeatable(f.Status)
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
	return f.Reason == telemetry.Refused && f.Reserved == nil && a.dialing < maxDialing &&
		(!a.pool.Dynamic || a.made <= len(a.pool.Upstreams()))
}
