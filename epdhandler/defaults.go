package epdhandler

import (
	"cmp"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// Constants, because validation compares these options with their defaults to report changes that
// have no effect.
const (
	defaultQueueSize    = 1000
	defaultQueueTimeout = caddy.Duration(30 * time.Second)
)

func (h *Handler) setDefaults() {
	h.Retries = cmp.Or(h.Retries, new(1))
	h.RetryBudget = cmp.Or(h.RetryBudget, new(20))
	h.MaxEjected = cmp.Or(h.MaxEjected, new(50))
	h.EncodeConcurrency = cmp.Or(h.EncodeConcurrency, 16)
	h.EncodeBatch = cmp.Or(h.EncodeBatch, 1)

	h.EncodeTimeout = cmp.Or(h.EncodeTimeout, caddy.Duration(time.Minute))
	h.PrefillTimeout = cmp.Or(h.PrefillTimeout, caddy.Duration(10*time.Minute))
	h.KVLease = cmp.Or(h.KVLease, caddy.Duration(30*time.Second))
	h.StreamStartTimeout = cmp.Or(h.StreamStartTimeout, caddy.Duration(10*time.Minute))
	h.StreamIdleTimeout = cmp.Or(h.StreamIdleTimeout, caddy.Duration(10*time.Minute))
	h.BodyTimeout = cmp.Or(h.BodyTimeout, caddy.Duration(5*time.Minute))

	h.QueueSize = cmp.Or(h.QueueSize, new(defaultQueueSize))
	h.QueueTimeout = cmp.Or(h.QueueTimeout, defaultQueueTimeout)

	if h.MaxMemory == 0 {
		h.MaxMemory = memory.DefaultLimit()
	}
	h.MaxBodySize = cmp.Or(h.MaxBodySize, min(256<<20, h.MaxMemory/4))
	h.MaxMediaItems = cmp.Or(h.MaxMediaItems, 128)
}
