package dispatch

import (
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// view is a list of upstreams with the instances that they are.
type view struct {
	upstreams reverseproxy.UpstreamPool
	instances []*Instance
	known     map[*Instance]bool
}

// viewOf returns the view of a list. It is cheap if the list has the same addresses as before.
func (d *Dispatcher) viewOf(upstreams reverseproxy.UpstreamPool, before *view) *view {
	if before != nil && sameInstances(upstreams, before.upstreams) {
		return &view{upstreams, before.instances, before.known}
	}
	v := &view{upstreams, make([]*Instance, len(upstreams)), make(map[*Instance]bool, len(upstreams))}
	for i, u := range upstreams {
		v.instances[i] = d.shared.Get(d.Stage, u.Dial)
		v.known[v.instances[i]] = true
	}
	return v
}

// of returns the instance that an upstream of the view is.
func (v *view) of(u *reverseproxy.Upstream) *Instance {
	return v.instances[slices.Index(v.upstreams, u)]
}

// view returns the instances that there are now, as far as that is known.
func (d *Dispatcher) view() *view {
	if v := d.newest.Load(); v != nil {
		return v
	}
	if d.static != nil {
		return d.static
	}
	return new(view)
}

// See notes which upstreams the source of a dynamic pool has told. Those who wait see them at
// once, and free slots of new instances are offered to them.
func (d *Dispatcher) See(upstreams reverseproxy.UpstreamPool) {
	before := d.newest.Load()
	v := d.viewOf(upstreams, before)
	d.newest.Store(v)
	if d.queue.waiting.Load() == 0 {
		return
	}
	for _, at := range v.instances {
		if before == nil || !before.known[at] {
			d.offer(at)
		}
	}
}

// Upstreams returns the instances as far as they are known: of a dynamic pool those that its
// source told last.
func (d *Dispatcher) Upstreams() reverseproxy.UpstreamPool { return d.view().upstreams }

// Slots is how many calls the instances that are up can have. One instance is always counted:
// whether there is any shows when it is asked.
func (d *Dispatcher) Slots() int {
	up := 0
	for _, u := range d.Upstreams() {
		if u.Available() {
			up++
		}
	}
	return max(1, up) * d.Limit
}

func sameInstances(a, b reverseproxy.UpstreamPool) bool {
	return slices.EqualFunc(a, b, func(x, y *reverseproxy.Upstream) bool { return x == y || x.Dial == y.Dial })
}
