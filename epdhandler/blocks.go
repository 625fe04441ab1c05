package epdhandler

import (
	"errors"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// blocks is what prefill has handed over to decode: KV blocks, or nothing if Params is nil.
type blocks struct{ handover.Blocks }

// spentBy reports whether a failure has spent the blocks.
func (b *blocks) spentBy(f *failure) bool {
	return b != nil && b.Params != nil && f.Stage == telemetry.Decode && (f.Reached || f.Stale != nil)
}

var errStale = errors.New("the KV blocks became too old while the request waited for an instance (kv_lease)")

// lasting is how long KV blocks may wait for decode. Prefill frees them when the lease is over,
// even if decode still reads them. Decode renews the lease within a sixth of it after it
// has received the request; another sixth is for dialing and loading the media.
func (h *Handler) lasting() time.Duration { return time.Duration(h.KVLease) * 2 / 3 }

// guard checks the age of the KV blocks when the call has a slot. If they are too old, the call
// ends, and prefill makes new ones. If those become too old as well, decode computes the prompt
// itself, or a request could go round forever.
//
// A request with blocks may wait as long as they last, because a rejection would waste them.
func (g *generation) guard(c *engine.Call, e *embeddings, b *blocks) {
	if b.Params == nil {
		return
	}
	c.Patience = g.h.lasting()
	c.Ready = func(old *body.Segments) (*body.Segments, error) {
		if b.Params == nil || time.Since(b.Made) < g.h.lasting() {
			return old, nil
		}
		g.h.process.Metrics.HandOvers.WithLabelValues(telemetry.HandOverExpired).Inc()
		if g.seen.staleBlocks {
			b.Params = nil
			return g.decodeBody(e, b), nil
		}
		g.seen.staleBlocks = true
		return nil, errStale
	}
}
