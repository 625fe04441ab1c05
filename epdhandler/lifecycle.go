package epdhandler

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// Provision sets the defaults, validates the configuration and provisions the pools.
func (h *Handler) Provision(ctx caddy.Context) error {
	h.ctx, h.logger = ctx, ctx.Logger()
	memory.Headroom()
	if err := showMetrics(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}

	h.setDefaults()
	if _, err := h.validate(); err != nil { // before any pool is provisioned
		return err
	}
	for _, s := range h.MediaSources {
		from, err := media.ParseSource(s)
		if err != nil {
			return err
		}
		h.sources = append(h.sources, from)
	}
	if err := h.provisionPools(); err != nil {
		return err
	}
	h.gate = h.newGate()
	h.loadConsumers()
	h.loadBootstraps()
	h.enlist()
	go h.watchHealth(ctx)
	return nil
}

// provisionPools leaves the pools that it has provisioned to Cleanup if one fails.
func (h *Handler) provisionPools() (err error) {
	if h.encode, err = newPool(h.ctx, h.queue("encode", h.EncodeLimit), h.Encode, *h.RetryBudget); err != nil {
		return err
	}
	if h.Prefill != nil {
		limit := cmp.Or(h.PrefillLimit, h.prefillShare())
		if h.prefill, err = newPool(h.ctx, h.queue("prefill", limit), h.Prefill, *h.RetryBudget); err != nil {
			return err
		}
	}
	h.decode, err = newPool(h.ctx, h.queue("decode", h.DecodeLimit), h.Decode, *h.RetryBudget)
	return err
}

// prefillShare is the limit of a prefill instance, if there are several: its share of the
// requests that decode has slots for, so that one that hangs does not keep all of them.
// 0: no limit.
func (h *Handler) prefillShare() int {
	prefills := len(h.Prefill.Upstreams)
	if prefills < 2 || h.Prefill.DynamicUpstreamsRaw != nil || h.Decode.DynamicUpstreamsRaw != nil {
		return 0
	}
	return (h.DecodeLimit*len(h.Decode.Upstreams) + prefills - 1) / prefills
}

func (h *Handler) queue(stage string, limit int) *queue {
	return &queue{stage: stage, limit: limit, size: *h.QueueSize, wait: time.Duration(h.QueueTimeout), maxEjected: *h.MaxEjected}
}

// Cleanup releases the pools that were provisioned.
func (h *Handler) Cleanup() error {
	h.delist()
	var errs []error
	for _, p := range h.pools() {
		errs = append(errs, p.cleanup())
	}
	return errors.Join(errs...)
}
