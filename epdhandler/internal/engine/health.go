package engine

import (
	"context"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

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

// healthTick is how often the log may say that an instance is down or up.
const healthTick = time.Second

// WatchHealth logs when an instance goes down and when it is up again, until ctx ends: Caddy logs
// only each check that fails. One cannot subscribe to Caddy's events safely while the checks of
// another handler run.
func WatchHealth(ctx context.Context, pools []*Pool) {
	down := make(map[*reverseproxy.Upstream]bool)
	ticker := time.Tick(healthTick)
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
