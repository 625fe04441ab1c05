package epdhandler

import (
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
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
	lookUps chan struct{}
	breaker *breaker // nil: none
	queue   *queue
	logger  *zap.Logger

	budget      *budget // nil: there is none
	budgetKey   budgetKey
	budgetShare float64 // of a token that a request brings
}

// newPool provisions a pool. It leaves nothing behind if that fails.
func newPool(ctx caddy.Context, q *queue, handler *reverseproxy.Handler, retryBudget int) (_ *pool, err error) {
	stage := q.stage
	p := &pool{
		stage: stage, handler: handler, queue: q, logger: ctx.Logger().Named(stage),
		dynamic: handler.DynamicUpstreamsRaw != nil, lookUps: make(chan struct{}, maxLookUps),
		budgetKey: budgetKeyOf(stage, handler),
	}
	p.useBudget(retryBudget)
	defer func() {
		if err != nil {
			p.leaveBudget()
		}
	}()
	p.setHealthDefaults()
	for _, load := range []func(caddy.Context) error{p.loadPolicy, p.loadSource, p.loadBreaker, p.loadTransport} {
		if err := load(ctx); err != nil {
			return nil, fmt.Errorf("provisioning %s pool: %w", stage, err)
		}
	}
	if err := handler.Provision(ctx); err != nil {
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

func (p *pool) cleanup() error {
	p.leaveBudget()
	return p.handler.Cleanup()
}

// setHealthDefaults turns active health checks on, unless they are switched off: that is an
// empty object in JSON.
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
	if a.Path == "" {
		a.URI = cmp.Or(a.URI, "/health")
	}
	a.Interval = cmp.Or(a.Interval, caddy.Duration(5*time.Second))
	a.Timeout = cmp.Or(a.Timeout, caddy.Duration(5*time.Second))
	a.Fails = cmp.Or(a.Fails, 3) // one that preprocesses a large image may miss a check
	a.Passes = cmp.Or(a.Passes, 1)
}

// loadTransport puts a replayTransport around the pool's transport. The handler
// keeps a transport that is set before it is provisioned; setting it later would
// race with the health checks.
func (p *pool) loadTransport(ctx caddy.Context) error {
	if p.handler.TransportRaw == nil {
		p.handler.TransportRaw = json.RawMessage(`{"protocol":"http"}`)
	}
	var config struct {
		KeepAlive reverseproxy.KeepAlive `json:"keep_alive"`
	}
	_ = json.Unmarshal(p.handler.TransportRaw, &config) // LoadModule says what is wrong
	mod, err := ctx.LoadModule(p.handler, "TransportRaw")
	if err != nil {
		return fmt.Errorf("loading transport: %w", err)
	}
	t, ok := mod.(*reverseproxy.HTTPTransport)
	if !ok {
		return fmt.Errorf("transport %s is not supported; use 'transport http'", mod.(caddy.Module).CaddyModule().ID.Name())
	}
	// vLLM's server (uvicorn) closes idle connections after 5s, and a request that is
	// sent at that moment is lost.
	t.Transport.IdleConnTimeout = time.Duration(cmp.Or(config.KeepAlive.IdleConnTimeout, caddy.Duration(2500*time.Millisecond)))
	// A burst finds connections instead of dialing. Idle ones are closed soon anyway.
	t.Transport.MaxIdleConnsPerHost = cmp.Or(config.KeepAlive.MaxIdleConnsPerHost, 1024)
	p.handler.Transport = newReplayTransport(t)
	return nil
}

// known returns the instances as far as they are known: of a dynamic pool those that its
// source has told last.
func (p *pool) known() reverseproxy.UpstreamPool {
	if last := p.queue.seen.Load(); last != nil {
		return *last
	}
	return p.handler.Upstreams
}

// othersThan reports whether an instance may be asked that is not in skip.
func (p *pool) othersThan(skip []string) bool {
	c := &call{skip: skip, upstreams: p.handler.Upstreams}
	slots.Lock()
	defer slots.Unlock()
	for i := range c.upstreams {
		if p.queue.standing(c, i) != unfit {
			return true
		}
	}
	return p.dynamic
}
