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

// attempts counts the attempts of one stage of a request (encode: of one batch of media
// items), and decides whether there is another one.
//
// Caddy's own retries cannot do this: they may choose the dead instance again, throw away
// the answer that they retry on, and do not know what an attempt has spent. If they are
// configured, they happen inside an attempt.
type attempts struct {
	pool *engine.Pool
	turn *dispatch.Turn
	left int      // further attempts that are allowed
	late int      // of these, after a time limit
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

// repeated are the statuses that lead to another attempt. Another instance may not be as
// busy as one that answers 429.
var repeated = []int{
	http.StatusTooManyRequests, http.StatusInternalServerError,
	http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout,
}

func (a *attempts) next(client *engine.Client, c engine.Call) *engine.Attempt {
	if a.begun.IsZero() && c.Body != nil {
		a.pool.Budget.Earn(time.Now())
	}
	a.made++
	a.begun = time.Now()
	c.Number, c.Skip, c.Turn = a.made, a.skip, a.turn
	a.attempt = a.pool.NewAttempt(client, c)
	return a.attempt
}

// sent must be called when the attempt is over.
func (a *attempts) sent() {
	a.upstream = cmp.Or(a.attempt.Upstream(), a.upstream)
	if a.attempt.Reached {
		a.reached++
	}
}

// id is the x-request-id of the next attempt: that of the request, unless an engine may
// have seen it already.
func (a *attempts) id(of string) string {
	if a.reached == 0 {
		return of
	}
	return of + "-" + engine.RandomHex(6)
}

// avoid makes the next attempt use another instance than this one, if there is one. For
// dynamic upstreams that is not known in advance.
func (a *attempts) avoid(upstream string) {
	skip := append(slices.Clip(a.skip), upstream)
	if !a.pool.Dynamic && a.pool.Others(skip) {
		a.skip = skip
	}
}

// repeatable reports whether an answer with this status leads to another attempt, if there is
// another instance.
func (a *attempts) repeatable(status int) bool {
	return a.left > 0 && slices.Contains(repeated, status)
}

// settle decides after a failed attempt whether there is another one, and logs the
// failure. After the last one, f is what the client gets. An answer of decode that its response
// accepts does not come here: the client has it.
func (x *exchange) settle(a *attempts, f *failure) {
	x.fails(a, f)
	nobody := f.Reason == telemetry.Unavailable
	if nobody && a.last != nil {
		*f = *a.last // tells the client more
	}
	a.last = f
	skip := append(slices.Clip(a.skip), f.Chosen...)
	others := a.pool.Others(skip)
	if others || !f.lacks() { // otherwise the same instance may succeed with what is made again
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
	if !f.final || !x.h.mayBeOptional(f) { // otherwise encode logs it
		x.log(f, a)
	}
}

func (x *exchange) fails(a *attempts, f *failure) {
	f.count(x.h.process.Metrics)
	now := time.Now()
	if f.ByEngine() && f.HasBody() {
		s := dispatch.Suspect{At: f.Instance(), Failed: now, Chosen: f.Selected, Weight: 1}
		if f.lacks() {
			s.Weight = 0.5 // the instance that made what is missing may be at fault as well
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

// succeeds must be called when the last attempt has succeeded.
func (a *attempts) succeeds() {
	now, by := time.Now(), a.attempt
	a.paid, a.poison = false, 0
	if by.HasBody() && by.Instance().Succeeds(by.Selected, now) {
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

// spend takes one of the further attempts. There is none if the retry budget is spent.
func (x *exchange) spend(a *attempts, f *failure) {
	a.paid = f.HasBody() // other requests cost engines nothing
	if a.paid && a.pool.Budget.Tokens(time.Now()) < 1 {
		x.h.process.Metrics.BudgetSpent.WithLabelValues(f.Stage).Inc()
		f.final, f.unpaid = true, true
		return
	}
	a.left--
}

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

// maxDialing is how long refused connections may take before they count as attempts: each
// takes dial_timeout if the host is gone.
const maxDialing = 30 * time.Second

// free reports whether a failure does not count as an attempt: the connection was refused, and
// that has not happened more often than the pool has instances. A dynamic source could
// return new dead ones forever.
func (a *attempts) free(f *failure) bool {
	return f.Reason == telemetry.Refused && f.Reserved == nil && a.dialing < maxDialing &&
		(!a.pool.Dynamic || a.made <= len(a.pool.Upstreams()))
}
