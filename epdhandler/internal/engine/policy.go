package engine

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"

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
	var policy reverseproxy.Selector = new(reverseproxy.RoundRobinSelection)
	if lb.SelectionPolicyRaw != nil {
		lb.SelectionPolicyRaw = ownFallback(lb.SelectionPolicyRaw)
		mod, err := ctx.LoadModule(lb, "SelectionPolicyRaw")
		if err != nil {
			return fmt.Errorf("loading load balancing policy: %w", err)
		}
		policy = dispatch.Fit(mod.(reverseproxy.Selector))
	}
	lb.SelectionPolicy = &selector{p, policy}
	return nil
}

// nobody is whom a request goes to that is not sent.
var nobody = &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "localhost:0"}

// Select implements reverseproxy.Selector. It runs on the goroutine of the call.
func (s *selector) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	c := callOf(r.Context())
	if s.pool.Dynamic {
		s.pool.See(upstreams)
	}
	switch {
	case c.lookingUp:
		return nobody
	case r.Context().Err() != nil && len(upstreams) > 0:
		return upstreams[0] // the round trip fails at once; Caddy would go on asking, for as long as lb_try_duration
	}
	c.slot.Release() // of an instance that could not be reached
	for name := range c.told {
		delete(w.Header(), name)
	}
	c.fault, c.busy, c.told = nil, nil, nil
	s.pool.breaker.ask()
	u := s.choose(c, r)
	if u == nil {
		return nil
	}
	c.Chosen = append(c.Chosen, u.Dial)
	c.Selected = c.slot.Since()
	maps.Copy(w.Header(), c.told)
	return u
}

// choose has the dispatcher choose, and notes why there is no instance if it returns nil.
func (s *selector) choose(c *call, r *http.Request) *reverseproxy.Upstream {
	c.ask.Policy = func(fit reverseproxy.UpstreamPool) (*reverseproxy.Upstream, error) { return s.ask(c, fit, r) }
	if s.pool.Dynamic {
		c.ask.LookUp = func() { s.lookUp(c, r) }
	}
	choose := s.pool.Choose
	if c.early {
		choose = s.pool.Dispatcher.Reserve
	}
	u, slot, err := choose(r.Context(), &c.ask)
	c.slot, c.Waited = slot, c.ask.Waited
	if busy, ok := errors.AsType[dispatch.BusyError](err); ok {
		c.busy = busy
	} else if err != nil && !errors.Is(err, dispatch.ErrNobody) && r.Context().Err() == nil {
		c.fault = err
	}
	if u != nil {
		c.Reserved.Release() // the call has a slot now
	}
	if u != nil && c.Ready != nil {
		body, ok := c.Ready(c.Body)
		if !ok {
			c.slot.Release()
			c.Stale = true
			return nil
		}
		c.Body = body
	}
	return u
}

// ask asks the policy for one of the candidates. What it tells the client, such as a
// cookie, counts only if the instance is taken.
func (s *selector) ask(c *call, fit reverseproxy.UpstreamPool, r *http.Request) (*reverseproxy.Upstream, error) {
	w := new(discard)
	c.writer = w
	u := s.policy.Select(fit, r, w)
	c.told = w.header
	return u, nil
}

// lookUp asks the source of a dynamic pool which instances there are now. Only reverse_proxy
// can make them its own, so it gets a request that ends there.
func (s *selector) lookUp(c *call, r *http.Request) {
	looking := &call{lookingUp: true, pool: c.pool, Attempt: new(Attempt)}
	r = r.WithContext(withCall(r.Context(), looking))
	r.Body, r.ContentLength = nil, 0
	_ = s.pool.Handler.ServeHTTP(new(discard), r, noHandler)
	s.pool.breaker.ask()
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
// nil to write to, which cookie does not survive. It is not for configurations: it stands in
// one by itself where it is needed.
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
	return f.policy.Select(fit, r, callOf(r.Context()).writer)
}

// Interface guards
var (
	_ reverseproxy.Selector = (*selector)(nil)
	_ reverseproxy.Selector = (*fallback)(nil)
	_ caddy.Provisioner     = (*fallback)(nil)
)
