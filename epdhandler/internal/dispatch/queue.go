package dispatch

import (
	"container/list"
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// queue is where calls wait for a slot. Requests take turns: one with many media items gets one
// slot, then the next request does.
//
// A slot that becomes free is offered to the first call in turn, which wakes, and chooses for
// itself, as every call does. It passes the offer on to the next one if it does not take that
// slot. Nobody else gets the slot meanwhile, unless the call takes too long: then it leaves the
// queue until it looks at the candidates again, and comes back to the front.
//
// Calls for which an instance was reserved wait apart, at that instance: its slots are for whoever
// has waited longer.
//
// Whatever happens under the lock takes the same time however many instances there are and
// however many calls wait. It runs no code of others.
type queue struct {
	turns   list.List    // of *Turn, the next one first
	waiting atomic.Int32 // requests in it
	pinned  atomic.Int32 // calls that wait at the instance that was reserved for them

	lookUp sync.Mutex // held while a call asks a dynamic source which instances there are
	asked  time.Time  // when one did
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

type waiter struct {
	d        *Dispatcher
	ask      *Ask
	declined []string // addresses, by its policy

	place *list.Element  // in its turn, or at its instance; nil: it is not in the queue
	at    *Instance      // that was reserved for it; nil: none
	wake  chan *Instance // has room for one: the offer that it does not know of yet

	offer  *Instance   // a slot of this one is kept for it; nil: it has no offer
	number uint64      // of the last offer that it had
	slow   *time.Timer // until the offer is not kept any more

	since   time.Time // when it began to wait; zero: it did not
	looked  time.Time // when it got its list of upstreams
	expired <-chan time.Time
}

const (
	slowPolicy = 50 * time.Millisecond // how long a slot is kept for a call that has been offered it
	lookPeriod = time.Second           // how often a call that waits looks for instances that are new, up again or down
	lookGap    = 20 * time.Millisecond // the least time between two questions to a dynamic source for that

	// ownLookGap is how old the list of upstreams of a call may be that is offered a slot.
	ownLookGap = 100 * time.Millisecond
)

// Full reports whether as many requests wait as may, or if none may, whether no slot is free.
func (d *Dispatcher) Full() bool {
	if d.Limit == 0 {
		return false
	}
	if d.QueueSize > 0 {
		return int(d.queue.waiting.Load()) >= d.QueueSize
	}
	if d.Dynamic {
		return false // there may be new instances
	}
	known := d.newest.Load().instances
	return len(known) > 0 && !slices.ContainsFunc(known, func(at *Instance) bool { return d.free(at) > 0 })
}

func (d *Dispatcher) fullError() error {
	return BusyError{fmt.Sprintf("the queue is full (queue_size %d)", d.QueueSize)}
}

// Waiting is how many requests wait, or will: those for which an instance is reserved.
func (d *Dispatcher) Waiting() int {
	if d.Limit == 0 {
		return int(d.queue.waiting.Load())
	}
	return int(d.queue.waiting.Load() + d.reserved.Load())
}

func (d *Dispatcher) isRefused(t *Turn) bool {
	if int(d.queue.waiting.Load()) < d.QueueSize {
		return false
	}
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	return d.refuses(t)
}

// refuses reports whether a request may not join the queue because it is full. The lock must be held.
func (d *Dispatcher) refuses(t *Turn) bool {
	return !t.Admitted && t.place == nil && int(d.queue.waiting.Load()) >= d.QueueSize
}

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

// wait waits for an offer, or for something else to have changed.
func (d *Dispatcher) wait(ctx context.Context, w *waiter) error {
	patience, option := d.QueueTime, "queue_timeout"
	if w.ask.Patience > patience {
		patience, option = w.ask.Patience, "kv_lease"
	}
	if err := d.join(w); err != nil {
		return err
	}
	// a slot that it could have may have been kept for others while it looked
	look := time.After(slowPolicy)
	if w.expired == nil {
		look, w.expired = time.After(lookPeriod), time.After(patience)
		if w.ask.Clock != nil {
			w.ask.Clock.Pause()
		}
	}
	d.look(w) // what became free before it was in the queue has been offered to nobody
	for {
		select {
		case w.ask.offered = <-w.wake:
			if time.Since(w.looked) >= ownLookGap {
				w.lookUp()
			}
			return nil
		case <-look:
			d.askSource(w)
			if d.look(w) || w.ask.Movable && d.isElsewhere(w) {
				return nil
			}
			look = time.After(lookPeriod)
		case <-w.expired:
			left := patience - d.sinceServed(w.ask.Turn)
			if left <= 0 {
				return BusyError{fmt.Sprintf("waited %s for an instance (%s)", patience, option)}
			}
			w.expired = time.After(left)
		case <-ctx.Done():
			return ctx.Err()
		}
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
// reports whether the call has to choose anew: because there is nothing to wait for any more, or
// because it had to leave the queue while its source was asked.
func (d *Dispatcher) look(w *waiter) (anew bool) {
	fit, busy := d.wanted(w)
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	if len(fit) > 0 {
		d.offerLocked(w.ask.view.of(fit[0]))
	}
	return len(fit) == 0 && !busy || w.place == nil
}

// askSource asks a dynamic source, unless another call does, or just did.
func (d *Dispatcher) askSource(w *waiter) {
	if q := &d.queue; w.ask.LookUp != nil && q.lookUp.TryLock() {
		defer q.lookUp.Unlock()
		if time.Since(q.asked) >= lookGap {
			q.asked = time.Now()
			w.lookUp()
		}
	}
}

// lookUp asks the source which upstreams there are for the call now.
func (w *waiter) lookUp() {
	if w.ask.LookUp == nil {
		return
	}
	w.looked = time.Now()
	if found := w.ask.LookUp(); found != nil {
		w.ask.view = w.d.see(found)
	}
}

// finish leaves nothing of a call behind in the queue, however it ended.
func (d *Dispatcher) finish(ctx context.Context, w *waiter) {
	if w.since.IsZero() {
		return
	}
	d.shared.mu.Lock()
	d.leave(w)
	d.shared.mu.Unlock()
	if w.ask.Clock != nil {
		w.ask.Clock.Resume()
	}
	w.ask.Waited += d.shared.observeWait(d.Stage, w.since)
	trace.SpanFromContext(ctx).AddEvent("waited for an instance")
}

// observeWait returns how long a call has waited, for the metrics too.
func (s *Instances) observeWait(stage string, since time.Time) time.Duration {
	waited := time.Since(since)
	s.metrics.StageWait.WithLabelValues(stage).Observe(waited.Seconds())
	return waited
}

// join puts a call at the end of its request's turn, and a new turn at the end of the queue. A call
// that is there already stays where it is, and passes on the offer that it did not use. One that
// had to leave comes back to the front.
func (d *Dispatcher) join(w *waiter) error {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	switch {
	case w.place != nil:
		w.ask.offered = nil
		d.pass(w)
	case !w.since.IsZero():
		w.ask.offered = nil
		d.enter(w, (*list.List).PushFront)
	case w.ask.Only == "" && d.refuses(w.ask.Turn):
		return d.fullError()
	default:
		w.since, w.wake = time.Now(), make(chan *Instance, 1)
		w.looked = w.since
		d.enter(w, (*list.List).PushBack)
	}
	return nil
}

// enter puts a call into the queue. The lock must be held, here and in what follows.
func (d *Dispatcher) enter(w *waiter, push func(*list.List, any) *list.Element) {
	d.shared.waiters.Add(1)
	t := w.ask.Turn
	if w.ask.Only != "" {
		w.at = d.Instance(w.ask.Only)
		w.place = push(&w.at.pinned, w)
		d.queue.pinned.Add(1)
	} else if w.place = push(&t.waiters, w); t.place == nil {
		t.place = push(&d.queue.turns, t)
		d.queue.waiting.Add(1)
	}
	d.count()
}

// count keeps the dispatcher among those in whose queues somebody waits, or takes it out.
func (d *Dispatcher) count() {
	if d.queue.waiting.Load()+d.queue.pinned.Load()+d.reserved.Load() == 0 {
		delete(d.shared.waiting, d)
	} else {
		d.shared.waiting[d] = struct{}{}
	}
}

func (d *Dispatcher) leave(w *waiter) {
	if w.place == nil {
		return
	}
	d.pass(w)
	d.shared.waiters.Add(-1)
	t := w.ask.Turn
	if w.at != nil {
		w.at.pinned.Remove(w.place)
		d.queue.pinned.Add(-1)
	} else if t.waiters.Remove(w.place); t.waiters.Len() == 0 {
		d.queue.turns.Remove(t.place)
		t.place = nil
		d.queue.waiting.Add(-1)
	}
	w.place = nil
	d.count()
}
