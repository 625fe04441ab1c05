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

func (h *Handler) loadConsumers() {
	if len(h.ECConsumers) == 0 {
		return
	}
	h.consumers = make(map[string]*ranks)
	for upstream, addresses := range h.ECConsumers {
		h.consumers[upstream] = &ranks{addresses: addresses}
	}
}

// maxMoves is how often a request has its media encoded again because the instance that was
// reserved for it is busy or down when it is called, and another one is not.
const maxMoves = 3

// movable reports whether the request may leave its instance once more.
func (g *generation) movable() bool { return g.seen.moves < maxMoves }

// reserveConsumer reserves the instance that consumes the embeddings, if encoders push them:
// it must be known before media are encoded. The pool's load balancing chooses it, with
// the same health checks as for other requests.
func (g *generation) reserveConsumer() (*engine.Reservation, *failure) {
	if g.h.consumers == nil {
		return nil, nil
	}
	a := g.decoding
	if g.prefills() {
		a = g.prefilling
		// The gate comes before the reservation of a prefill instance. Otherwise requests at the gate
		// would keep the instances from requests that have passed it.
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
