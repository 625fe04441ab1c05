package dispatch

import (
	"container/list"
	"context"
	"fmt"
	"sync"
	"time"
)

// Gate is where requests wait for decode before their prefill, if there is a pool for it and
// a decode_limit. What prefill makes lasts only as long as its lease, and takes memory there:
// it should be made when decode has a free slot soon, and not at all for a request that is
// refused. But a decode slot is not held while prefill works, which can take minutes.
//
// So the gate counts those who have passed it, until they are over, and lets in as many as decode
// has slots, and some ahead, whose blocks are ready when a slot becomes free.
type Gate struct {
	decode *Dispatcher
	before time.Duration // how long blocks may wait for a slot

	mu      sync.Mutex
	inside  int
	waiting list.List     // of *Place, the next one first
	pace    time.Duration // between two slots that become free, on average; 0: not known yet
	freed   time.Time     // when the last one did; zero: nobody waited for it
}

// Place is a place in the queue of a gate.
type Place struct {
	in chan struct{} // closed when the request may pass
	at *list.Element // nil: it does not wait any more
}

// Passes reports whether the request may pass.
func (p *Place) Passes() bool {
	select {
	case <-p.in:
		return true
	default:
		return false
	}
}

// NewGate returns the gate in front of decode, where blocks may wait so long for a slot. It is nil
// if decode has no limit.
func NewGate(decode *Dispatcher, before time.Duration) *Gate {
	if decode.Limit == 0 {
		return nil
	}
	return &Gate{decode: decode, before: before}
}

// room is how many may be inside. Those without a slot count as waiting, for queue_size.
func (g *Gate) room(slots int) int { return slots + min(g.ahead(slots), g.decode.QueueSize) }

// ahead is how many may be inside besides those that have a slot: as many as get one before their
// blocks are old, and not more than there are slots. Short streams need more, to keep the slots in
// use while prefill works.
func (g *Gate) ahead(slots int) int {
	if g.pace == 0 {
		return max(1, slots/4)
	}
	return max(1, min(int(g.before/g.pace), slots))
}

// measure notes that a slot becomes free. That says something only if somebody waits for it.
func (g *Gate) measure(now time.Time, slots int) {
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

// Full reports whether a request would be refused now.
func (g *Gate) Full() bool {
	if g == nil {
		return false
	}
	slots := g.decode.Slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refuses(slots)
}

// refuses reports whether as many wait as may. The gate must be locked, here and in serve.
func (g *Gate) refuses(slots int) bool {
	return g.inside+g.waiting.Len() >= slots+g.decode.QueueSize
}

// Join takes a place in the queue of the gate. When the request may pass, now or later, it must
// [Gate.Leave]. The error is a [BusyError].
func (g *Gate) Join() (*Place, error) {
	slots := g.decode.Slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serve(slots)
	if g.refuses(slots) {
		return nil, g.decode.fullError()
	}
	p := &Place{in: make(chan struct{})}
	p.at = g.waiting.PushBack(p)
	g.serve(slots)
	return p, nil
}

// Wait waits to be let in, at most for queue_timeout. The error is a [BusyError].
func (g *Gate) Wait(ctx context.Context, p *Place) error {
	shared := g.decode.shared
	shared.atGates.Add(1)
	defer shared.atGates.Add(-1)
	defer shared.observeWait(g.decode.Stage, time.Now())
	ctx, cancel := context.WithTimeout(ctx, g.decode.QueueTime)
	defer cancel()
	again := time.Tick(lookPeriod)
	for ctx.Err() == nil {
		select {
		case <-p.in:
			return nil
		case <-again: // there may be more instances
			g.look()
		case <-ctx.Done():
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if p.at == nil { // it has just been let in
		return nil
	}
	g.waiting.Remove(p.at)
	return BusyError{fmt.Sprintf("waited %s for an instance (queue_timeout)", g.decode.QueueTime)}
}

// look lets in those for whom there is room now.
func (g *Gate) look() {
	slots := g.decode.Slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.serve(slots)
}

// Leave gives the place inside to the next request.
func (g *Gate) Leave() {
	slots := g.decode.Slots()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.measure(time.Now(), slots)
	g.inside--
	g.serve(slots)
}

// serve lets in as many of those who wait as there is room for.
func (g *Gate) serve(slots int) {
	for g.waiting.Len() > 0 && g.inside < g.room(slots) {
		p := g.waiting.Remove(g.waiting.Front()).(*Place)
		p.at = nil
		close(p.in)
		g.inside++
	}
}

// Waiting is how many requests wait.
func (g *Gate) Waiting() int {
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.waiting.Len()
}
