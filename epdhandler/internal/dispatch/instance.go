package dispatch

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Instance is an engine in the role of a stage.
type Instance struct {
	Stage, Address string

	shared   *Instances
	taken    atomic.Int32 // slots: calls in flight
	offered  atomic.Int32 // free slots that are kept for calls that have not decided yet
	reserved atomic.Int32 // calls that will come
	inForce  atomic.Int32 // the limit in the configuration that serves; see noLimit

	record
}

// Limits in force.
const (
	noLimit  = 0
	notKnown = -1 // the configuration does not name the instance
)

// InFlight is how many calls are at the instance.
func (i *Instance) InFlight() int { return int(i.taken.Load()) }

// Instances are all that the process knows. They live through reloads, because the requests of
// a configuration that has been replaced go on.
type Instances struct {
	metrics *telemetry.Metrics
	all     sync.Map     // address of a stage to *Instance
	ejected atomic.Int32 // how many are, so that nobody looks for them if none is
	waiters atomic.Int32 // calls in all queues
	atGates atomic.Int32 // requests at all gates

	mu      sync.Mutex               // of all queues, and of slots where there is a limit
	waiting map[*Dispatcher]struct{} // in whose queues somebody waits

	ejecting sync.Mutex // held while an instance is ejected, so that not too many are
	budgets  budgets
}

type instanceKey struct{ stage, address string }

// NewInstances returns the instances of a process that knows none yet.
func NewInstances(m *telemetry.Metrics) *Instances {
	return &Instances{metrics: m, waiting: make(map[*Dispatcher]struct{})}
}

// Get returns the instance at an address in a stage, a new one if it is not known.
func (s *Instances) Get(stage, address string) *Instance {
	key := instanceKey{stage, address}
	if i, ok := s.all.Load(key); ok {
		return i.(*Instance)
	}
	s.forget(time.Now().Add(-keptFor))
	i, _ := s.all.LoadOrStore(key, s.newInstance(stage, address))
	return i.(*Instance)
}

func (s *Instances) newInstance(stage, address string) *Instance {
	i := &Instance{Stage: stage, Address: address, shared: s}
	i.inForce.Store(notKnown)
	i.record.used = time.Now()
	i.firstByte = s.metrics.UpstreamFirstByte.WithLabelValues(stage, address)
	i.failureCount = s.metrics.UpstreamFailures.WithLabelValues(stage, address)
	i.ejectionCount = s.metrics.UpstreamEjections.WithLabelValues(stage, address)
	return i
}

// keptFor is how long an instance is remembered that no configuration names and that has
// nothing to do, such as one of a dynamic pool that is gone for good.
const keptFor = time.Hour

// forget drops the instances that have not changed since then, with their metrics.
func (s *Instances) forget(since time.Time) {
	s.Range(func(i *Instance) {
		if i.inForce.Load() != notKnown || i.taken.Load()+i.reserved.Load() > 0 || !i.idleSince(since) {
			return
		}
		s.all.Delete(instanceKey{i.Stage, i.Address})
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
		if d.static == nil {
			continue
		}
		for _, at := range d.static.instances {
			limits[at] = d.Limit
		}
	}
	s.Range(func(i *Instance) {
		limit, known := limits[i]
		if !known {
			limit = notKnown
		}
		i.inForce.Store(int32(limit))
	})
}

// Retire says that the configuration of the dispatcher has been replaced.
func (d *Dispatcher) Retire() { d.retired.Store(true) }

// limitAt is how many calls an instance may have; 0: no limit.
func (d *Dispatcher) limitAt(at *Instance) int {
	if d.retired.Load() {
		if limit := at.inForce.Load(); limit != notKnown {
			return int(limit)
		}
	}
	return d.Limit
}

// free is how many slots of an instance may be taken or offered.
func (d *Dispatcher) free(at *Instance) int {
	limit := d.limitAt(at)
	if limit == noLimit {
		return math.MaxInt
	}
	return limit - int(at.taken.Load()) - int(at.offered.Load())
}

// Slot is the place of a call at an instance. It must be released.
type Slot struct {
	at    *Instance
	since time.Time   // when it was taken; zero: no instance was ejected
	early *Dispatcher // that counts it as a reservation; nil: it is none
}

// Since is when the slot was taken, zero if no instance was ejected then.
func (s *Slot) Since() time.Time {
	if s == nil {
		return time.Time{}
	}
	return s.since
}

// Release gives the slot back, once; further calls do nothing.
func (s *Slot) Release() {
	if s == nil || s.at == nil {
		return
	}
	at := s.at
	s.at = nil
	if s.early != nil {
		s.early.reserved.Add(-1)
		at.reserved.Add(-1)
		return
	}
	at.leave(s.since)
	at.taken.Add(-1)
	at.shared.freed(at)
}

// freed offers a slot of an instance to those who wait.
func (s *Instances) freed(at *Instance) {
	if s.waiters.Load() == 0 {
		return // who joins a queue after this sees the free slot
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for d := range s.waiting {
		if d.Stage == at.Stage && d.view().known[at] {
			d.offerLocked(at)
		}
	}
}
