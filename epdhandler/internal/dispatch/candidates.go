package dispatch

import (
	"math"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// A call that an instance was reserved for ([Ask.Only]) has that one as its only candidate. For
// others these are the conditions, in this order:
//
//   - it is not ejected; if nobody else meets the conditions, that does not count
//   - it is up: health checks, circuit breaker, max_requests
//   - it is not in [Ask.Skip]
//   - its weight is not 0
//   - it has a free slot, or keeps one for the call, or the call takes none
//   - the policy has not declined it and all others that meet the conditions

// wanted returns the candidates for a call, unless its policy has declined all of them.
func (d *Dispatcher) wanted(w *waiter) (fit reverseproxy.UpstreamPool, busy bool) {
	fit, busy = d.candidates(w.ask)
	if w.ask.Early && d.Limit > 0 {
		fit = d.leastTaken(w.ask, fit)
	}
	isNew := func(u *reverseproxy.Upstream) bool { return !slices.Contains(w.declined, u.Dial) }
	if len(w.declined) > 0 && !slices.ContainsFunc(fit, isNew) {
		fit = nil
	}
	return fit, busy
}

// leastTaken returns the candidates that have a slot for one more reservation, and if there are none
// those with the fewest calls.
func (d *Dispatcher) leastTaken(a *Ask, fit reverseproxy.UpstreamPool) (best reverseproxy.UpstreamPool) {
	least := math.MaxInt
	for _, u := range fit {
		at := a.view.of(u)
		n := max(at.load(), d.Limit-1)
		if n < least {
			least, best = n, nil
		}
		if n == least {
			best = append(best, u)
		}
	}
	return best
}

// candidates returns the instances that meet all conditions, and whether others would if they had a
// free slot.
func (d *Dispatcher) candidates(a *Ask) (fit reverseproxy.UpstreamPool, busy bool) {
	if a.Only != "" {
		return d.candidatesWithout(a, nil)
	}
	var out []*Instance
	out, a.spared = d.out(a.view)
	if fit, busy = d.candidatesWithout(a, out); len(fit) == 0 && !busy && len(out) > 0 {
		a.spared = append(a.spared, out...)
		return d.candidatesWithout(a, nil)
	}
	return fit, busy
}

func (d *Dispatcher) candidatesWithout(a *Ask, out []*Instance) (fit reverseproxy.UpstreamPool, busy bool) {
	fit = make(reverseproxy.UpstreamPool, 0, len(a.view.upstreams))
	for i, u := range a.view.upstreams {
		at := a.view.instances[i]
		switch {
		case len(out) > 0 && slices.Contains(out, at), !d.mayGet(a, i):
		case a.Turn == nil, a.Early, at == a.offered, d.free(at) > 0:
			fit = append(fit, u)
		default:
			busy = true
		}
	}
	return fit, busy
}

// mayGet reports whether the i-th instance of its view may get a call as soon as it has a free slot.
func (d *Dispatcher) mayGet(a *Ask, i int) bool {
	address := a.view.instances[i].Address
	if a.Only != "" {
		return address == a.Only
	}
	return a.view.upstreams[i].Available() && !slices.Contains(a.Skip, address) &&
		(d.Weights == nil || i < len(d.Weights) && d.Weights[i] > 0)
}

// isElsewhere reports whether a call should leave the instance that was reserved for it to others:
// that is down and another one is up, or another one has a free slot which nobody has reserved or,
// if the call has waited for a quarter of queue_timeout, which has no more calls to come.
func (d *Dispatcher) isElsewhere(w *waiter) bool {
	a, hasWaited := w.ask, !w.since.IsZero() && time.Since(w.since) >= d.QueueTime/4
	own := slices.IndexFunc(a.view.instances, func(at *Instance) bool { return at.Address == a.Only })
	if own < 0 {
		return false
	}
	other := *a
	other.Only, other.Skip = "", append(slices.Clip(a.Skip), a.Only)
	fit, busy := d.candidates(&other)
	if !a.view.upstreams[own].Available() && (len(fit) > 0 || busy) {
		return true
	}
	return slices.ContainsFunc(fit, func(u *reverseproxy.Upstream) bool {
		at := a.view.of(u)
		return d.free(at) > int(at.reserved.Load()) || hasWaited && at.load() <= a.view.instances[own].load()
	})
}

// Others reports whether an instance could be asked that is not in skip. Of a dynamic pool
// nobody knows that before its source is asked.
func (d *Dispatcher) Others(skip []string) bool {
	fit, _ := d.candidatesWithout(&Ask{Skip: skip, view: d.newest.Load()}, nil)
	return d.Dynamic || len(fit) > 0
}
