package epdhandler

import (
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

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

// leaveGate lets the next request pass.
func (g *generation) leaveGate() {
	if g.seen.gate {
		g.h.site.Gate.Leave()
	}
}
