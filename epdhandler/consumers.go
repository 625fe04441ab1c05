package epdhandler

import (
	"cmp"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// Encoders with Mooncake push embeddings to the instance that consumes them, so that one
// must be known before anything is encoded. The pool's own load balancing chooses it, with
// the same health checks, limits and turns as for any call; its slot is held meanwhile.

// ranks are the control addresses of an instance, one for each data-parallel rank.
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

// consumer is the instance that a request's embeddings are pushed to.
type consumer struct {
	hold    *call // that has its slot until it is called
	address string
	rank    string // for X-data-parallel-rank; empty if there is only one
	control string // address
}

// consuming is the pool whose instances consume embeddings.
func (h *Handler) consuming() *pool {
	if h.prefill != nil {
		return h.prefill
	}
	return h.decode
}

// chooseConsumer decides which instance consumes the embeddings, if encoders must know.
func (x *exchange) chooseConsumer() *failure {
	if x.h.consumers == nil || x.encoded || len(x.media.Items()) == 0 {
		return nil
	}
	p, a := x.h.consuming(), x.decoding
	if p == x.h.prefill {
		a = x.prefilling
		// before there is a slot of prefill, or those at the gate would keep it from those who
		// have passed
		if f := x.passGate(); f != nil {
			return f
		}
	}
	c := &call{method: http.MethodPost, path: x.r.URL.Path, id: x.engineID, clock: new(stream.Silence), skip: a.skip, turn: a.turn}
	ctx := x.r.Context()
	u, err := x.choose(ctx, p, c)
	if u == nil || ctx.Err() != nil {
		freeSlot(c)
		f := judge(ctx, p.stage, c, new(stream.Answer), cmp.Or(err, errors.New("no upstreams available")))
		x.settle(a, f)
		return f
	}
	r := x.h.consumers[u.String()]
	rank := int(r.next.Add(1)-1) % len(r.addresses)
	x.consumer = &consumer{hold: c, address: u.String(), control: r.addresses[rank]}
	if len(r.addresses) > 1 {
		x.consumer.rank = strconv.Itoa(rank)
	}
	return nil
}

// dropConsumer lets go of the instance.
func (x *exchange) dropConsumer() {
	if x.consumer != nil {
		freeSlot(x.consumer.hold)
		x.consumer = nil
	}
}

// pin has a call go to the instance that the embeddings went to.
func (x *exchange) pin(c *call, p *pool) {
	if x.consumer == nil || p != x.h.consuming() {
		return
	}
	c.pinned = x.consumer.address
	c.slot, x.consumer.hold.slot = x.consumer.hold.slot, instance{}
	c.chosenAt = x.consumer.hold.chosenAt
	if x.embeddings.Handles != nil {
		c.rank = x.consumer.rank
	}
}
