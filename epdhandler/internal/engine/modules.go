package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
)

// selector is what reverse_proxy has for a policy. It has the dispatcher choose, which asks the policy.
type selector struct {
	pool   *Pool
	policy reverseproxy.Selector
}

// loadPolicy puts a selector around the policy. Provisioning keeps one that is set.
func (p *Pool) loadPolicy(ctx caddy.Context) error {
	lb := cmp.Or(p.Handler.LoadBalancing, new(reverseproxy.LoadBalancing))
	p.Handler.LoadBalancing = lb
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

func init() { caddy.RegisterModule(new(fallback)) }

// fallback is a policy that another one falls back on. Caddy's header and query give theirs
// nil to write to, which cookie does not survive. It is not for configurations.
type fallback struct {
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
	if err == nil {
		f.policy = dispatch.Fit(mod.(reverseproxy.Selector))
	}
	return err
}

// Select implements reverseproxy.Selector.
func (f *fallback) Select(fit reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	return f.policy.Select(fit, r, attemptOf(r).writer)
}

// discard is where policies write that nobody listens to.
type discard http.Header

func (d discard) Header() http.Header       { return http.Header(d) }
func (discard) WriteHeader(int)             {}
func (discard) Write(p []byte) (int, error) { return len(p), nil }

// discovery is the source of a pool's dynamic upstreams. It keeps from reverse_proxy what
// that would not survive: for nil in a list it leaves a lock of the process locked.
type discovery struct {
	pool   *Pool
	source reverseproxy.UpstreamSource
}

// loadSource puts a discovery around the pool's source of dynamic upstreams.
func (p *Pool) loadSource(ctx caddy.Context) error {
	if p.Handler.DynamicUpstreamsRaw == nil {
		return nil
	}
	mod, err := ctx.LoadModule(p.Handler, "DynamicUpstreamsRaw")
	if err == nil {
		p.Handler.DynamicUpstreams = discovery{p, mod.(reverseproxy.UpstreamSource)}
	}
	return err
}

// GetUpstreams implements reverseproxy.UpstreamSource.
func (d discovery) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	upstreams, err := d.find(r)
	if err != nil { // reverse_proxy logs it
		err = errors.New(d.pool.WithoutAddresses(err, nil))
	}
	return upstreams, err
}

// find asks the source. The upstreams are new: a source may give the same ones to several
// requests, and reverse_proxy writes to them.
func (d discovery) find(r *http.Request) (upstreams []*reverseproxy.Upstream, err error) {
	found, err := d.source.GetUpstreams(r)
	for _, u := range found {
		if u != nil && u.Dial != "" && err == nil {
			upstreams = append(upstreams, &reverseproxy.Upstream{Dial: u.Dial, MaxRequests: u.MaxRequests})
		}
	}
	return upstreams, err
}

// ResetCache implements reverseproxy.CachingUpstreamSource.
func (d discovery) ResetCache(r *http.Request) error {
	if c, ok := d.source.(reverseproxy.CachingUpstreamSource); ok {
		return c.ResetCache(r)
	}
	return nil
}

// These limit questions to a source on which no request depends: it may never answer.
const (
	lookUpTimeout = 2 * time.Second
	maxLookUps    = 4
)

var errSourceHangs = errors.New("the source of dynamic upstreams does not answer")

// Instances returns the upstreams, for operators. Like its handler, a dynamic pool can fall back on
// those that are written down.
func (p *Pool) Instances(ctx context.Context) (reverseproxy.UpstreamPool, error) {
	if !p.Dynamic {
		return p.Handler.Upstreams, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookUpTimeout)
	defer cancel()
	select {
	case p.lookUps <- struct{}{}:
	case <-ctx.Done():
		return nil, errSourceHangs
	}
	var upstreams []*reverseproxy.Upstream
	done := make(chan error, 1)
	go func() {
		defer func() { <-p.lookUps }()
		defer func() {
			if v := recover(); v != nil { // it would end the process
				done <- p.panicked(v, zap.Skip())
			}
		}()
		ctx := context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer())
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, "/", http.NoBody)
		found, err := p.Handler.DynamicUpstreams.(discovery).find(r)
		upstreams = found
		done <- err
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		return nil, errSourceHangs
	}
	switch {
	case err == nil && len(upstreams) == 0:
		return nil, errors.New("there are no instances at the moment")
	case err != nil && len(p.Handler.Upstreams) > 0:
		return p.Handler.Upstreams, nil
	}
	return upstreams, err
}

// panicked logs the panic of a module, or of ours, and makes an error of it.
func (p *Pool) panicked(v any, id zap.Field) error {
	err := fmt.Errorf("panic: %v", v)
	p.Logger.Error("panic", zap.String("stage", p.Stage), zap.String("error", p.WithoutAddresses(err, nil)), zap.ByteString("stack", debug.Stack()), id)
	return err
}

// Interface guards
var (
	_ reverseproxy.Selector              = (*fallback)(nil)
	_ caddy.Provisioner                  = (*fallback)(nil)
	_ reverseproxy.CachingUpstreamSource = discovery{}
)
