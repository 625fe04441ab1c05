package epdhandler

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// stages are the names of the stages, in their order.
var stages = []string{"encode", "prefill", "decode"}

// pool is the instances that do one stage, behind a reverse_proxy handler.
type pool struct {
	stage   string // "encode", "prefill" or "decode"
	handler *reverseproxy.Handler
	dynamic bool // upstreams come from a source and are not known beforehand
	queue   *queue
	logger  *zap.Logger

	budget      *budget // nil: there is none
	budgetKey   budgetKey
	budgetShare float64 // of a token that a request brings
}

// newPool provisions a pool. It leaves nothing behind if that fails.
func newPool(ctx caddy.Context, q *queue, handler *reverseproxy.Handler, retryBudget int) (*pool, error) {
	stage := q.stage
	p := &pool{stage: stage, handler: handler, dynamic: handler.DynamicUpstreamsRaw != nil, queue: q, logger: ctx.Logger()}
	if len(handler.Upstreams) == 0 && !p.dynamic {
		return nil, fmt.Errorf("the %s pool has no upstreams; %s", stage, writePool(stage, "host:port"))
	}
	q.dynamic = p.dynamic
	p.setHealthDefaults()
	if err := p.loadPolicy(ctx); err != nil {
		return nil, fmt.Errorf("provisioning %s pool: %w", stage, err)
	}
	if err := p.loadTransport(ctx); err != nil {
		return nil, fmt.Errorf("provisioning %s pool: %w", stage, err)
	}
	p.useBudget(retryBudget)
	if err := handler.Provision(ctx); err != nil {
		p.leaveBudget()
		// It may have failed before or after it counted its hosts, all of them
		// at once, and Cleanup of what was not counted would take them away
		// from other handlers.
		if len(handler.Upstreams) > 0 && handler.Upstreams[0].Host != nil {
			_ = handler.Cleanup()
		}
		return nil, fmt.Errorf("provisioning %s pool: %w", stage, err)
	}
	for _, u := range handler.Upstreams {
		historyOf(instance{stage, u.String()}) // its metrics begin with zero
	}
	return p, nil
}

func writePool(stage, upstreams string) string {
	return fmt.Sprintf(`write "%s %s" in the epd_proxy block (JSON: "%s": {"upstreams": [{"dial": "host:port"}]})`, stage, upstreams, stage)
}

func (p *pool) cleanup() error {
	p.leaveBudget()
	return p.handler.Cleanup()
}

// setHealthDefaults turns active health checks on, unless they are configured to
// be off: with an empty object in JSON.
func (p *pool) setHealthDefaults() {
	if p.handler.HealthChecks == nil {
		p.handler.HealthChecks = new(reverseproxy.HealthChecks)
	}
	checks := p.handler.HealthChecks
	switch {
	case checks.Active == nil:
		checks.Active = new(reverseproxy.ActiveHealthChecks)
	case reflect.ValueOf(*checks.Active).IsZero():
		return
	}
	a := checks.Active
	//lint:ignore SA1019 users may still have it
	if a.URI == "" && a.Path == "" {
		a.URI = "/health"
	}
	if a.Interval == 0 {
		a.Interval = caddy.Duration(5 * time.Second)
	}
	if a.Timeout == 0 {
		a.Timeout = caddy.Duration(5 * time.Second)
	}
	if a.Fails == 0 {
		a.Fails = 3 // one that preprocesses a large image may miss a check
	}
	if a.Passes == 0 {
		a.Passes = 1
	}
}

// loadPolicy puts a selector around the pool's load balancing policy. The
// handler keeps a policy that is set before it is provisioned.
func (p *pool) loadPolicy(ctx caddy.Context) error {
	if p.handler.LoadBalancing == nil {
		p.handler.LoadBalancing = new(reverseproxy.LoadBalancing)
	}
	lb := p.handler.LoadBalancing
	var policy reverseproxy.Selector = new(reverseproxy.RoundRobinSelection)
	if lb.SelectionPolicyRaw != nil {
		mod, err := ctx.LoadModule(lb, "SelectionPolicyRaw")
		if err != nil {
			return fmt.Errorf("loading load balancing policy: %w", err)
		}
		policy = mod.(reverseproxy.Selector)
	}
	lb.SelectionPolicy = selector{policy, p.queue}
	return nil
}

// keepAliveDefaults are those of the transport's keep_alive, in JSON.
var keepAliveDefaults = map[string]json.RawMessage{
	// vLLM's server (uvicorn) closes idle connections after 5s, and a request that is
	// sent at that moment is lost.
	"idle_timeout": json.RawMessage(`"2.5s"`),
	// Bursts find connections instead of dialling. As many have been in use just before.
	"max_idle_conns_per_host": json.RawMessage(`1024`),
}

