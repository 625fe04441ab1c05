package epdhandler

import (
	"errors"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// blocks is what prefill hands over to decode: KV blocks, or nothing if Params is nil.
type blocks struct{ handover.Blocks }

// spentBy reports whether a failure has spent the blocks. What was not handed over cannot be spent.
func (b *blocks) spentBy(f *failure) bool {
	return b != nil && b.Params != nil && f.Stage == telemetry.Decode && (f.Reached || f.Stale)
}

var errStale = errors.New("the KV blocks became too old while the request waited for an instance (kv_lease)")

// lasting is how long KV blocks may wait for decode. Prefill frees them when the lease is
// over, though decode still reads them then, and whatever is in them. Decode renews the
// lease, but has done so a sixth of it after it has got the request at the latest, and
// before that it has to be dialed and to load the media, for which there is another sixth.
func (h *Handler) lasting() time.Duration { return time.Duration(h.KVLease) * 2 / 3 }

// guard has the age of the KV blocks that a call brings to decode looked at when it
// has a slot. If they are too old, the call gives the slot back and ends, and a prefill
// makes new ones. When those become too old as well, decode computes the prompt itself:
// a request that always comes after others would else never get to its end.
//
// A request with blocks may wait for as long as they last: a refusal would waste them.
func (g *generation) guard(c *engine.Call, e *embeddings, b *blocks, cancel func()) {
	if b.Params == nil {
		return
	}
	c.Patience = g.h.lasting()
	c.Ready = func(old *body.Segments) (*body.Segments, bool) {
		if b.Params == nil || time.Since(b.Made) < g.h.lasting() {
			return old, true
		}
		g.h.process.Metrics.HandOvers.WithLabelValues(telemetry.HandOverExpired).Inc()
		if g.seen.staleBlocks {
			b.Params = nil
			return g.decodeBody(e, b), true
		}
		g.seen.staleBlocks = true
		cancel()
		return nil, false
	}
}
