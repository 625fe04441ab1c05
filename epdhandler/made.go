package epdhandler

import (
	"errors"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// made is what the stages have made for later stages; nil is still to be made.
type made struct {
	embeddings *embeddings
	blocks     *blocks
}

// embeddings is what encode makes of the media of a request, for the stage that consumes them.
type embeddings struct {
	media.Encoded

	stage    string              // that consumes them
	pushedTo *engine.Reservation // the instance that has them; nil: they can be fetched
	consumed bool                // by a prefill that has succeeded
}

func (e *embeddings) release() {
	if e != nil {
		e.pushedTo.Release()
	}
}

// serveOnce reports whether only one engine can get the embeddings, once.
func (e *embeddings) serveOnce() bool { return e.Handles != nil || e.pushedTo != nil }

// spentBy reports whether a failure has spent the embeddings. If the prefill that consumed them
// is done again, it needs new ones.
func (e *embeddings) spentBy(f *failure, prefillAgain bool) bool {
	switch {
	case e == nil || !e.serveOnce():
		return false
	case prefillAgain:
		return true
	case e.pushedTo != nil && !e.consumed:
		return true // the next attempt is at another instance
	}
	return f.Stage == e.stage && (f.Reached || f.Stale != nil)
}

// byReference reports whether an engine may have failed because it could not get an embedding
// that it got a reference to: it answers 500, or dies.
func (f *failure) byReference() bool {
	return f.brought.references && f.Reached && (f.Reason == telemetry.Broken || f.Lost || f.lacks())
}

// carry sets a member to what an engine answered for it. A client's own value could make engines
// read from any host.
func (g *generation) carry(name string, params []byte) body.Edit {
	if params == nil && g.h.TrustClients {
		params = g.in.body.Value(name)
	}
	return body.Set(name, params)
}

// blocks is what prefill has handed over to decode: KV blocks, or nothing if Params is nil.
type blocks struct{ handover.Blocks }

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