// loadTransport puts a replayTransport around the pool's transport. The handler
// keeps a transport that is set before it is provisioned; setting it later would
// race with the health checks.
func (p *pool) loadTransport(ctx caddy.Context) error {
	raw, err := withKeepAlive(p.handler.TransportRaw)
	if err != nil {
		return fmt.Errorf("reading transport: %w", err)
	}
	p.handler.TransportRaw = raw
	mod, err := ctx.LoadModule(p.handler, "TransportRaw")
	if err != nil {
		return fmt.Errorf("loading transport: %w", err)
	}
	t, ok := mod.(*reverseproxy.HTTPTransport)
	if !ok {
		return fmt.Errorf("transport %s is not supported; use 'transport http'", mod.(caddy.Module).CaddyModule().ID.Name())
	}
	p.handler.Transport = newReplayTransport(t)
	return nil
}

// withKeepAlive adds the defaults of keep_alive to the configuration of a transport.
func withKeepAlive(raw json.RawMessage) (json.RawMessage, error) {
	config := map[string]json.RawMessage{"protocol": json.RawMessage(`"http"`)}
	if raw != nil {
		if err := json.Unmarshal(raw, &config); err != nil {
			return nil, err
		}
	}
	if string(config["protocol"]) != `"http"` {
		return raw, nil
	}
	var keepAlive map[string]json.RawMessage
	if config["keep_alive"] != nil {
		if err := json.Unmarshal(config["keep_alive"], &keepAlive); err != nil {
			return nil, err
		}
	}
	if keepAlive == nil {
		keepAlive = make(map[string]json.RawMessage)
	}
	for name, value := range keepAliveDefaults {
		if keepAlive[name] == nil {
			keepAlive[name] = value
		}
	}
	var err error
	if config["keep_alive"], err = json.Marshal(keepAlive); err != nil {
		return nil, err
	}
	return json.Marshal(config)
}

// known returns the instances as far as they are known: of a dynamic pool those that its
// source has told last.
func (p *pool) known() reverseproxy.UpstreamPool {
	if last := p.queue.seen.Load(); last != nil {
		return *last
	}
	return p.handler.Upstreams
}

// othersThan reports whether an instance may be available that is not in skip.
func (p *pool) othersThan(skip []string) bool {
	return p.dynamic || slices.ContainsFunc(p.handler.Upstreams, func(u *reverseproxy.Upstream) bool {
		return !slices.Contains(skip, u.String()) && u.Available()
	})
}

// selector leaves out the instances at which a request has failed and those that have
// enough to do, and notes the one that is chosen.
type selector struct {
	policy reverseproxy.Selector
	queue  *queue
}

// Select implements reverseproxy.Selector.
func (s selector) Select(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter) *reverseproxy.Upstream {
	if r.Context().Err() != nil && len(upstreams) > 0 {
		return upstreams[0] // the round trip fails at once; Caddy would go on asking, for as long as lb_try_duration
	}
	if s.queue.dynamic {
		s.queue.seen.Store(&upstreams)
	}
	c := callOf(r.Context())
	if c.pinned != "" {
		for _, u := range upstreams {
			if u.String() == c.pinned { // also if it is not up any more: the attempt will show
				c.chosen = append(c.chosen, c.pinned)
				return u
			}
		}
		return nil
	}
	freeSlot(c) // of an instance that could not be reached
	choose := func(full func(*reverseproxy.Upstream) bool) *reverseproxy.Upstream {
		return s.choose(upstreams, r, w, func(u *reverseproxy.Upstream) bool {
			return slices.Contains(c.skip, u.String()) || full(u)
		})
	}
	var u *reverseproxy.Upstream
	if c.turn == nil {
		u = choose(hasRoom)
	} else {
		u = s.queue.take(r.Context(), c, upstreams, choose)
	}
	if u != nil && c.ready != nil && !c.ready() {
		freeSlot(c)
		return nil
	}
	if u != nil {
		c.chosen = append(c.chosen, u.String())
	}
	return u
}

// maxPicks is how often the policy is asked to come up with another instance by
// itself. It should be given the chance, because a shorter list of instances can
// mean something else to it: weights go by position.
const maxPicks = 64

// choose asks the policy for an instance that is not left out.
func (s selector) choose(upstreams reverseproxy.UpstreamPool, r *http.Request, w http.ResponseWriter, out func(*reverseproxy.Upstream) bool) *reverseproxy.Upstream {
	for range maxPicks {
		u := s.policy.Select(upstreams, r, w)
		if u == nil {
			break // round_robin says so when others keep it from the only one that is up
		}
		if !out(u) {
			return u
		}
	}
	fit := slices.DeleteFunc(slices.Clone(upstreams), func(u *reverseproxy.Upstream) bool { return !u.Available() || out(u) })
	if len(fit) == 0 {
		return nil
	}
	return s.policy.Select(fit, r, w)
}

// Interface guard
var _ reverseproxy.Selector = selector{}
