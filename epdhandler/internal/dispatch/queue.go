package dispatch

import (
	"container/list"
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// queue is where calls wait for a slot. Requests take turns: one with many media items gets one
// slot, then the next request does.
//
// A slot that becomes free is offered to the first call in turn, which wakes, and chooses for
// itself, as every call does. It passes the offer on to the next one if it does not take that
// slot. Nobody else gets the slot meanwhile, unless the call takes too long.
//
// Whatever happens under the lock takes the same time however many instances there are and
// however many calls wait.
type queue struct {
	turns   *list.List   // of *Turn, the next one first
	waiting atomic.Int32 // requests in it
	offers  uint64       // made so far
	asking  bool         // a call asks a dynamic source which instances there are
	asked   time.Time    // when one did
}

// Turn is the place of a request in a queue. It is for one queue. The zero value is one that does
// not wait.
type Turn struct {
	Admitted bool // it had a slot already, and is not refused for a queue that is full

	place    *list.Element // in the queue; nil: it is not in it
	waiters  list.List     // of *waiter, the next one first
	deciding int           // waiters that have an offer
	served   time.Time     // when it had its last slot
}

// waiter is a call that wants a slot.
type waiter struct {
	ask    *Ask
	joined bool          // it is, or was, in the queue
	place  *list.Element // in its turn; nil: it is not in the queue
	wake   chan struct{} // has room for one: there is an offer
	offer  *offer
	last   uint64 // the number of the last offer that it had
	away   bool   // it asks a dynamic source, and takes no offers

	since   time.Time // when it began to wait; zero: it did not
	tick    *time.Ticker
	expired *time.Timer
}

// offer is a free slot that is kept for a call.
type offer struct {
	number uint64 // of all offers of the queue
	at     *Instance
	slow   *time.Timer // until it is not kept any more
}

const (
	// slowPolicy is how long a slot is kept for a call that has been offered it: a policy that
	// hangs must not hold up others.
	slowPolicy = 50 * time.Millisecond

	// lookPeriod is how often a call that waits looks for instances that are new or up again,
	// or whether all are down.
	lookPeriod = time.Second

	// lookGap is the least time between two questions to a dynamic source for that.
	lookGap = 20 * time.Millisecond
)

// Full reports whether as many requests wait as may; if none may, whether no instance that is
// known has a free slot.
func (d *Dispatcher) Full() bool {
	if d.Limit == noLimit {
		return false
	}
	if d.QueueSize > 0 {
		return d.Waiting() >= d.QueueSize
	}
	v := d.view()
	for _, at := range v.instances {
		if d.free(at) > 0 {
			return false
		}
	}
	return len(v.instances) > 0
}

func (d *Dispatcher) fullError() error {
	return BusyError{fmt.Sprintf("the queue is full (queue_size %d)", d.QueueSize)}
}

// Waiting is how many requests wait.
func (d *Dispatcher) Waiting() int { return int(d.queue.waiting.Load()) }

// Waiting returns how many requests wait for each stage, those of replaced configurations too.
func (s *Instances) Waiting() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := make(map[string]int)
	for d := range s.waiting {
		waiting[d.Stage] += d.Waiting()
	}
	waiting[telemetry.Decode] += int(s.atGates.Load())
	return waiting
}

// mayChoose reports whether it is the call's turn.
func (d *Dispatcher) mayChoose(w *waiter) bool {
	return w.ask.Turn == nil || w.ask.early || w.ask.offered != nil || d.Waiting() == 0
}

