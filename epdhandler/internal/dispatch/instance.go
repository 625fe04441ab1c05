package dispatch

import (
	"container/list"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Instance is an engine in the role of a stage.
type Instance struct {
	Stage, Address string

	shared   *Instances
	taken    atomic.Int32 // slots: calls in flight
	offered  atomic.Int32 // free slots that are kept for calls that have not decided yet
	reserved atomic.Int32 // calls that will come

	pinned list.List // of *waiter that wait for this instance only, the next one first

	record
}

// InFlight is how many calls are at the instance.
func (i *Instance) InFlight() int { return int(i.taken.Load()) }

// load is how many calls are at the instance, or will be.
func (i *Instance) load() int {
	return int(i.taken.Load() + i.offered.Load() + i.reserved.Load())
}

// Instances are all that the process knows. They live through reloads, because the requests of
// a configuration that has been replaced go on.
type Instances struct {
	metrics *telemetry.Metrics
	all     sync.Map      // instanceKey to *Instance
	dropped atomic.Uint64 // instances that are not in it any more
	ejected atomic.Int32  // how many are, so that nobody looks for them if none is
	waiters atomic.Int32  // calls in all queues
	atGates atomic.Int32  // requests at all gates

	inForce atomic.Pointer[map[*Instance]int] // limits of the configurations that serve

	mu      sync.Mutex               // of all queues, and of slots where there is a limit
	waiting map[*Dispatcher]struct{} // in whose queues somebody waits
	offers  uint64                   // made so far

	ejecting sync.Mutex // held while an instance is ejected, so that not too many are

	budgeting sync.Mutex // guards budgets
	budgets   map[string]*account
}

type instanceKey struct{ stage, address string }

// NewInstances returns the instances of a process that knows none yet.
func NewInstances(m *telemetry.Metrics) *Instances {
	s := &Instances{metrics: m, waiting: make(map[*Dispatcher]struct{}), budgets: make(map[string]*account)}
	s.PutInForce(nil)
	return s
}

// Get returns the instance at an address in a stage, a new one if it is not known.
func (s *Instances) Get(stage, address string) *Instance {
	key := instanceKey{stage, address}
	if i, ok := s.all.Load(key); ok {
		return i.(*Instance)
	}
	s.forget(time.Now().Add(-keptFor))
	i, _ := s.all.LoadOrStore(key, &Instance{Stage: stage, Address: address, shared: s, record: record{
		used:          time.Now(),
		firstByte:     s.metrics.UpstreamFirstByte.WithLabelValues(stage, address),
		failureCount:  s.metrics.UpstreamFailures.WithLabelValues(stage, address),
		ejectionCount: s.metrics.UpstreamEjections.WithLabelValues(stage, address),
	}})
	return i.(*Instance)
}

// keptFor is how long an instance is remembered that no configuration names and that has
// nothing to do, such as one of a dynamic pool that is gone for good.
const keptFor = time.Hour

// forget drops the instances that have not changed since then, with their metrics.
func (s *Instances) forget(since time.Time) {
	named := *s.inForce.Load()
	s.Range(func(i *Instance) {
		if _, ok := named[i]; ok || i.taken.Load()+i.reserved.Load() > 0 || !i.idleSince(since) {
			return
		}
		s.all.Delete(instanceKey{i.Stage, i.Address})
		s.dropped.Add(1)
		if i.IsEjected() {
			s.ejected.Add(-1)
		}
		s.metrics.UpstreamFirstByte.DeleteLabelValues(i.Stage, i.Address)
		s.metrics.UpstreamFailures.DeleteLabelValues(i.Stage, i.Address)
		s.metrics.UpstreamEjections.DeleteLabelValues(i.Stage, i.Address)
	})
}

// Range calls do for each instance.
func (s *Instances) Range(do func(*Instance)) {
	s.all.Range(func(_, i any) bool {
		do(i.(*Instance))
		return true
	})
}

// PutInForce says which dispatchers serve now, the newest one last. Their limits count for
// those who wait in the queues of all others, which would else come after everybody.
func (s *Instances) PutInForce(serving []*Dispatcher) {
	limits := make(map[*Instance]int)
	for _, d := range serving {
		for _, at := range d.configured.instances {
			limits[at] = d.Limit
		}
	}
	s.inForce.Store(&limits)
}

// Retire says that the configuration of the dispatcher has been replaced.
func (d *Dispatcher) Retire() { d.retired.Store(true) }

// limitAt is how many calls an instance may have; 0: no limit.
func (d *Dispatcher) limitAt(at *Instance) int {
	if d.Limit > 0 && d.retired.Load() { // who never had to wait need not begin to
		if limit, ok := (*d.shared.inForce.Load())[at]; ok {
			return limit
		}
	}
	return d.Limit
}

// free is how many slots of an instance may be taken or offered.
func (d *Dispatcher) free(at *Instance) int {
	if limit := d.limitAt(at); limit > 0 {
		return limit - int(at.taken.Load()) - int(at.offered.Load())
	}
	return math.MaxInt
}

// Slot is the place of a call at an instance. It must be released.
type Slot struct {
	Since time.Time // when it was taken; zero: no instance was ejected

	at    *Instance
	early *Dispatcher // that counts it as a reservation; nil: it is none
}

// Release gives the slot back, once; further calls, and those on nil, do nothing.
func (s *Slot) Release() {
	if s == nil || s.at == nil {
		return
	}
	at := s.at
	s.at = nil
	if s.early != nil {
		s.early.reserve(at, -1)
		return
	}
	at.leave(s.Since)
	at.taken.Add(-1)
	at.shared.freed(at)
}

func (d *Dispatcher) reserve(at *Instance, n int32) {
	d.shared.mu.Lock()
	defer d.shared.mu.Unlock()
	at.reserved.Add(n)
	d.reserved.Add(n)
	d.count()
}

// freed offers a slot of an instance to those who wait.
func (s *Instances) freed(at *Instance) {
	if s.waiters.Load() == 0 {
		return // who joins a queue after this sees the free slot
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.waiting {
		if d.knows(at) {
			d.offerLocked(at)
		}
	}
}

// view is a list of upstreams with the instances that they are.
type view struct {
	upstreams reverseproxy.UpstreamPool
	instances []*Instance
	known     map[*Instance]bool
	dropped   uint64 // of the process, when the instances were looked up
}

// viewOf returns the view of a list. It is cheap if the list has the same addresses as before.
func (d *Dispatcher) viewOf(upstreams reverseproxy.UpstreamPool, before *view) *view {
	dropped := d.shared.dropped.Load()
	if before != nil && before.dropped == dropped && sameInstances(upstreams, before.upstreams) {
		return &view{upstreams, before.instances, before.known, dropped}
	}
	v := &view{upstreams, make([]*Instance, len(upstreams)), make(map[*Instance]bool, len(upstreams)), dropped}
	for i, u := range upstreams {
		at := d.Instance(u.Dial)
		at.touch()
		v.instances[i], v.known[at] = at, true
	}
	return v
}

// Instance returns the instance of the pool's stage at an address.
func (d *Dispatcher) Instance(address string) *Instance { return d.shared.Get(d.Stage, address) }

func (v *view) of(u *reverseproxy.Upstream) *Instance {
	return v.instances[slices.Index(v.upstreams, u)]
}

// see returns the view of the upstreams that there are for a call. Free slots of instances that
// the source of a dynamic pool tells for the first time are offered to those who wait.
func (d *Dispatcher) see(upstreams reverseproxy.UpstreamPool) *view {
	if !d.Dynamic {
		return d.viewOf(upstreams, d.configured)
	}
	before := d.newest.Load()
	v := d.viewOf(upstreams, before)
	d.newest.Store(v)
	if v.dropped != before.dropped {
		d.told.Range(func(at, _ any) bool {
			if now, _ := d.shared.all.Load(instanceKey{d.Stage, at.(*Instance).Address}); now != at {
				d.told.Delete(at)
			}
			return true
		})
	}
	for _, at := range v.instances {
		if before.known[at] {
			continue
		}
		if _, known := d.told.LoadOrStore(at, true); !known {
			d.offer(at)
		}
	}
	return v
}

// knows reports whether calls of the pool may go to an instance.
func (d *Dispatcher) knows(at *Instance) bool {
	if !d.Dynamic {
		return d.configured.known[at]
	}
	_, told := d.told.Load(at)
	return told
}

// Upstreams returns the instances as far as they are known: of a dynamic pool those that its
// source told last.
func (d *Dispatcher) Upstreams() reverseproxy.UpstreamPool { return d.newest.Load().upstreams }

func (v *view) up() (up int) {
	for _, u := range v.upstreams {
		if u.Available() {
			up++
		}
	}
	return up
}

// Slots is how many calls the instances that are up can have. One instance is always counted:
// whether there is any shows when it is asked.
func (d *Dispatcher) Slots() int { return max(1, d.newest.Load().up()) * d.Limit }

func sameInstances(a, b reverseproxy.UpstreamPool) bool {
	return slices.EqualFunc(a, b, func(x, y *reverseproxy.Upstream) bool { return x == y || x.Dial == y.Dial })
}
