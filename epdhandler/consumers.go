package epdhandler

import (
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// ranks are the control addresses of a consumer, one for each data-parallel rank.
type ranks struct {
	addresses []string
	next      atomic.Uint32
}

// loadConsumers makes the ranks of ec_consumers, which fit the pool.
func (h *Handler) loadConsumers() {
	if len(h.ECConsumers) == 0 {
		return
	}
	h.consumers = make(map[string]*ranks)
	for upstream, addresses := range h.ECConsumers {
		h.consumers[upstream] = &ranks{addresses: addresses}
	}
}

// reserveConsumer reserves the instance that consumes the embeddings, if encoders push them there:
// it must be known before anything is encoded. The pool's own load balancing chooses it, with
// the same health checks as for any call.
func (g *generation) reserveConsumer() (*engine.Reservation, *failure) {
	if g.h.consumers == nil {
		return nil, nil
	}
	a := g.decoding
	if g.prefills() {
		a = g.prefilling
		// before an instance of prefill is reserved, or those at the gate would keep it from those
		// who have passed
		if f := g.passGate(); f != nil {
			return nil, f
		}
	}
	ctx := g.r.Context()
	attempt := a.pool.NewAttempt(g.client, engine.Call{
		Method: http.MethodPost, Path: g.r.URL.Path, ID: g.engineID, Clock: new(stream.Silence), Skip: a.skip, Turn: a.turn,
	})
	r := attempt.Reserve(ctx)
	if r == nil {
		attempt.Judge(ctx, 0, nil)
		f := newFailure(attempt, nil)
		g.settle(a, f)
		return nil, f
	}
	at := g.h.consumers[r.Address]
	rank := int(at.next.Add(1)-1) % len(at.addresses)
	r.Control = at.addresses[rank]
	if len(at.addresses) > 1 {
		r.Rank = strconv.Itoa(rank)
	}
	return r, nil
}
