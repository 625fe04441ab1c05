package epdhandler

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
)

// The health of a pool. What is unknown counts as healthy.
const (
	healthy   = "healthy"   // every instance is up
	degraded  = "degraded"  // some are
	unhealthy = "unhealthy" // none is
	empty     = "empty"     // there is no such pool
	unknown   = "unknown"   // nobody checks
)

// health answers with the health of each pool, under the keys of vLLM's
// disagg_epd_proxy.py: 503 if a pool has nobody left that requests need. It says what
// Caddy's health checks know, and asks no engine itself.
func (x *exchange) health() {
	encode, prefill, decode := x.h.encode.health(), x.h.prefill.health(), x.h.decode.health()
	status := http.StatusOK
	if encode == unhealthy && !x.h.EncodeOptional || prefill == unhealthy || decode == unhealthy {
		status = http.StatusServiceUnavailable
	} else {
		x.report.outcome = outcomeOK
	}
	x.w.Header().Set("Content-Type", "application/json")
	x.w.Header().Set("Cache-Control", "no-store")
	x.w.WriteHeader(status)
	_ = json.NewEncoder(x.w).Encode(map[string]string{
		"proxy":           healthy,
		"encode_cluster":  encode,
		"prefill_cluster": prefill,
		"decode_cluster":  decode,
	})
}

func (p *pool) health() string {
	switch {
	case p == nil:
		return empty
	case !p.checked():
		return unknown
	}
	up := 0
	for _, u := range p.handler.Upstreams {
		if u.Healthy() {
			up++
		}
	}
	switch up {
	case 0:
		return unhealthy
	case len(p.handler.Upstreams):
		return healthy
	}
	return degraded
}

// checked reports whether active health checks look at the instances.
func (p *pool) checked() bool { return !p.dynamic && p.handler.HealthChecks.Active.IsEnabled() }

// healthLog has the log say when health checks find an instance down, and when it is up
// again. Caddy logs only each check that fails.
type healthLog struct{ h *Handler }

// watchHealth subscribes to what reverse_proxy tells of the pools.
func (h *Handler) watchHealth(ctx caddy.Context) error {
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting events app: %w", err)
	}
	for _, event := range []string{"healthy", "unhealthy"} {
		if err := app.(*caddyevents.App).On(event, healthLog{h}); err != nil {
			return fmt.Errorf("subscribing to %s: %w", event, err)
		}
	}
	return nil
}

// Handle implements caddyevents.Handler.
func (l healthLog) Handle(_ context.Context, e caddy.Event) error {
	if e.Origin() != caddy.Module(l.h) {
		return nil // another handler's upstream
	}
	address, _ := e.Data["host"].(string)
	for _, p := range l.h.pools() {
		if !p.has(address) {
			continue
		}
		fields := []zap.Field{zap.String("upstream", p.place(address)), zap.String("address", address)}
		if e.Name() == "healthy" {
			l.h.logger.Info("instance is up", fields...)
		} else {
			l.h.logger.Warn("instance is down", fields...)
		}
	}
	return nil
}

// has reports whether one of the upstreams has this address.
func (p *pool) has(address string) bool {
	return slices.ContainsFunc(p.handler.Upstreams, func(u *reverseproxy.Upstream) bool { return u.String() == address })
}

// Interface guard
var _ caddyevents.Handler = healthLog{}
