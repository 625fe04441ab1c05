package epdhandler

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/operate"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Provision sets the defaults, validates the configuration and provisions the pools.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.ctx, h.logger = ctx, ctx.Logger()
	h.setDefaults()
	if _, err := h.validate(); err != nil { // before any pool is provisioned
		return err
	}
	memory.Headroom()
	h.users = new(process.Users)
	if h.process == nil { // otherwise it is a test's own
		h.process = h.users.Use()
	}
	if err := h.process.Metrics.Register(ctx.GetMetricsRegistry(), operate.Gauges{Process: h.process}); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	for _, s := range h.MediaSources {
		from, err := media.ParseSource(s)
		if err != nil {
			return err
		}
		h.sources = append(h.sources, from)
	}
	h.loadConsumers()
	h.connector = handover.NIXL{}
	if len(h.KVBootstrap) > 0 {
		servers := make(handover.Mooncake)
		for upstream, address := range h.KVBootstrap {
			servers[upstream] = &handover.Bootstrap{Address: address}
		}
		h.connector, h.site.Bootstraps = servers, servers
	}
	if err := h.provisionPools(); err != nil {
		return err
	}
	if h.site.Prefill != nil {
		h.site.Gate = dispatch.NewGate(h.site.Decode.Dispatcher, time.Duration(h.KVLease)/3)
	}
	h.process.Enlist(&h.site)
	go engine.WatchHealth(ctx, h.site.Pools())
	return nil
}

// provisionPools provisions the pools. If one fails, Cleanup releases the others.
func (h *Handler) provisionPools() (err error) {
	h.site.MaxMemory = h.MaxMemory
	if h.site.Encode, err = h.newPool(telemetry.Encode, h.EncodeLimit, h.Encode); err != nil {
		return err
	}
	if h.Prefill != nil {
		limit := cmp.Or(h.PrefillLimit, h.prefillShare())
		if h.site.Prefill, err = h.newPool(telemetry.Prefill, limit, h.Prefill); err != nil {
			return err
		}
	}
	h.site.Decode, err = h.newPool(telemetry.Decode, h.DecodeLimit, h.Decode)
	return err
}

func (h *Handler) newPool(stage string, limit int, handler *reverseproxy.Handler) (*engine.Pool, error) {
	return engine.NewPool(h.ctx, h.process.Instances, dispatch.Settings{
		Stage: stage, Limit: limit, QueueSize: *h.QueueSize, QueueTime: time.Duration(h.QueueTimeout),
		MaxEjected: *h.MaxEjected, RetryBudget: *h.RetryBudget,
	}, handler)
}

// prefillShare is the limit of a prefill instance, if there are several: its share of the slots of
// decode, so that an instance that hangs cannot hold all of these requests. 0: no limit.
func (h *Handler) prefillShare() int {
	prefills := len(h.Prefill.Upstreams)
	if prefills < 2 || h.Prefill.DynamicUpstreamsRaw != nil || h.Decode.DynamicUpstreamsRaw != nil {
		return 0
	}
	return (h.DecodeLimit*len(h.Decode.Upstreams) + prefills - 1) / prefills
}

// Cleanup releases the pools that were provisioned.
func (h *Handler) Cleanup() error {
	if h.process == nil {
		return nil // it was not provisioned at all
	}
	h.process.Delist(&h.site)
	var errs []error
	for _, p := range h.site.Pools() {
		errs = append(errs, p.Cleanup())
	}
	h.users.Done()
	return errors.Join(errs...)
}
