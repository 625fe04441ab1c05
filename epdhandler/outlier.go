package epdhandler

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// An instance can pass its health checks and fail at all that it is asked. It is ejected from
// its pool for a while then, as other proxies' outlier detection does, and gets single
// requests afterwards until one of them succeeds.
//
// What counts against an instance is a request that failed there and then succeeded at another
// one. A request that fails everywhere, such as one that kills engines, counts against nobody.
const (
	strikesOut      = 5 // failures since the last success
	ejectionTime    = 10 * time.Second
	maxEjectionTime = 5 * time.Minute
)

// outlier is what an instance has on its record. Its history's lock guards it.
type outlier struct {
	strikes   float64
	succeeded time.Time // when it last did

	ejections int       // since it last succeeded; 0: it is not ejected
	ejected   time.Time // when it was, the last time
	until     time.Time // when it gets a request again
	probe     time.Time // when that was chosen; zero: there is none
}

// ejectedNow is how many instances are ejected, so that nobody looks for them if none is.
var ejectedNow atomic.Int32

// suspect is an instance at which a request has failed.
type suspect struct {
	at     instance
	failed time.Time
	chosen time.Time // zero: when no instance was ejected
	weight float64   // of the strike
}

// succeeds notes that an instance has done what it was asked, and reports whether that ends
// its ejection.
func (h *history) succeeds(chosen, now time.Time) (back bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := &h.outlier
	o.succeeded, o.strikes = now, 0
	if o.ejections == 0 || chosen.Before(o.ejected) {
		return false
	}
	o.end()
	return true
}

// end ends the ejection, if there is one.
func (o *outlier) end() {
	if o.ejections > 0 {
		*o = outlier{succeeded: o.succeeded}
		ejectedNow.Add(-1)
	}
}

// fails notes that an instance has failed. If it was to show whether it works again, it is
// not asked for as long as before.
func (h *history) fails(chosen, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o := &h.outlier; o.ejections > 0 && !chosen.Before(o.ejected) {
		o.until = now.Add(o.time())
	}
}

// time is how long the ejection takes.
func (o *outlier) time() time.Duration {
	return min(ejectionTime*time.Duration(o.ejections), maxEjectionTime)
}

// convict counts a failure of a request that has then succeeded elsewhere. It reports whether
// the instance is to be ejected.
func (h *history) convict(s suspect) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := &h.outlier
	switch {
	case s.failed.Before(o.succeeded): // it has worked since
		return false
	case o.ejections > 0:
		return !s.chosen.Before(o.ejected)
	}
	o.strikes += s.weight
	return o.strikes >= strikesOut
}

// eject ejects an instance and returns for how long.
func (h *history) eject(now time.Time) time.Duration {
	h.ejections.Inc()
	h.mu.Lock()
	defer h.mu.Unlock()
	o := &h.outlier
	if o.ejections++; o.ejections == 1 {
		ejectedNow.Add(1)
	}
	o.ejected, o.until, o.strikes = now, now.Add(o.time()), 0
	return o.time()
}

// isEjected reports whether an instance is ejected.
func (h *history) isEjected() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.outlier.ejections > 0
}

// isOut reports whether an ejected instance gets no request, and when it was ejected.
func (h *history) isOut(now time.Time) (since time.Time, out bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	o := &h.outlier
	return o.ejected, o.ejections > 0 && (!o.probe.IsZero() || now.Before(o.until))
}

// try notes that an instance gets a request. If it is ejected, there is no other one
// until leave is called.
func (h *history) try(chosen time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if o := &h.outlier; o.ejections > 0 && o.probe.IsZero() {
		o.probe = chosen
	}
}

func (h *history) leave(chosen time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.outlier.probe.Equal(chosen) {
		h.outlier.probe = time.Time{}
	}
}

// clear notes that a call has succeeded.
func (p *pool) clear(c *call, now time.Time) {
	if c.body == nil {
		return // a question that any engine can answer
	}
	if address := c.upstream(); historyOf(instance{p.stage, address}).succeeds(c.chosenAt, now) {
		p.logger.Info("instance is no longer ejected", zap.String("upstream", p.name(address)))
	}
}

// ejecting is held while an instance is ejected, so that not too many are.
var ejecting sync.Mutex

// judge counts the failures of a request that has now succeeded, against the instances at
// which it had failed.
func (p *pool) judge(suspects []suspect, c *call, now time.Time) {
	ejecting.Lock()
	defer ejecting.Unlock()
	known := c.upstreams
	if known == nil {
		known = p.known()
	}
	for _, s := range suspects {
		if s.at.address == c.upstream() || p.queue.maxEjected == 0 {
			continue
		}
		if h := historyOf(s.at); h.convict(s) && (h.isEjected() || p.queue.mayEject(known)) {
			p.logger.Warn("instance is ejected", zap.String("upstream", p.name(s.at.address)), zap.Duration("for", h.eject(now)),
				zap.String("reason", "requests fail there and succeed elsewhere"))
		}
	}
}

// maxOut is how many instances may be ejected of so many that are up: one, if any, but never
// more than half.
func (q *queue) maxOut(up int) int {
	if q.maxEjected == 0 {
		return 0
	}
	return min(max(1, up*q.maxEjected/100), up/2)
}

// mayEject reports whether one more of these instances may be ejected.
func (q *queue) mayEject(known reverseproxy.UpstreamPool) bool {
	up, ejected := 0, 1
	for _, u := range known {
		if !u.Available() {
			continue
		}
		up++
		if historyOf(instance{q.stage, u.String()}).isEjected() {
			ejected++
		}
	}
	return ejected <= q.maxOut(up)
}

// out returns which of these instances get no requests because they are ejected. They are
// never more than may be, even if others are down, or they were ejected by another pool.
func (q *queue) out(known reverseproxy.UpstreamPool) []*reverseproxy.Upstream {
	if ejectedNow.Load() == 0 {
		return nil
	}
	var (
		now   = time.Now()
		up    int
		out   []*reverseproxy.Upstream
		since = make(map[*reverseproxy.Upstream]time.Time)
	)
	for _, u := range known {
		if !u.Available() {
			continue
		}
		up++
		var isOut bool
		if since[u], isOut = historyOf(instance{q.stage, u.String()}).isOut(now); isOut {
			out = append(out, u)
		}
	}
	slices.SortStableFunc(out, func(a, b *reverseproxy.Upstream) int { return since[a].Compare(since[b]) })
	return out[:min(len(out), q.maxOut(up))]
}
