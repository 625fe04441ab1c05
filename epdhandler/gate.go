package epdhandler

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// gate is where requests wait for decode before their prefill, if there is a pool for it and
// a decode_limit. What prefill makes lasts only as long as its lease, and takes memory there:
// it should be made when decode has room soon, and not at all for a request that is refused.
// A decode slot, on the other hand, is not held while prefill works, which can take minutes.
//
// So the gate counts those who have passed it, until they are over, and lets in as many as
// decode has slots, and some ahead of these, whose blocks are ready when a slot becomes
// free. It asks nobody while it holds its lock.
type gate struct {
	pool   *pool         // decode
	before time.Duration // how long blocks may wait for a slot

	mu      sync.Mutex
	inside  int
	waiting []chan struct{} // closed when let in, the next one first
	pace    time.Duration   // between two slots that become free, on average; 0: not known yet
	freed   time.Time       // when the last one did; zero: nobody waited for it
}

// atGates is how many requests wait at all gates of the process.
var atGates atomic.Int64

// newGate returns the gate in front of the stages before decode, nil if there need be none.
func (h *Handler) newGate() *gate {
	if h.prefill == nil || h.decode.queue.limit == 0 {
		return nil
	}
	return &gate{pool: h.decode, before: time.Duration(h.KVLease) / 3}
}

// slots is how many requests the instances of decode that are up can have. One is always
// counted: whether there is any shows at decode.
func (g *gate) slots() int {
	up := 0
	for _, u := range g.pool.known() {
		if u.Available() {
			up++
		}
	}
	return max(1, up) * g.pool.queue.limit
}

// room is how many may be inside. Who is inside and has no slot waits for one, and so is
// one of the queue_size that may wait.
func (g *gate) room(slots int) int { return slots + min(g.ahead(slots), g.pool.queue.size) }

// ahead is how many may be inside besides those that have a slot: as many as get one before
// their blocks are old, but one, and not more than there are slots. Short streams need more
// to keep the slots in use while prefill works, long ones would let blocks get too old.
func (g *gate) ahead(slots int) int {
	if g.pace == 0 {
		return max(1, slots/4)
	}
	return max(1, min(int(g.before/g.pace), slots))
}

// measure notes that a slot becomes free. That says something only if somebody waits for it.
func (g *gate) measure(now time.Time, slots int) {
	const smooth = 8
	switch {
	case g.inside <= slots:
		now = time.Time{}
	case g.freed.IsZero():
	case g.pace == 0:
		g.pace = max(1, now.Sub(g.freed))
	default:
		g.pace = max(1, g.pace+(now.Sub(g.freed)-g.pace)/smooth)
	}
	g.freed = now
}

// full reports whether a request would be refused now.
func (g *gate) full() bool {
	slots := g.slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refuses(slots)
}

// refuses reports whether as many wait as may. The gate must be locked, here and in serve.
func (g *gate) refuses(slots int) bool {
	return g.inside+len(g.waiting) >= slots+g.pool.queue.size
}

// join takes a place in the queue. It says why there is none. Who is let in must leave.
func (g *gate) join() (turn chan struct{}, err error) {
	slots := g.slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serve(slots)
	if g.refuses(slots) {
		return nil, fmt.Errorf("the queue is full (queue_size %d)", g.pool.queue.size)
	}
	turn = make(chan struct{})
	g.waiting = append(g.waiting, turn)
	g.serve(slots)
	return turn, nil
}

// wait waits to be let in, at most for queue_timeout, and says why that did not happen.
func (g *gate) wait(ctx context.Context, turn chan struct{}) error {
	atGates.Add(1)
	defer atGates.Add(-1)
	start := time.Now()
	defer func() { stageWait.WithLabelValues(g.pool.stage).Observe(time.Since(start).Seconds()) }()
	timeout := time.NewTimer(g.pool.queue.wait)
	defer timeout.Stop()
	again := time.NewTicker(lookPeriod)
	defer again.Stop()
	for over := false; !over; {
		select {
		case <-turn:
			return nil
		case <-again.C: // there may be more instances
			g.look()
		case <-ctx.Done():
			over = true
		case <-timeout.C:
			over = true
		}
	}
	if g.giveUp(turn) {
		return fmt.Errorf("waited %s for an instance (queue_timeout)", g.pool.queue.wait)
	}
	return nil
}

// look lets in those for whom there is room now.
func (g *gate) look() {
	slots := g.slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serve(slots)
}

// passGate waits at the gate, if there is one. Having passed it, the request is not refused
// for a queue that is full.
func (x *exchange) passGate() (f *failure) {
	g := x.h.gate
	if g == nil || x.inside {
		return nil
	}
	turn, err := g.join()
	select {
	case <-turn:
	default: // it waits, or is refused
		ctx, leave := x.enter(&x.report.decode, x.decoding)
		defer func() { leave(f) }()
		if err == nil {
			err = g.wait(ctx, turn)
		}
	}
	if err != nil {
		c := &call{crowded: err}
		f = judge(x.r.Context(), g.pool.stage, c, new(stream.Answer), err)
		x.settle(x.decoding, f)
		return f
	}
	x.inside, x.decoding.turn.admitted = true, true
	return nil
}

// leaveGate lets the next request pass.
func (x *exchange) leaveGate() {
	if x.inside {
		x.inside = false
		x.h.gate.leave()
	}
}

// giveUp takes a request out of the queue, and reports whether it was still there.
func (g *gate) giveUp(turn chan struct{}) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.waiting, turn)
	if i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	}
	return i >= 0
}

// leave gives the place to the next one.
func (g *gate) leave() {
	slots := g.slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.measure(time.Now(), slots)
	g.inside--
	g.serve(slots)
}

// serve lets in as many of those who wait as there is room for.
func (g *gate) serve(slots int) {
	for len(g.waiting) > 0 && g.inside < g.room(slots) {
		close(g.waiting[0])
		g.waiting = slices.Delete(g.waiting, 0, 1)
		g.inside++
	}
}

// waitingNow is how many requests wait.
func (g *gate) waitingNow() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.waiting)
}
