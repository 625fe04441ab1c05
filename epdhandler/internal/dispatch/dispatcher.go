// Package dispatch decides which instance of a pool gets a call, and when. It knows nothing of
// HTTP, of what calls bring, or of how engines answer.
package dispatch

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// Dispatcher decides for one pool. Each choice is one loop in three steps:
//
//  1. Find the candidates: the instances that meet all conditions in candidates.go.
//  2. Have the policy choose one of them. It is a Caddy module, perhaps a third party's, which may
//     panic or hang: it runs on the goroutine of the call, without any lock or slot.
//  3. Take a slot of the instance, if it still has a free one; otherwise begin again.
//
// A call waits while all instances that it may go to have as many calls as they may (limit); see
// [queue]. Caddy's own limits let more in than configured, refuse at once, or hold up health checks.
type Dispatcher struct {
	Settings

	shared     *Instances
	configured *view                // of the upstreams that the configuration names
	newest     atomic.Pointer[view] // of a dynamic pool: what its source told last, to any request
	told       sync.Map             // of a dynamic pool: each *Instance that its source has told
	retired    atomic.Bool          // its configuration has been replaced

	reserved atomic.Int32 // calls whose instance was chosen early
	queue    queue
}

// Settings are the configuration of a dispatcher.
type Settings struct {
	Stage       string
	Dynamic     bool          // the upstreams come from a source
	Limit       int           // calls in flight at each instance; 0: no limit
	QueueSize   int           // requests that may wait
	QueueTime   time.Duration // how long they may
	Weights     []int         // of the instances, by their place in the pool; nil: none. An instance of weight 0 gets no calls
	MaxEjected  int           // percent of the instances that are up
	RetryBudget int           // percent of the requests; 0: no limit
}

// New returns the dispatcher of a pool with these upstreams.
func (s *Instances) New(settings Settings, upstreams reverseproxy.UpstreamPool) *Dispatcher {
	d := &Dispatcher{Settings: settings, shared: s}
	d.configured = d.viewOf(upstreams, nil)
	d.newest.Store(d.configured)
	return d
}

// ErrNobody means that there is no instance that a call could go to, now or soon.
var ErrNobody = errors.New("no upstreams available")

// ErrElsewhere means that the reserved instance is busy or down, and another one is not.
var ErrElsewhere = errors.New("another instance has a free slot, and the reserved one has not")

// A BusyError means that a call got no slot: the queue is full, or the wait too long.
type BusyError struct{ Why string }

func (e BusyError) Error() string { return e.Why }

// Ask is a call that wants an instance.
type Ask struct {
	Turn     *Turn         // of its request; nil: the call takes no slot and does not wait
	Skip     []string      // addresses that must not be chosen
	Only     string        // the address that was reserved for it, even if that is down now; empty: any
	Movable  bool          // [ErrElsewhere] is better than to wait for Only
	Patience time.Duration // how long it may wait, where that is more than queue_timeout
	Clock    Clock         // stops while the call waits; may be nil

	// Early reserves the instance for a call that is made later, with Only. It takes none of the
	// slots, which would be idle until then, but counts for policies that go by load. Instances
	// with a slot for it are preferred, then those with the fewest calls. There may be as
	// many reservations as slots, and as many requests more as may wait.
	Early bool

	// Policy chooses one of the candidates; nil: none of them. It may be asked more than once.
	Policy func(candidates reverseproxy.UpstreamPool) *reverseproxy.Upstream

	// LookUp asks the source of a dynamic pool which instances there are now, nil if it fails. It is
	// called while the call waits. Nil: the upstreams do not change.
	LookUp func() reverseproxy.UpstreamPool

	Waited time.Duration // for a slot

	view    *view       // of the upstreams that there are for this call
	offered *Instance   // that keeps a free slot for it; nil: none
	spared  []*Instance // candidates although they are ejected
}

// Clock measures how long an engine takes.
type Clock interface {
	Pause()
	Resume()
}

// Upstreams are the instances among which the dispatcher chose last.
func (a *Ask) Upstreams() (known reverseproxy.UpstreamPool) {
	if a.view != nil {
		known = a.view.upstreams
	}
	return known
}

// Choose returns one of the upstreams for a call, and a slot there if the call takes one. The error
// is [ErrNobody], [ErrElsewhere], a [BusyError], that of ctx, or that the policy chose nonsense.
func (d *Dispatcher) Choose(ctx context.Context, upstreams reverseproxy.UpstreamPool, a *Ask) (*reverseproxy.Upstream, *Slot, error) {
	if a.Early && d.Limit > 0 && !a.Turn.Admitted && int(d.reserved.Load()) >= d.Slots()+d.QueueSize {
		return nil, nil, d.fullError()
	}
	a.view, a.offered = d.see(upstreams), nil
	w := &waiter{d: d, ask: a}
	defer d.finish(ctx, w)
	for ctx.Err() == nil {
		fit, busy := d.wanted(w)
		switch {
		case len(fit) == 0 && !busy:
			return nil, nil, ErrNobody
		case len(fit) == 0 && a.Movable && d.isElsewhere(w):
			return nil, nil, ErrElsewhere
		}
		isTurn := a.Turn == nil || a.Early || a.Only != "" || a.offered != nil || d.queue.waiting.Load() == 0 || d.isRefused(a.Turn)
		if len(fit) == 0 || !isTurn {
			if err := d.wait(ctx, w); err != nil {
				return nil, nil, err
			}
			continue
		}
		u, err := d.choose(a, fit)
		if err != nil {
			return nil, nil, err
		}
		if u == nil {
			for _, u := range fit {
				w.declined = append(w.declined, u.Dial)
			}
		} else if slot := d.take(w, u); slot != nil {
			return u, slot, nil
		}
	}
	return nil, nil, ctx.Err()
}

func (d *Dispatcher) choose(a *Ask, fit reverseproxy.UpstreamPool) (*reverseproxy.Upstream, error) {
	if a.Only != "" {
		return fit[0], nil
	}
	u := a.Policy(slices.Clone(fit))
	if u != nil && !slices.Contains(fit, u) {
		return nil, errors.New("the load balancing policy chose an instance that was none of its candidates")
	}
	return u, nil
}

// take takes a slot of an instance, nil if it has none any more.
func (d *Dispatcher) take(w *waiter, u *reverseproxy.Upstream) *Slot {
	a, at := w.ask, w.ask.view.of(u)
	switch {
	case a.Early:
		d.reserve(at, 1)
		return &Slot{at: at, early: d}
	case a.Turn == nil:
		return new(Slot)
	}
	since, ok := at.try(a.Only != "" || slices.Contains(a.spared, at))
	switch {
	case !ok:
		return nil
	case d.limitAt(at) == 0 && w.since.IsZero(): // it has not waited
		at.taken.Add(1)
	case !d.takeLimited(w, at):
		at.leave(since)
		return nil
	}
	return &Slot{at: at, Since: since}
}
