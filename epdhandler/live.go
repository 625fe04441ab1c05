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
	defer live.Unlock()
	live.handlers = append(live.handlers, h)
}

func (h *Handler) delist() {
	live.Lock()
	defer live.Unlock()
	live.handlers = slices.DeleteFunc(live.handlers, func(other *Handler) bool { return other == h })
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
