package epdhandler

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// turn is a request's place in a queue.
type turn struct {
	admitted bool // it had a slot already, and is not refused for a queue that is full
	waiting  []*waiter
	served   time.Time // when it had its last slot
}

// waiter is a call that wants an instance.
type waiter struct {
	call   *call
	wake   chan struct{} // has room for one: that the call was made an offer, and is in the queue no more
	last   uint64        // the number of the last one
	joined bool          // it has been in the queue
	away   bool          // it asks a dynamic source, and takes no offers

	since   time.Time // when it began to wait; zero: it has not
	tick    *time.Ticker
	expired *time.Timer
}

// offer is a slot that has become free, and is kept for a call.
type offer struct {
	number  uint64 // of all offers of the queue
	address string
	slow    *time.Timer // until it is not kept any more
}

// slowPolicy is how long a slot is kept for a call that has been offered it: a policy that
// hangs must not hold up others.
const slowPolicy = 50 * time.Millisecond

const (
	// lookPeriod is how often a call that waits looks for instances that are new or up
	// again, or whether all are down.
	lookPeriod = time.Second

	// lookGap is the least time between two questions to a dynamic source for that.
	lookGap = 20 * time.Millisecond
)

// await waits for an offer. It reports false if the call is not to go on.
func (q *queue) await(ctx context.Context, w *waiter, lookUp func()) bool {
	patience := stream.Limit{Option: "queue_timeout", Time: q.wait}
	if w.call.patience > q.wait {
		patience = stream.Limit{Option: "kv_lease", Time: w.call.patience}
	}
	if w.since.IsZero() {
		w.since = time.Now()
		w.tick = time.NewTicker(lookPeriod)
		w.expired = time.NewTimer(patience.Time)
		w.call.clock.Pause()
	}
	for {
		select {
		case <-w.wake:
			return true
		case <-w.tick.C:
			if q.look(w, lookUp) {
				return true // to be told so
			}
		case <-w.expired.C:
			if left := patience.Time - q.sinceServed(w.call.turn); left > 0 {
				w.expired.Reset(left)
				continue
			}
			w.call.crowded = fmt.Errorf("waited %s for an instance (%s)", patience.Time, patience.Option)
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// sinceServed is how long ago a request had a slot. The items of an album begin to wait at
// the same time; while they get slots one after the other, none has waited for too long.
func (q *queue) sinceServed(t *turn) time.Duration {
	slots.Lock()
	defer slots.Unlock()
	return time.Since(t.served)
}

// look offers what is free but nobody was told of, such as an instance that is up again. It
// reports whether there is nothing to wait for any more.
func (q *queue) look(w *waiter, lookUp func()) (over bool) {
	if lookUp != nil && q.goAway(w) {
		lookUp()
		q.comeBack(w)
	}
	slots.Lock()
	defer slots.Unlock()
	fit, others := q.candidates(w.call)
	if len(fit) > 0 {
		q.newOffer(fit[0].String())
	}
	return len(fit) == 0 && !others
}

// goAway notes that a call asks a dynamic source, unless another one does, or just did.
func (q *queue) goAway(w *waiter) bool {
	slots.Lock()
	defer slots.Unlock()
	if q.asking || time.Since(q.asked) < lookGap || len(w.wake) > 0 {
		return false
	}
	q.asking, q.asked, w.away = true, time.Now(), true
	return true
}

func (q *queue) comeBack(w *waiter) {
	slots.Lock()
	defer slots.Unlock()
	q.asking, w.away = false, false
}

// end leaves nothing of a call behind in the queue, however it ended.
func (q *queue) end(ctx context.Context, w *waiter) {
	if !w.joined {
		return
	}
	slots.Lock()
	defer slots.Unlock()
	q.collect(w)
	q.passOn(w.call)
	if w.away {
		q.asking = false
	}
	if w.since.IsZero() {
		return
	}
	w.tick.Stop()
	w.expired.Stop()
	w.call.clock.Resume()
	waited := time.Since(w.since)
	w.call.waited += waited
	stageWait.WithLabelValues(q.stage).Observe(waited.Seconds())
	trace.SpanFromContext(ctx).AddEvent("waited for an instance")
}

// collect takes a call out of the queue, with the offer that it may have got.
func (q *queue) collect(w *waiter) {
	q.leave(w)
	select {
	case <-w.wake:
	default:
	}
}

// join puts a call at the end of its request's turn, and one that was in the queue before
// where it was: at the front. slots must be locked, here and in what follows.
func (q *queue) join(w *waiter) {
	slots.queues[q] = struct{}{}
	t := w.call.turn
	if !w.joined {
		w.joined, w.wake = true, make(chan struct{}, 1)
		if t.waiting = append(t.waiting, w); len(t.waiting) == 1 {
			q.turns = append(q.turns, t)
		}
		return
	}
	t.waiting = slices.Insert(t.waiting, 0, w)
	q.turns = slices.Insert(slices.DeleteFunc(q.turns, func(o *turn) bool { return o == t }), 0, t)
}

// leave takes a call out of the queue, if it is in it.
func (q *queue) leave(w *waiter) {
	t := w.call.turn
	if t == nil || !slices.Contains(t.waiting, w) {
		return
	}
	t.waiting = slices.DeleteFunc(t.waiting, func(o *waiter) bool { return o == w })
	if len(t.waiting) == 0 {
		q.turns = slices.DeleteFunc(q.turns, func(o *turn) bool { return o == t })
	}
	if len(q.turns) == 0 {
		delete(slots.queues, q)
	}
}

// newOffer offers a free slot of an instance to the first call in turn that may take it.
func (q *queue) newOffer(address string) {
	q.offers++
	q.makeOffer(q.offers, address)
}

// makeOffer makes an offer to those who have not had it.
func (q *queue) makeOffer(number uint64, address string) {
	if q.free(address, nil) <= 0 {
		return
	}
	var (
		known reverseproxy.UpstreamPool // by the last call; most know the same
		at    = -1
	)
	for i, t := range q.turns {
		for _, w := range t.waiting {
			if w.away || w.last >= number {
				continue
			}
			if all := w.call.upstreams; !same(known, all) {
				known, at = all, slices.IndexFunc(all, func(u *reverseproxy.Upstream) bool { return u.String() == address })
			}
			if at < 0 || !q.isCandidate(w.call, at) {
				continue
			}
			q.leave(w)
			if len(t.waiting) > 0 { // it is another one's turn
				q.turns = append(slices.Delete(q.turns, i, i+1), t)
			}
			q.keepFor(w, number, address)
			w.wake <- struct{}{}
			return
		}
	}
}

// keepFor keeps a slot for a call for a while.
func (q *queue) keepFor(w *waiter, number uint64, address string) {
	o := &offer{number: number, address: address}
	o.slow = time.AfterFunc(slowPolicy, func() {
		slots.Lock()
		defer slots.Unlock()
		if w.call.offer == o {
			q.passOn(w.call)
		}
	})
	w.call.offer, w.last = o, number
	slots.offered[instance{q.stage, address}]++
}

// passOn makes the offer of a call to the next one, if the slot is still free.
func (q *queue) passOn(c *call) {
	o := c.offer
	if o == nil {
		return
	}
	o.slow.Stop()
	c.offer = nil
	decrement(slots.offered, instance{q.stage, o.address})
	q.makeOffer(o.number, o.address)
}

// same reports whether two lists are one.
func same(a, b reverseproxy.UpstreamPool) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}
