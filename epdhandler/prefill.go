package epdhandler

import (
	"context"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// prefill makes one attempt to have the prompt prefilled, if there is a pool for that.
func (g *generation) prefill(e *embeddings) (_ *blocks, f *failure) {
	if f := g.passGate(); f != nil {
		return nil, f
	}
	if !g.prefills() {
		return new(blocks), nil
	}
	ctx, leave := g.report.enter(g.r.Context(), &g.report.prefill, g.prefilling)
	defer func() { leave(f) }()
	ctx, clock, cancel := stream.Watch(ctx, stream.Limit{Option: "prefill_timeout", Time: time.Duration(g.h.PrefillTimeout)}, stream.Limit{})
	defer cancel()
	var read handover.Reader
	c := engine.Call{
		Method: http.MethodPost, Path: g.r.URL.Path, ID: g.prefilling.id(g.engineID), IDHead: g.engineID + "-", Clock: clock,
		Reserved: e.pushedTo, Movable: g.movable(), Spends: e.serveOnce(), Alone: g.seen.lostCall,
	}
	c.Renew = func() (request *body.Segments) {
		request, read = g.h.connector.Request(e.Body, g.carry(body.ECTransferParams, e.Handles))
		return request
	}
	c.Body = c.Renew()
	answer, f := g.ask(ctx, g.prefilling, c)
	attempt, brings := g.prefilling.attempt, brought{references: e.Refers}
	if attempt.Stale != nil {
		return nil, g.stale(g.prefilling)
	}
	if attempt.Lost {
		return nil, g.lost(attempt, brings)
	}
	var b *blocks
	if f == nil {
		b, f = g.takeOver(ctx, attempt, answer.Body.Bytes(), read)
	}
	if f != nil {
		f.brought = brings
		g.settle(g.prefilling, f)
		return nil, f
	}
	e.consumed = true
	return b, nil
}

// lost returns the failure of a call that met the end of an idle connection. The engine may
// have received it, so what it brought counts as spent, but the engine has not failed.
// This happens once to a request: further attempts have connections of their own.
func (g *generation) lost(a *engine.Attempt, brings brought) *failure {
	g.seen.lostCall = true
	f := expired(a, errIdleEnded)
	f.brought = brings
	return f
}

func (g *generation) takeOver(ctx context.Context, a *engine.Attempt, answer []byte, read handover.Reader) (*blocks, *failure) {
	b, err := read(ctx, answer, a.Upstream(), a.Asked)
	switch {
	case err != nil && ctx.Err() != nil:
		a.Judge(ctx, 0, nil)
		return nil, newFailure(a, nil)
	case err != nil:
		return nil, nonsense(a, err)
	}
	g.h.noteHandOver(a, b.Params != nil, answer)
	g.prefilling.succeeds()
	return &blocks{b}, nil
}

// noteHandOver counts whether an answer of prefill had KV blocks, and logs when that changes for
// an instance: without them decode computes the prompt again, which nobody would notice
// otherwise. An answer that ended with a stop token does not count: before 0.32, vLLM hands over
// only what ended by max_tokens.
func (h *Handler) noteHandOver(a *engine.Attempt, handedOver bool, answer []byte) {
	result := telemetry.HandOverBlocks
	if !handedOver {
		result = telemetry.HandOverNone
	}
	h.process.Metrics.HandOvers.WithLabelValues(result).Inc()
	if !a.Instance().HandedOver(handedOver, handedOver || handover.FinishReason(answer) != "stop") {
		return
	}
	p := h.site.Prefill
	upstream := zap.String("upstream", p.Name(a.Upstream()))
	if handedOver {
		p.Logger.Info("prefill hands KV blocks over again", upstream)
	} else {
		p.Logger.Warn("prefill hands no KV blocks over, so decode computes every prompt again; see its --kv-transfer-config", upstream)
	}
}

// passGate waits at the gate in front of decode, if there is one. After that, a full queue of
// decode does not reject the request.
func (g *generation) passGate() (f *failure) {
	gate := g.h.site.Gate
	if gate == nil || g.seen.gate {
		return nil
	}
	place, err := gate.Join()
	if err != nil || !place.Passes() {
		ctx, leave := g.report.enter(g.r.Context(), &g.report.decode, g.decoding)
		defer func() { leave(f) }()
		if err == nil {
			err = gate.Wait(ctx, place)
		}
	}
	if err != nil {
		reason := telemetry.Overloaded
		if g.r.Context().Err() != nil {
			reason = telemetry.Canceled
		}
		f = newFailure(g.h.site.Decode.NotSent(reason, err), nil)
		g.settle(g.decoding, f)
		return f
	}
	g.seen.gate, g.decoding.turn.Admitted = true, true
	return nil
}

func (g *generation) leaveGate() {
	if g.seen.gate {
		g.h.site.Gate.Leave()
	}
}
