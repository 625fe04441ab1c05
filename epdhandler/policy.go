package epdhandler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// selector is what reverse_proxy takes for the load balancing policy of a pool. The queue
// says which instances a call may go to, and the policy chooses one of those.
type selector struct {
	pool   *pool
	policy reverseproxy.Selector
}

// loadPolicy puts a selector around the pool's load balancing policy. The handler keeps a
// policy that is set before it is provisioned.
func (p *pool) loadPolicy(ctx caddy.Context) error {
	if p.handler.LoadBalancing == nil {
		p.handler.LoadBalancing = new(reverseproxy.LoadBalancing)
	}
	lb := p.handler.LoadBalancing
	var policy reverseproxy.Selector = new(reverseproxy.RoundRobinSelection)
	if lb.SelectionPolicyRaw != nil {
		lb.SelectionPolicyRaw = ownFallback(lb.SelectionPolicyRaw)
		mod, err := ctx.LoadModule(lb, "SelectionPolicyRaw")
		if err != nil {
			return fmt.Errorf("loading load balancing policy: %w", err)
		}
		policy = ownWeights(mod.(reverseproxy.Selector))
	}
	if w, ok := policy.(*weighted); ok {
		p.queue.weights = w.weights
	}
	lb.SelectionPolicy = selector{p, policy}
	return nil
}

// Select implements reverseproxy.Selector. It runs on the goroutine of the call.
func (s selector) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	c := callOf(r.Context())
	if s.pool.dynamic {
		s.pool.queue.seen.Store(&upstreams)
	}
	switch {
	case c.found != nil:
		*c.found = upstreams
		return nobody
	case r.Context().Err() != nil && len(upstreams) > 0:
		return upstreams[0] // the round trip fails at once; Caddy would go on asking, for as long as lb_try_duration
	case c.pinned != "":
		i := slices.IndexFunc(upstreams, func(u *reverseproxy.Upstream) bool { return u.String() == c.pinned })
		if i < 0 {
			return nil
		}
		c.chosen = append(c.chosen, c.pinned)
		return upstreams[i] // also if it is not up any more: the attempt will show
	}
	freeSlot(c) // of an instance that could not be reached
	for name := range c.told {
		delete(w.Header(), name)
	}
	c.upstreams, c.fault, c.told = upstreams, nil, nil
	s.pool.breaker.ask()
	lb := chooser{choose: func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream { return s.choose(c, fit, r) }}
	if s.pool.dynamic {
		lb.lookUp = func() { s.lookUp(c, r) }
	}
	u := s.pool.queue.take(r.Context(), c, lb)
	if u != nil && c.ready != nil && !c.ready() {
		freeSlot(c)
		u = nil
	}
	if u == nil {
		return nil
	}
	c.chosen = append(c.chosen, u.String())
	if c.told != nil {
		maps.Copy(w.Header(), c.told)
	}
	return u
}

// choose asks the policy for one of the candidates. What it tells the client, such as a
// cookie, counts only if the instance is taken.
func (s selector) choose(c *call, fit reverseproxy.UpstreamPool, r *http.Request) *reverseproxy.Upstream {
	w := new(stream.Answer)
	c.writer = w
	u := s.policy.Select(slices.Clone(fit), r, w)
	if u != nil && !slices.Contains(fit, u) {
		c.fault = errors.New("the load balancing policy chose an instance that was none of its candidates")
		return nil
	}
	c.told = w.Headers
	return u
}

// lookUp asks the source of a dynamic pool which instances there are now. Only reverse_proxy
// can make them its own, so it gets a request that ends there.
func (s selector) lookUp(c *call, r *http.Request) {
	found := c.upstreams
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, &call{found: &found}))
	r.Body, r.ContentLength = nil, 0
	_ = s.pool.handler.ServeHTTP(new(stream.Answer), r, noHandler)
	s.pool.breaker.ask()
	c.upstreams = found
}

// nobody is whom a request goes to that is not sent.
var nobody = &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "localhost:0"}

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
// nil to write to, which cookie does not survive; and none of them tells the weights of a
// shortened list. It is not for configurations: it stands in one by itself where it is needed.
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
	f.policy = ownWeights(mod.(reverseproxy.Selector))
	return nil
}

// Select implements reverseproxy.Selector.
func (f *fallback) Select(fit reverseproxy.UpstreamPool, r *http.Request, _ http.ResponseWriter) *reverseproxy.Upstream {
	return f.policy.Select(fit, r, callOf(r.Context()).writer)
}

// Interface guards
var (
	_ reverseproxy.Selector = selector{}
	_ reverseproxy.Selector = (*fallback)(nil)
	_ caddy.Provisioner     = (*fallback)(nil)
)
