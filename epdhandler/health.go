package epdhandler

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

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

// healthTick is how often the log may say that an instance is down or up.
const healthTick = time.Second

// watchHealth logs when an instance goes down and when it is up again, until ctx ends: Caddy
// logs only each check that fails. It looks at the instances, because one cannot subscribe
// to Caddy's events safely while the checks of another handler run.
func (h *Handler) watchHealth(ctx context.Context) {
	down := make(map[*reverseproxy.Upstream]bool)
	ticker := time.NewTicker(healthTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		for _, p := range h.pools() {
			if p.checked() {
				p.logHealth(down)
			}
		}
	}
}

// logHealth logs what has changed, and keeps who is down.
func (p *pool) logHealth(down map[*reverseproxy.Upstream]bool) {
	for _, u := range p.handler.Upstreams {
		isDown := !u.Healthy()
		if isDown == down[u] {
			continue
		}
		down[u] = isDown
		upstream := zap.String("upstream", p.name(u.String()))
		if isDown {
			p.logger.Warn("instance is down", upstream)
		} else {
			p.logger.Info("instance is up", upstream)
		}
	}
}
