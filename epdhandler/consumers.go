package epdhandler

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync/atomic"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
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
	if x.h.consumers == nil || x.encoded || len(x.body.Items) == 0 {
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
	c := &call{method: http.MethodPost, path: x.r.URL.Path, id: x.engineID, clock: new(silence), skip: a.skip, turn: a.turn}
	ctx := x.r.Context()
	u, err := x.choose(ctx, p, c)
	if u == nil || ctx.Err() != nil {
		freeSlot(c)
		f := judge(ctx, p.stage, c, new(answer), cmp.Or(err, errors.New("no upstreams available")))
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
	if x.handles != nil {
		c.rank = x.consumer.rank
	}
}

// transfers returns what an encoder needs to push the embeddings of a batch: an id for
// each, never used before.
func (x *exchange) transfers(b batch) (ids []string, params []byte) {
	type transfer struct {
		ID string `json:"transfer_id"`
	}
	var items []transfer
	add := func() {
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails
		ids = append(ids, hex.EncodeToString(id[:]))
		items = append(items, transfer{ids[len(ids)-1]})
	}
	for _, i := range b {
		if add(); x.withSound(x.body.Items[i]) {
			add()
		}
	}
	params, _ = json.Marshal(map[string]any{"consumer_zmq": x.consumer.control, "ec_items": items}) // strings
	return ids, params
}

// ecItems tells the consumer which transfers are for it, in the order of the media items.
func ecItems(items []encoded) []body.Entry {
	var list []transfer
	for _, item := range items {
		list = append(list, item.transfers...)
	}
	if list == nil {
		return nil
	}
	value, _ := json.Marshal(list) // strings
	return []body.Entry{{Name: []byte(`"ec_items"`), Value: value}}
}
