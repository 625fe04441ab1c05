package epdhandler

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// queue decides which instances of a pool a call may go to, and when. A call gets its
// instance in three steps, because the load balancing policy is somebody else's code, which
// may panic or hang:
//
//  1. With the lock, find the candidates: the instances that the call may go to now.
//  2. Without it, on the call's own goroutine, have the policy choose one of them. The call
//     holds nothing yet, so a policy that does not return keeps nobody else waiting.
//  3. With the lock, take a slot of that instance if it is still a candidate. If not,
//     begin again.
//
// A call waits if all instances have as many requests as they may: for the pool, not for
// one of its instances. When one of them has a free slot, that is offered to the next call
// in turn, which goes through the same steps. It passes the offer on if the slot is still
// free then. Nobody else gets that slot meanwhile, unless it takes too long. Requests take
// turns: one with many media items gets one slot, then the next request does.
//
// Caddy's own limits let more in than they say, refuse at once, or hold up the health
// checks as well.
type queue struct {
	stage   string
	limit   int           // requests in flight at each instance; 0: no limit
	size    int           // requests that may wait
	wait    time.Duration // how long they may
	weights []int         // of the instances, by their place in the pool; nil: none

	seen       atomic.Pointer[reverseproxy.UpstreamPool] // what the source of a dynamic pool has told last, to anybody
	maxEjected int                                       // percent of the instances that are up

	retired bool // its configuration has been replaced

	turns  []*turn   // of the requests that wait, the next one first
	offers uint64    // made so far
	asking bool      // a call that waits asks a dynamic source which instances there are
	asked  time.Time // when one did
}

// instance is an engine in the role of a stage.
type instance struct{ stage, address string }

// slots knows the requests in flight at each instance. There is one for the process,
// because the requests of a configuration that has been replaced go on. Its lock is
// that of all queues. No code of others runs under it.
var slots = struct {
	sync.Mutex
	taken   map[instance]int
	offered map[instance]int    // free ones, to calls that have not decided yet
	queues  map[*queue]struct{} // in which somebody waits
	limits  map[instance]int    // of the configuration that is in force
}{taken: make(map[instance]int), offered: make(map[instance]int), queues: make(map[*queue]struct{})}

// freeSlot notes that a call is not in flight any more, if it was.
func freeSlot(c *call) {
	if c.slot == (instance{}) {
		return
	}
	slots.Lock()
	defer slots.Unlock()
	at := c.slot
	c.slot = instance{}
	if !c.chosenAt.IsZero() {
		historyOf(at).leave(c.chosenAt)
	}
	decrement(slots.taken, at)
	for q := range slots.queues {
		if q.stage == at.stage {
			q.newOffer(at.address)
		}
	}
}

func decrement(counts map[instance]int, at instance) {
	if counts[at]--; counts[at] == 0 {
		delete(counts, at)
	}
}

// busyInstances returns how many requests are in flight at each instance that has any.
func busyInstances() map[instance]int {
	slots.Lock()
	defer slots.Unlock()
	return maps.Clone(slots.taken)
}

// waitingByStage returns how many requests wait, those of replaced handlers too.
func waitingByStage() map[string]int {
	slots.Lock()
	defer slots.Unlock()
	waiting := make(map[string]int)
	for q := range slots.queues {
		waiting[q.stage] += len(q.turns)
	}
	waiting["decode"] += int(atGates.Load())
	return waiting
}

// waitingNow is how many requests wait.
func (q *queue) waitingNow() int {
	slots.Lock()
	defer slots.Unlock()
	return len(q.turns)
}

// full reports whether as many requests wait as may; if none may, whether all the
// instances that are known have enough to do.
func (q *queue) full(known reverseproxy.UpstreamPool) bool {
	if q.limit == 0 {
		return false
	}
	slots.Lock()
	defer slots.Unlock()
	if q.size > 0 {
		return len(q.turns) >= q.size
	}
	free := func(u *reverseproxy.Upstream) bool { return slots.taken[instance{q.stage, u.String()}] < q.limit }
	return len(known) > 0 && !slices.ContainsFunc(known, free)
}

// standing is what an instance is to a call.
type standing int

const (
	unfit     standing = iota // no use waiting for it
	busy                      // it has as many requests as it may
	candidate                 // the call may go to it
)

// standing decides whether a call may go to an instance, the i-th of those that it knows.
// Nothing else does. slots must be locked, here and in what follows.
func (q *queue) standing(c *call, i int) standing {
	u := c.upstreams[i]
	switch {
	case !u.Available(),
		slices.Contains(c.skip, u.String()),
		q.weights != nil && weight(q.weights, i) == 0:
		return unfit
	case c.turn != nil && q.limit > 0 && q.free(u.String(), c.offer) <= 0:
		return busy
	}
	return candidate
}

