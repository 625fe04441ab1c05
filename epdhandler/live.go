package epdhandler

import (
	"slices"
	"sync"
)

// live are the handlers that are provisioned, the newest one last. One that a reload has
// replaced is none of them, though its last requests may go on.
var live struct {
	sync.Mutex
	handlers []*Handler
}

func (h *Handler) enlist() {
	live.Lock()
	live.handlers = append(live.handlers, h)
	live.Unlock()
	h.renewLimits(false)
}

func (h *Handler) delist() {
	live.Lock()
	live.handlers = slices.DeleteFunc(live.handlers, func(other *Handler) bool { return other == h })
	live.Unlock()
	h.renewLimits(true)
}

// renewLimits notes which limits are in force, for those who wait in queues of a handler that
// is retired.
func (h *Handler) renewLimits(retired bool) {
	limits := make(map[instance]int)
	for _, other := range liveHandlers() { // what a newer one says counts
		for _, p := range other.pools() {
			for _, u := range p.handler.Upstreams {
				limits[instance{p.stage, u.String()}] = p.queue.limit
			}
		}
	}
	slots.Lock()
	defer slots.Unlock()
	slots.limits = limits
	for _, p := range h.pools() {
		p.queue.retired = retired
	}
}

// liveHandlers returns the handlers that are provisioned.
func liveHandlers() []*Handler {
	live.Lock()
	defer live.Unlock()
	return slices.Clone(live.handlers)
}

// pools returns the handler's pools, in the order in which a request meets them.
func (h *Handler) pools() []*pool {
	return slices.DeleteFunc([]*pool{h.encode, h.prefill, h.decode}, func(p *pool) bool { return p == nil })
}
