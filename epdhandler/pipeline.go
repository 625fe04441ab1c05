package epdhandler

import (
	"net/http"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
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

// run takes the request through its stages until one fails for good or the client has the answer.
func (x *exchange) run(in *input) {
	g := x.newGeneration(in)
	defer g.leaveGate()
	if x.h.StreamKeepalive > 0 && in.streams {
		g.keepalive = stream.StartKeepalive(x.w, x.id, time.Duration(x.h.StreamKeepalive))
		defer g.keepalive.End()
	}
	var m made
	defer func() { m.embeddings.release() }()
	for {
		f := g.pass(&m)
		if f == nil {
			return
		}
		g.restore(&m, f)
		if f.final {
			g.fail(f)
			return
		}
	}
}

// pass goes through the stages that are still to be done, each with one attempt (encode: with
// all attempts of its batches).
func (g *generation) pass(m *made) (f *failure) {
	if m.embeddings == nil {
		if m.embeddings, f = g.encode(); f != nil {
			return f
		}
	}
	if m.blocks == nil {
		if m.blocks, f = g.prefill(m.embeddings); f != nil {
			return f
		}
	}
	return g.decode(m.embeddings, m.blocks)
}

// restore drops what a failed attempt has spent, so that it is made again. KV blocks, and what
// transfer handles name, can be read only once, and an engine that was reached may have done so.
//
//	failed   what happened                      embeddings                  blocks
//	encode   whatever                           pushed: again               -
//	prefill  not reached or stale               pushed: again               -
//	prefill  reached                            handles, pushed: again      -
//	prefill  500, broken or lost                references: media instead   -
//	decode   not reached, with blocks           kept                        kept
//	decode   reached or stale, with blocks      handles, pushed: again      again
//	decode   not reached or stale, no prefill   pushed: again               -
//	decode   reached, no prefill                handles, pushed: again      -
//	decode   500, broken or lost, no prefill    references: media instead   -
//	decode   any, prefill handed nothing over   kept                        kept
//	decode   500, with blocks and references    references: media instead   again
//	decode   before prefill, at the gate        pushed: again               -
//
// Embeddings that consumers can read any number of times are never made again.
func (g *generation) restore(m *made, f *failure) {
	again := m.blocks.spentBy(f)
	if again && f.lacks() {
		g.prefilling.avoid(g.prefilling.upstream) // only that instance can have lost the blocks
	}
	if f.byReference() {
		// an engine that lacks an embedding dies of a reference to it (vLLM 0.32)
		g.seen.noReferences = true
		m.embeddings.Encoded = m.embeddings.WithoutReferences()
	}
	if m.embeddings.spentBy(f, again) {
		m.embeddings.release()
		m.embeddings, again = nil, true
	}
	if again {
		m.blocks = nil
	}
}

func (g *generation) fail(f *failure) {
	g.report.outcome = telemetry.OutcomeOf(f.verdict.status)
	begun := g.keepalive.End()
	if f.Stage == telemetry.Decode && f.isAnswered() && !begun {
		g.in.release()
		f.answer.Deliver(g.w, g.id)
		return
	}
	e := f.verdict
	if f.item != "" && e.Param == nil && e.status < http.StatusInternalServerError {
		e.Param = f.item
	}
	switch {
	case begun:
		stream.WriteEvent(g.w, e.encode())
		g.breakOff(true)
	case f.isAnswered(): // in an engine's words
		e.write(g.w)
	default:
		g.sendError(e)
	}
}