// free is how many slots of an instance somebody may take who was made this offer.
func (q *queue) free(address string, own *offer) int {
	at := instance{q.stage, address}
	n := q.limitOf(at) - slots.taken[at] - slots.offered[at]
	if own != nil && own.address == address {
		n++
	}
	return n
}

// limitOf is how many requests an instance may have. A reload may have changed that, and who
// waits since before would else come after all others.
func (q *queue) limitOf(at instance) int {
	limit, known := slots.limits[at]
	switch {
	case !q.retired || !known:
		return q.limit
	case limit == 0:
		return math.MaxInt
	}
	return limit
}

// candidates returns the instances that a call may go to, and whether others are busy. Those
// that are ejected are among them only if there are no others.
func (q *queue) candidates(c *call) (fit reverseproxy.UpstreamPool, others bool) {
	out := q.out(c.upstreams)
	if fit, others = q.candidatesBut(c, out); len(fit) == 0 && !others && len(out) > 0 {
		return q.candidatesBut(c, nil)
	}
	return fit, others
}

func (q *queue) candidatesBut(c *call, out []*reverseproxy.Upstream) (fit reverseproxy.UpstreamPool, others bool) {
	fit = make(reverseproxy.UpstreamPool, 0, len(c.upstreams))
	for i, u := range c.upstreams {
		if len(out) > 0 && slices.Contains(out, u) {
			continue
		}
		switch q.standing(c, i) {
		case candidate:
			fit = append(fit, u)
		case busy:
			others = true
		}
	}
	return fit, others
}

// isCandidate reports whether the i-th instance is a candidate.
func (q *queue) isCandidate(c *call, i int) bool {
	if q.standing(c, i) != candidate {
		return false
	}
	if ejectedNow.Load() == 0 {
		return true
	}
	fit, _ := q.candidates(c)
	return slices.Contains(fit, c.upstreams[i])
}

// chooser is the load balancing of a call.
type chooser struct {
	choose func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream
	lookUp func() // asks a dynamic source which instances there are; nil: they do not change
}

// take chooses an instance for a call, with a slot if it is one that counts. It returns nil
// if there is none: because none is up, or the policy wants none, or because the queue is
// full or the wait too long, which makes the call crowded.
func (q *queue) take(ctx context.Context, c *call, lb chooser) *reverseproxy.Upstream {
	w := &waiter{call: c}
	defer q.end(ctx, w)
	var declined reverseproxy.UpstreamPool
	for {
		fit, wait := q.begin(w, declined)
		if wait && q.await(ctx, w, lb.lookUp) {
			continue
		}
		if fit == nil {
			return nil
		}
		u := lb.choose(fit)
		switch {
		case c.fault != nil:
			return nil
		case u == nil:
			declined = fit
		case q.commit(w, u):
			return u
		}
	}
}

// begin returns the candidates, unless the policy has declined the same ones. Without any,
// the call is to wait, if there is something to wait for and room in the queue.
func (q *queue) begin(w *waiter, declined reverseproxy.UpstreamPool) (fit reverseproxy.UpstreamPool, wait bool) {
	slots.Lock()
	defer slots.Unlock()
	q.collect(w)
	fit, others := q.candidates(w.call)
	if len(fit) == 0 || slices.Equal(fit, declined) {
		fit = nil
	}
	switch {
	case fit == nil && !others:
		return nil, false
	case fit != nil && (w.call.offer != nil || len(q.turns) == 0):
		return fit, false
	}
	t := w.call.turn
	mayWait := w.joined || t.admitted || len(t.waiting) > 0 || len(q.turns) < q.size
	q.passOn(w.call)
	q.join(w)
	if fit != nil { // those who came before do not want it, or are about to take it
		q.newOffer(fit[0].String())
	}
	if !mayWait && w.call.offer == nil {
		w.call.crowded = fmt.Errorf("the queue is full (queue_size %d)", q.size)
		return nil, false
	}
	return nil, true
}

// commit takes a slot of the instance that was chosen, if it is still a candidate.
func (q *queue) commit(w *waiter, u *reverseproxy.Upstream) bool {
	slots.Lock()
	defer slots.Unlock()
	c := w.call
	if !q.isCandidate(c, slices.Index(c.upstreams, u)) {
		return false
	}
	c.chosenAt = time.Time{}
	if c.turn != nil {
		c.turn.admitted, c.turn.served = true, time.Now()
		c.slot = instance{q.stage, u.String()}
		slots.taken[c.slot]++
		if ejectedNow.Load() > 0 {
			c.chosenAt = time.Now()
			historyOf(c.slot).try(c.chosenAt)
		}
	}
	return true
}
