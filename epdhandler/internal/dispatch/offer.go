package dispatch

import (
	"slices"
	"time"
)

// takeLimited takes a slot of an instance for a call, if there still is one. The next slot is
// then for the next request.
func (d *Dispatcher) takeLimited(w *waiter, at *Instance) bool {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	if own := w.offer == at; own {
		d.endOffer(w)
	} else if d.free(at) <= 0 {
		w.ask.offered = nil // it may have come too late
		return false
	}
	at.taken.Add(1)
	t := w.ask.Turn
	t.Admitted, t.served = true, time.Now()
	d.leave(w)
	if t.place != nil {
		d.queue.turns.MoveToBack(t.place)
	}
	d.offerLocked(at) // there may be more than one
	return true
}

// offer offers a free slot of an instance to the first call in turn.
func (d *Dispatcher) offer(at *Instance) {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	d.offerLocked(at)
}

func (d *Dispatcher) offerLocked(at *Instance) {
	if d.queue.waiting.Load()+d.queue.pinned.Load() > 0 && d.free(at) > 0 {
		d.shared.offers++
		d.give(at, d.shared.offers, d.first())
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

// front returns the first call in the queue, nil if there is none.
func (d *Dispatcher) front() *waiter {
	if e := d.queue.turns.Front(); e != nil {
		return e.Value.(*Turn).waiters.Front().Value.(*waiter)
	}
	return nil
}

// next returns who comes after a call in the queue, nil if nobody does.
func (w *waiter) next() *waiter {
	if w.at != nil {
		return w.d.first()
	}
	if p := w.place.Next(); p != nil {
		return p.Value.(*waiter)
	}
	if t := w.ask.Turn.place.Next(); t != nil {
		return t.Value.(*Turn).waiters.Front().Value.(*waiter)
	}
	return nil
}

// takes reports whether a call can be made the offer of this number. Dispatchers that have the
// instance may have different limits.
func (w *waiter) takes(at *Instance, number uint64) bool {
	return w.offer == nil && w.number < number && !slices.Contains(w.ask.Skip, at.Address) && w.d.free(at) > 0
}

// nextPinned returns the first call that waits for this instance only and can take the offer.
func (at *Instance) nextPinned(number uint64) *waiter {
	for e := at.pinned.Front(); e != nil; e = e.Next() {
		if w := e.Value.(*waiter); w.takes(at, number) {
			return w
		}
	}
	return nil
}

// give makes the offer of this number to a call, or to the next one that can take it, or to one
// that has waited at the instance for longer. It reports whether there is one.
func (d *Dispatcher) give(at *Instance, number uint64, w *waiter) bool {
	for w != nil && !w.takes(at, number) {
		w = w.next()
	}
	if p := at.nextPinned(number); p != nil && (w == nil || p.since.Before(w.since)) {
		w = p
	}
	if w == nil {
		return false
	}
	w.offer, w.number = at, number
	w.ask.Turn.deciding++
	at.offered.Add(1)
	w.slow = time.AfterFunc(slowPolicy, func() {
		w.d.shared.mu.Lock()
		defer w.d.shared.mu.Unlock()
		if w.offer != nil && w.number == number {
			w.d.leave(w)
		}
	})
	w.wake <- at
	return true
}

// pass makes the offer of a call to the next one, if the slot is still free: after the last one of
// the queue, to those in the queues of other dispatchers that have the instance.
func (d *Dispatcher) pass(w *waiter) {
	at := w.offer
	if at == nil {
		return
	}
	d.endOffer(w)
	if d.free(at) <= 0 || d.give(at, w.number, w.next()) {
		return
	}
	for other := range d.shared.waiting { // also to those before it that had another offer
		if other.knows(at) && other.free(at) > 0 && other.give(at, w.number, other.front()) {
			return
		}
	}
}

func (d *Dispatcher) endOffer(w *waiter) {
	w.slow.Stop()
	w.offer.offered.Add(-1)
	w.offer = nil
	w.ask.Turn.deciding--
	select {
	case <-w.wake:
	default:
	}
}
