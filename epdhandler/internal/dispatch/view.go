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
		v.instances[i] = d.Instance(u.Dial)
		v.known[v.instances[i]] = true
	}
	return v
}

// Instance returns the instance of the pool's stage at an address.
func (d *Dispatcher) Instance(address string) *Instance { return d.shared.Get(d.Stage, address) }

// of returns the instance that an upstream of the view is.
func (v *view) of(u *reverseproxy.Upstream) *Instance {
	return v.instances[slices.Index(v.upstreams, u)]
}

// See notes which upstreams the source of a dynamic pool has told. Those who wait see them at
// once, and free slots of new instances are offered to them.
func (d *Dispatcher) See(upstreams reverseproxy.UpstreamPool) {
	before := d.newest.Load()
	v := d.viewOf(upstreams, before)
	d.newest.Store(v)
	if d.Waiting() == 0 {
		return
	}
	for _, at := range v.instances {
		if !before.known[at] {
			d.offer(at)
		}
	}
}

// Upstreams returns the instances as far as they are known: of a dynamic pool those that its
// source told last.
func (d *Dispatcher) Upstreams() reverseproxy.UpstreamPool { return d.newest.Load().upstreams }

// up is how many of the upstreams are available.
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
