package epdhandler

import (
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// generation is a request on its way through the stages.
type generation struct {
	*exchange
	in        *input
	client    *engine.Client
	engineID  string            // x-request-id, for engines
	keepalive *stream.Keepalive // nil: there is none

	encoding             *encoding // nil before it has begun
	prefilling, decoding *attempts
	seen                 seen
}

// seen is what has happened to a request so far.
type seen struct {
	gate         bool // it has passed the gate
	lostCall     bool // an idle connection ended during a call: calls get connections of their own
	noReferences bool // an engine may have died of a reference to an embedding: there are no more
	staleBlocks  bool // its KV blocks became too old, and were made again
	moves        int  // how often it left the instance that its embeddings were pushed to
}

// newGeneration returns a request that has not been in any stage yet.
func (x *exchange) newGeneration(in *input) *generation {
	g := &generation{
		exchange: x, in: in, engineID: engineID(x.id), client: engine.NewClient(x.r, x.id, x.h.TrustClients),
		decoding: x.h.attempts(x.h.site.Decode),
	}
	if x.h.site.Prefill != nil {
		g.prefilling = x.h.attempts(x.h.site.Prefill)
	}
	return g
}

// prefills reports whether the request has a prefill of its own.
func (g *generation) prefills() bool { return g.h.site.Prefill != nil && g.in.without == "" }
