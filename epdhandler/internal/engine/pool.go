// Package engine is everything about pools of engines: who they are, how they are asked, and what
// comes of one exchange with one of them. It knows nothing of stages, of what makes a request one
// with media, or of what is done when a call has failed.
package engine

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
)

// Pool is the instances that do one stage, behind a reverse_proxy handler. All its options apply:
// there is only something of ours around its load balancing policy, its source of dynamic
// upstreams, its circuit breaker and its transport.
type Pool struct {
	*dispatch.Dispatcher

	Handler *reverseproxy.Handler
	Budget  dispatch.Budget // of further attempts
	Logger  *zap.Logger

	lookUps chan struct{}
	breaker *breaker // nil: none
}

// NewPool provisions a pool. It leaves nothing behind if that fails.
func NewPool(ctx caddy.Context, instances *dispatch.Instances, s dispatch.Settings, handler *reverseproxy.Handler) (*Pool, error) {
	s.Dynamic = handler.DynamicUpstreamsRaw != nil
	p := &Pool{
		Handler: handler, Logger: ctx.Logger().Named(s.Stage), lookUps: make(chan struct{}, maxLookUps),
		Budget: instances.Budget(s.Stage, handler.Upstreams, string(handler.DynamicUpstreamsRaw), s.RetryBudget),
	}
	p.setHealthDefaults()
	for _, part := range []struct {
		name string
		load func(caddy.Context) error
	}{
		{"load balancing policy", p.loadPolicy}, {"upstream source module", p.loadSource},
		{"circuit breaker", p.loadBreaker}, {"transport", p.loadTransport},
	} {
		if err := part.load(ctx); err != nil {
			return nil, fmt.Errorf("provisioning %s pool: loading %s: %w", s.Stage, part.name, err)
		}
	}
	s.Weights = dispatch.WeightsOf(handler.LoadBalancing.SelectionPolicy.(*selector).policy)
	p.Dispatcher = instances.New(s, handler.Upstreams)
	if err := handler.Provision(ctx); err != nil {
		// Cleanup before the hosts are counted would take them away from other handlers
		if len(handler.Upstreams) > 0 && handler.Upstreams[0].Host != nil {
			_ = handler.Cleanup()
		}
		return nil, fmt.Errorf("provisioning %s pool: %w", s.Stage, err)
	}
	return p, nil
}

// Cleanup releases what the pool's handler has taken.
func (p *Pool) Cleanup() error {
	p.Retire()
	return p.Handler.Cleanup()
}

// setHealthDefaults turns active health checks on, unless they are off: an empty object in JSON.
func (p *Pool) setHealthDefaults() {
	checks := cmp.Or(p.Handler.HealthChecks, new(reverseproxy.HealthChecks))
	p.Handler.HealthChecks = checks
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

// loadTransport puts a replayTransport around the pool's transport. Setting it after the handler is
// provisioned would race with the health checks.
func (p *Pool) loadTransport(ctx caddy.Context) error {
	if p.Handler.TransportRaw == nil {
		p.Handler.TransportRaw = json.RawMessage(`{"protocol":"http"}`)
	}
	var config struct {
		KeepAlive reverseproxy.KeepAlive `json:"keep_alive"`
	}
	_ = json.Unmarshal(p.Handler.TransportRaw, &config) // LoadModule says what is wrong
	mod, err := ctx.LoadModule(p.Handler, "TransportRaw")
	if err != nil {
		return err
	}
	t, ok := mod.(*reverseproxy.HTTPTransport)
	if !ok {
		return fmt.Errorf("transport %s is not supported; use 'transport http'", mod.(caddy.Module).CaddyModule().ID.Name())
	}
	// vLLM's server (uvicorn) closes idle connections after 5s; a request sent then is lost
	t.Transport.IdleConnTimeout = time.Duration(cmp.Or(config.KeepAlive.IdleConnTimeout, caddy.Duration(2500*time.Millisecond)))
	// a burst finds connections instead of dialing
	t.Transport.MaxIdleConnsPerHost = cmp.Or(config.KeepAlive.MaxIdleConnsPerHost, 1024)
	p.Handler.Transport = newReplayTransport(t)
	return nil
}

// The health of a pool. What is unknown counts as healthy.
const (
	Healthy   = "healthy"   // every instance is up
	Degraded  = "degraded"  // some are
	Unhealthy = "unhealthy" // none is
	Empty     = "empty"     // there is no such pool
	Unknown   = "unknown"   // nobody checks
)

// Health is the health of a pool, as the last health checks found it. No engine is contacted.
func (p *Pool) Health() string {
	switch {
	case p == nil:
		return Empty
	case !p.Checked():
		return Unknown
	}
	up := 0
	for _, u := range p.Handler.Upstreams {
		if u.Healthy() {
			up++
		}
	}
	switch up {
	case 0:
		return Unhealthy
	case len(p.Handler.Upstreams):
		return Healthy
	}
	return Degraded
}

// Checked reports whether active health checks look at the instances.
func (p *Pool) Checked() bool { return !p.Dynamic && p.Handler.HealthChecks.Active.IsEnabled() }

// WatchHealth logs when an instance goes down and when it is up again, until ctx ends: Caddy logs
// only each check that fails, and it is not safe to subscribe to its events while others' checks run.
func WatchHealth(ctx context.Context, pools []*Pool) {
	down := make(map[*reverseproxy.Upstream]bool)
	ticker := time.Tick(time.Second)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker:
		}
		for _, p := range pools {
			if p.Checked() {
				p.logHealth(down)
			}
		}
	}
}

// logHealth logs what has changed, and keeps who is down.
func (p *Pool) logHealth(down map[*reverseproxy.Upstream]bool) {
	for _, u := range p.Handler.Upstreams {
		isDown, upstream := !u.Healthy(), zap.String("upstream", p.Name(u.Dial))
		switch {
		case isDown == down[u]:
		case isDown:
			p.Logger.Warn("instance is down", upstream)
		default:
			p.Logger.Info("instance is up", upstream)
		}
		down[u] = isDown
	}
}