// wait waits for an offer, or for something else to have changed.
func (d *Dispatcher) wait(ctx context.Context, w *waiter, declined reverseproxy.UpstreamPool) error {
	if err := d.join(w); err != nil {
		return err
	}
	// what became free before it was in the queue has been offered to nobody
	if fit, _ := d.candidates(w.ask); len(fit) > 0 && !sameInstances(fit, declined) {
		d.offer(w.ask.view.of(fit[0]))
	}
	patience, option := d.QueueTime, "queue_timeout"
	if w.ask.Patience > patience {
		patience, option = w.ask.Patience, "kv_lease"
	}
	w.begin(patience)
	for {
		select {
		case <-w.wake:
			d.collect(w)
			return nil
		case <-w.tick.C:
			if over := d.look(w); over {
				return nil // the next look at the candidates shows it
			}
		case <-w.expired.C:
			if left := patience - d.sinceServed(w.ask.Turn); left > 0 {
				w.expired.Reset(left)
				continue
			}
			return BusyError{fmt.Sprintf("waited %s for an instance (%s)", patience, option)}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// begin starts the clocks of a call that begins to wait.
func (w *waiter) begin(patience time.Duration) {
	if !w.since.IsZero() {
		return
	}
	w.since = time.Now()
	w.tick = time.NewTicker(lookPeriod)
	w.expired = time.NewTimer(patience)
	if w.ask.Clock != nil {
		w.ask.Clock.Pause()
	}
}

// sinceServed is how long ago a request had a slot. The items of an album begin to wait at
// the same time; while they get slots one after the other, none has waited for too long.
func (d *Dispatcher) sinceServed(t *Turn) time.Duration {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	return time.Since(t.served)
}

// look offers what is free although nobody was told, such as an instance that is up again. It
// reports whether there is nothing to wait for any more.
func (d *Dispatcher) look(w *waiter) (over bool) {
	if w.ask.LookUp != nil && d.goAway(w) {
		w.ask.LookUp()
		d.comeBack(w)
	}
	fit, busy := d.candidates(w.ask)
	if len(fit) > 0 {
		d.offer(w.ask.view.of(fit[0]))
	}
	return len(fit) == 0 && !busy
}

// goAway notes that a call asks a dynamic source, unless another one does, or just did.
func (d *Dispatcher) goAway(w *waiter) bool {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	q := &d.queue
	if q.asking || time.Since(q.asked) < lookGap || w.offer != nil {
		return false
	}
	q.asking, q.asked, w.away = true, time.Now(), true
	return true
}

func (d *Dispatcher) comeBack(w *waiter) {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	d.queue.asking, w.away = false, false
}

// finish leaves nothing of a call behind in the queue, however it ended.
func (d *Dispatcher) finish(ctx context.Context, w *waiter) {
	if !w.joined {
		return
	}
	d.shared.mu.Lock()
	if w.away { // the source panicked
		d.queue.asking, w.away = false, false
	}
	d.leave(w)
	d.shared.mu.Unlock()
	if w.since.IsZero() {
		return
	}
	w.tick.Stop()
	w.expired.Stop()
	if w.ask.Clock != nil {
		w.ask.Clock.Resume()
	}
	waited := time.Since(w.since)
	w.ask.Waited += waited
	d.shared.metrics.StageWait.WithLabelValues(d.Stage).Observe(waited.Seconds())
	trace.SpanFromContext(ctx).AddEvent("waited for an instance")
}

// join puts a call at the end of its request's turn, and a new turn at the end of the queue. A call
// that is in the queue stays where it is, and passes on the offer that it did not use.
func (d *Dispatcher) join(w *waiter) error {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	if w.joined {
		w.ask.offered = nil
		d.pass(w)
		return nil
	}
	t := w.ask.Turn
	if !t.Admitted && t.place == nil && d.Waiting() >= d.QueueSize {
		return d.fullError()
	}
	if t.place == nil {
		t.place = d.queue.turns.PushBack(t)
		d.shared.waiting[d] = struct{}{}
		d.queue.waiting.Add(1)
	}
	w.joined, w.wake = true, make(chan struct{}, 1)
	w.place = t.waiters.PushBack(w)
	d.shared.waiters.Add(1)
	return nil
}

// leave takes a call out of the queue. The lock must be held, here and in what follows.
func (d *Dispatcher) leave(w *waiter) {
	if w.place == nil {
		return
	}
	d.pass(w)
	t := w.ask.Turn
	t.waiters.Remove(w.place)
	w.place = nil
	d.shared.waiters.Add(-1)
	if t.waiters.Len() > 0 {
		return
	}
	d.queue.turns.Remove(t.place)
	t.place = nil
	if d.queue.waiting.Add(-1) == 0 {
		delete(d.shared.waiting, d)
	}
}

// takeLimited takes a slot of an instance for a call, if there still is one. The next slot is
// then for the next request.
func (d *Dispatcher) takeLimited(w *waiter, at *Instance) bool {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	own := w.offer != nil && w.offer.at == at
	if d.free(at) <= 0 && !own {
		w.ask.offered = nil // it may have come too late
		return false
	}
	at.taken.Add(1)
	if own {
		d.keepNot(w)
	}
	t := w.ask.Turn
	t.Admitted, t.served = true, time.Now()
	d.leave(w)
	if t.place != nil {
		d.queue.turns.MoveToBack(t.place)
	}
	if d.queue.waiting.Load() > 0 {
		d.offerLocked(at) // there may be more than one
	}
	return true
}

// offer offers a free slot of an instance to the first call in turn.
func (d *Dispatcher) offer(at *Instance) {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	d.offerLocked(at)
}

func (d *Dispatcher) offerLocked(at *Instance) {
	if d.free(at) > 0 {
		d.queue.offers++
		d.give(&offer{number: d.queue.offers, at: at}, d.first())
	}
}

// first returns the first call in turn that has no offer: of a request that has none, if possible.
// It steps over those only that decide at this moment.
func (d *Dispatcher) first() *waiter {
	var second *waiter // of a request that has an offer
	for e := d.queue.turns.Front(); e != nil; e = e.Next() {
		t := e.Value.(*Turn)
		if t.deciding == 0 {
			return t.waiters.Front().Value.(*waiter)
		}
		for p := t.waiters.Front(); p != nil && second == nil; p = p.Next() {
			if w := p.Value.(*waiter); w.offer == nil {
				second = w
			}
		}
	}
	return second
}

// next returns who comes after a call in the queue, nil if nobody does.
func (w *waiter) next() *waiter {
	if p := w.place.Next(); p != nil {
		return p.Value.(*waiter)
	}
	if t := w.ask.Turn.place.Next(); t != nil {
		return t.Value.(*Turn).waiters.Front().Value.(*waiter)
	}
	return nil
}

// give makes an offer to a call, or to the next one that can take offers and has not had it.
func (d *Dispatcher) give(o *offer, w *waiter) {
	for ; w != nil; w = w.next() {
		if w.offer == nil && !w.away && w.last < o.number {
			break
		}
	}
	if w == nil {
		return
	}
	w.offer, w.last = o, o.number
	w.ask.Turn.deciding++
	o.at.offered.Add(1)
	o.slow = time.AfterFunc(slowPolicy, func() {
		d.shared.mu.Lock()
		defer d.shared.mu.Unlock()
		if w.offer == o {
			d.pass(w)
		}
	})
	w.wake <- struct{}{}
}

// pass makes the offer of a call to the next one, if the slot is still free.
func (d *Dispatcher) pass(w *waiter) {
	o := w.offer
	if o == nil {
		return
	}
	d.keepNot(w)
	if d.free(o.at) > 0 {
		d.give(&offer{number: o.number, at: o.at}, w.next())
	}
}

// keepNot takes an offer back.
func (d *Dispatcher) keepNot(w *waiter) {
	o := w.offer
	o.slow.Stop()
	o.at.offered.Add(-1)
	w.offer = nil
	w.ask.Turn.deciding--
	select {
	case <-w.wake:
	default:
	}
}

// collect notes for a call that was woken what it is offered.
func (d *Dispatcher) collect(w *waiter) {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	if w.offer != nil {
		w.ask.offered = w.offer.at
	}
}
