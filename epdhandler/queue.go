package epdhandler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/trace"
)

// queue is where requests wait for an instance of a pool that has a free slot. They
// wait for the pool, not for one of its instances, and take turns: one with many media
// items gets one slot, then the next request does.
//
// Caddy's own limits let more in than they say, refuse at once, or hold up the health
// checks as well.
type queue struct {
	stage string
	limit int           // requests in flight at each instance; 0: no limit
	size  int           // requests that may wait
	wait  time.Duration // how long they may

	dynamic bool                                      // nobody knows the instances but a source
	seen    atomic.Pointer[reverseproxy.UpstreamPool] // what it has told last

	turns []*turn // of the requests that wait, the next one first
}

// turn is a request's place in a queue.
type turn struct {
	admitted bool // it had a slot already, and is not refused for a queue that is full
	waiting  []*waiter
}

// waiter is a call that wants an instance.
type waiter struct {
	call      *call
	upstreams reverseproxy.UpstreamPool
	choose    chooser

	chosen *reverseproxy.Upstream // nil: there is none that could be waited for
	done   chan struct{}          // closed when that is settled
}

// chooser asks the load balancing for an instance that is not full.
type chooser func(full func(*reverseproxy.Upstream) bool) *reverseproxy.Upstream

// instance is an engine in the role of a stage.
type instance struct{ stage, address string }

// slots knows the requests in flight at each instance. There is one for the process,
// because the requests of a configuration that has been replaced go on. Its lock is
// that of all queues.
var slots = struct {
	sync.Mutex
	taken  map[instance]int
	queues map[*queue]struct{} // in which somebody waits
}{taken: make(map[instance]int), queues: make(map[*queue]struct{})}

// takeSlot notes that a call is in flight at an instance. slots must be locked.
func (q *queue) takeSlot(c *call, u *reverseproxy.Upstream) {
	c.slot = instance{q.stage, u.String()}
	slots.taken[c.slot]++
}

// freeSlot notes that a call is not in flight any more, if it was.
func freeSlot(c *call) {
	if c.slot == (instance{}) {
		return
	}
	slots.Lock()
	defer slots.Unlock()
	if slots.taken[c.slot]--; slots.taken[c.slot] == 0 {
		delete(slots.taken, c.slot)
	}
	c.slot = instance{}
	for q := range slots.queues {
		q.serve()
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
	free := func(u *reverseproxy.Upstream) bool { return !q.isFull(u) }
	return len(known) > 0 && !slices.ContainsFunc(known, free)
}

// take waits for an instance and returns it, nil if there is none: because none is up,
// or because the queue is full or the wait too long, which makes the call crowded.
func (q *queue) take(ctx context.Context, c *call, upstreams reverseproxy.UpstreamPool, choose chooser) *reverseproxy.Upstream {
	c.crowded = nil
	if q.limit == 0 {
		u := choose(hasRoom)
		if u != nil {
			slots.Lock()
			q.takeSlot(c, u)
			slots.Unlock()
		}
		return u
	}

	w := &waiter{call: c, upstreams: upstreams, choose: choose, done: make(chan struct{})}
	slots.Lock()
	q.join(w)
	q.serve()
	if !w.settled() && !c.turn.admitted && len(q.turns) > q.size {
		q.leave(w)
		c.crowded = fmt.Errorf("the queue is full (queue_size %d)", q.size)
	}
	slots.Unlock()
	if c.crowded != nil {
		return nil
	}
	if w.settled() {
		return w.chosen
	}

	c.clock.stop()
	defer c.clock.start()
	start := time.Now()
	defer func() {
		stageWait.WithLabelValues(q.stage).Observe(time.Since(start).Seconds())
		trace.SpanFromContext(ctx).AddEvent("waited for an instance")
	}()
	patience := limit{"queue_timeout", q.wait}
	if c.patience > q.wait {
		patience = limit{"kv_lease", c.patience}
	}
	expired := time.NewTimer(patience.time)
	defer expired.Stop()
	select {
	case <-w.done:
	case <-expired.C:
	case <-ctx.Done():
	}
	slots.Lock()
	defer slots.Unlock()
	if !w.settled() {
		q.leave(w)
		if ctx.Err() == nil {
			c.crowded = fmt.Errorf("waited %s for an instance (%s)", patience.time, patience.option)
		}
	}
	return w.chosen
}

func hasRoom(*reverseproxy.Upstream) bool { return false }

func (w *waiter) settled() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// join puts a call at the end of its request's turn. slots must be locked, here and
// in what follows.
func (q *queue) join(w *waiter) {
	t := w.call.turn
	if len(t.waiting) == 0 {
		q.turns = append(q.turns, t)
	}
	t.waiting = append(t.waiting, w)
	if _, ok := slots.queues[q]; !ok {
		slots.queues[q] = struct{}{}
		time.AfterFunc(healthPeriod, q.look)
	}
}

// healthPeriod is how often those who wait look for instances that are up again, or
// whether all are down.
const healthPeriod = time.Second

func (q *queue) look() {
	slots.Lock()
	defer slots.Unlock()
	if q.serve(); len(q.turns) > 0 {
		time.AfterFunc(healthPeriod, q.look)
	} else {
		delete(slots.queues, q)
	}
}

// leave takes a call out of the queue.
func (q *queue) leave(w *waiter) {
	t := w.call.turn
	t.waiting = slices.DeleteFunc(t.waiting, func(o *waiter) bool { return o == w })
	if len(t.waiting) == 0 {
		q.turns = slices.DeleteFunc(q.turns, func(o *turn) bool { return o == t })
	}
}

// serve gives what is free to those who wait, one to each request in turn.
func (q *queue) serve() {
	for i := 0; i < len(q.turns); {
		t := q.turns[i]
		w, free := q.next(t)
		switch {
		case w != nil:
			q.leave(w)
			close(w.done)
			if len(t.waiting) > 0 { // it is another one's turn
				q.turns = append(slices.Delete(q.turns, i, i+1), t)
			}
		case free: // but not for this request, which has failed there
			i++
		default:
			return
		}
	}
}

// next settles the first call of a request for which there is an instance, or which
// has none to wait for. It returns nil if there is no such call, and whether anything
// is free for anybody.
func (q *queue) next(t *turn) (w *waiter, free bool) {
	for _, w := range t.waiting {
		up, mine := false, false
		for _, u := range w.upstreams {
			if !u.Available() {
				continue
			}
			skipped := slices.Contains(w.call.skip, u.String())
			up = up || !skipped
			if !q.isFull(u) {
				free = true
				mine = mine || !skipped
			}
		}
		if up && !mine {
			continue
		}
		if mine {
			w.chosen = w.choose(q.isFull)
		}
		if w.chosen != nil {
			q.takeSlot(w.call, w.chosen)
			t.admitted = true
		}
		return w, free
	}
	return nil, free
}

func (q *queue) isFull(u *reverseproxy.Upstream) bool {
	return slots.taken[instance{q.stage, u.String()}] >= q.limit
}
