package engine

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
)

// selector is what reverse_proxy takes for the load balancing policy of a pool. It has the
// dispatcher choose, which asks the policy.
type selector struct {
	pool   *Pool
	policy reverseproxy.Selector
}

// loadPolicy puts a selector around the pool's load balancing policy. The handler keeps a
// policy that is set before it is provisioned.
func (p *Pool) loadPolicy(ctx caddy.Context) error {
	if p.Handler.LoadBalancing == nil {
		p.Handler.LoadBalancing = new(reverseproxy.LoadBalancing)
	}
	lb := p.Handler.LoadBalancing
	s := &selector{p, new(reverseproxy.RoundRobinSelection)}
	if lb.SelectionPolicyRaw != nil {
		lb.SelectionPolicyRaw = ownFallback(lb.SelectionPolicyRaw)
		mod, err := ctx.LoadModule(lb, "SelectionPolicyRaw")
		if err != nil {
			return err
		}
		s.policy = dispatch.Fit(mod.(reverseproxy.Selector))
	}
	lb.SelectionPolicy = s
	return nil
}

// breaker is the circuit breaker of a pool. It is read with every look at the health of an instance,
// also with a lock held; so the module is asked once for each call, on the call's goroutine.
type breaker struct {
	reverseproxy.CircuitBreaker
	open atomic.Bool
}

// loadBreaker puts a breaker around the pool's circuit breaker, if it has one.
func (p *Pool) loadBreaker(ctx caddy.Context) error {
	if p.Handler.CBRaw == nil {
		return nil
	}
	mod, err := ctx.LoadModule(p.Handler, "CBRaw")
	if err == nil {
		p.breaker = &breaker{CircuitBreaker: mod.(reverseproxy.CircuitBreaker)}
		p.Handler.CB = p.breaker
	}
	return err
}

// OK implements reverseproxy.CircuitBreaker.
func (b *breaker) OK() bool { return !b.open.Load() }

// ask asks the module.
func (b *breaker) ask() {
	if b != nil {
		b.open.Store(!b.CircuitBreaker.OK())
	}
}

// nobody is whom a request goes to that is not sent.
var nobody = &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "localhost:0"}

// Select implements reverseproxy.Selector. It runs on the goroutine of the call.
func (s *selector) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	a := attemptOf(r)
	switch {
	case a.lookingUp:
		a.found = upstreams
		return nobody
	case r.Context().Err() != nil && len(upstreams) > 0:
		return upstreams[0] // the round trip fails at once; Caddy would go on asking, for as long as lb_try_duration
	}
	a.slot.Release() // of an instance that could not be reached
	for name := range a.told {
		delete(w.Header(), name)
	}
	a.fault, a.told = nil, nil
	s.pool.breaker.ask()
	u := s.choose(upstreams, a, r)
	switch {
	case a.Stale != nil:
		return nobody // with nil, Caddy would go on asking
	case u == nil:
		return nil
	}
	a.Chosen = append(a.Chosen, u.Dial)
	a.Selected = a.slot.Since
	maps.Copy(w.Header(), a.told)
	return u
}

// choose has the dispatcher choose, and notes why there is no instance if it returns nil.
func (s *selector) choose(upstreams reverseproxy.UpstreamPool, a *Attempt, r *http.Request) *reverseproxy.Upstream {
	a.ask.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
		w := make(discard)
		a.writer = w
		u := s.policy.Select(fit, r, w)
		a.told = w.Header() // such as a cookie; it counts only if the instance is taken
		return u
	}
	if s.pool.Dynamic {
		a.ask.LookUp = func() reverseproxy.UpstreamPool { return s.lookUp(r) }
	}
	u, slot, err := s.pool.Choose(r.Context(), upstreams, &a.ask)
	a.slot, a.Waited = slot, a.ask.Waited
	switch {
	case errors.Is(err, dispatch.ErrElsewhere):
		a.Stale = err
	case !errors.Is(err, dispatch.ErrNobody) && r.Context().Err() == nil:
		a.fault = err
	}
	if u == nil {
		return nil
	}
	a.Reserved.Release() // the call has a slot now
	if a.Ready != nil {
		a.Body, a.Stale = a.Ready(a.Body)
	}
	return u
}

// lookUp asks the source of a dynamic pool which instances there are now, by a request to
// reverse_proxy that is not sent: only that can make the instances its own.
func (s *selector) lookUp(r *http.Request) reverseproxy.UpstreamPool {
	looking := &Attempt{lookingUp: true}
	r = r.WithContext(context.WithValue(r.Context(), attemptKey{}, looking))
	r.Body, r.ContentLength = nil, 0
	_ = s.pool.Handler.ServeHTTP(make(discard), r, noHandler)
	s.pool.breaker.ask()
	return looking.found
}

// ownFallback has a policy of Caddy fall back on a policy by way of a fallback.
func ownFallback(raw json.RawMessage) json.RawMessage {
	var policy map[string]json.RawMessage
	if json.Unmarshal(raw, &policy) != nil || policy["fallback"] == nil {
		return raw
	}
	switch string(policy["policy"]) {
	case `"header"`, `"query"`, `"cookie"`:
		policy["fallback"], _ = json.Marshal(map[string]json.RawMessage{ // of JSON
			"policy": json.RawMessage(`"epd_fallback"`),
			"to":     ownFallback(policy["fallback"]),
		})
		raw, _ = json.Marshal(policy)
	}
	return raw
}

func init() {
	caddy.RegisterModule(new(fallback))
}

// fallback is a policy that another one falls back on. Caddy's header and query give theirs
// nil to write to, which cookie does not survive. It is not for configurations.
type fallback struct {
	// The policy.
	ToRaw json.RawMessage `json:"to,omitempty" caddy:"namespace=http.reverse_proxy.selection_policies inline_key=policy"`

	policy reverseproxy.Selector
}

// CaddyModule returns the Caddy module information.
func (*fallback) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.reverse_proxy.selection_policies.epd_fallback",
		New: func() caddy.Module { return new(fallback) },
	}
}

// Provision loads the policy.
func (f *fallback) Provision(ctx caddy.Context) error {
	mod, err := ctx.LoadModule(f, "ToRaw")
	if err != nil {
		return err
	}
	f.policy = dispatch.Fit(mod.(reverseproxy.Selector))
	return nil
}

// Select implements reverseproxy.Selector.
func (f *fallback) Select(fit reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	return f.policy.Select(fit, r, attemptOf(r).writer)
}

// discard is where policies write that nobody listens to.
type discard http.Header

func (d discard) Header() http.Header { return http.Header(d) }

func (discard) WriteHeader(int) {}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Interface guards
var (
	_ reverseproxy.Selector = (*fallback)(nil)
	_ caddy.Provisioner     = (*fallback)(nil)
)
