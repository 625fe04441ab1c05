package dispatch

import (
	"slices"
	"time"
)

// An instance can pass its health checks and fail at everything else. It is then ejected from its
// pool for a while, as other proxies' outlier detection does. Afterwards it gets one call at a
// time until one of them succeeds.
//
// A call counts against an instance if it failed there and then succeeded at another one. A
// call that fails everywhere, such as one that kills engines, counts against nobody.
const (
	strikesOut      = 5 // failures since the last success
	ejectionTime    = 10 * time.Second
	maxEjectionTime = 5 * time.Minute
)

// ejection is the part of a record that decides about ejection. The record's lock guards it.
type ejection struct {
	strikes   float64
	succeeded time.Time // when the instance last did

	count int       // ejections since the last success; 0: it is not ejected
	begun time.Time // the last one
	until time.Time // when it gets a call again
	probe time.Time // when that call was chosen; zero: there is none
}

// Suspect is an instance at which a call failed.
type Suspect struct {
	At     *Instance
	Failed time.Time
	Chosen time.Time // when the slot was taken; zero: when no instance was ejected
	Weight float64   // of the strike
}

// Succeeds notes that the instance did what it was asked by a call that was chosen then. It
// reports whether that ends an ejection.
func (i *Instance) Succeeds(chosen, now time.Time) (back bool) {
	i.lock.Lock()
	defer i.lock.Unlock()
	e := &i.ejection
	e.succeeded, e.strikes = now, 0
	if e.count == 0 || chosen.Before(e.begun) {
		return false
	}
	*e = ejection{succeeded: now}
	i.shared.ejected.Add(-1)
	return true
}

// Fails notes that the instance failed. If the call was to show whether it works again, the
// ejection begins anew.
func (i *Instance) Fails(chosen, now time.Time) {
	i.lock.Lock()
	defer i.lock.Unlock()
	if e := &i.ejection; e.count > 0 && !chosen.Before(e.begun) {
		e.until = now.Add(e.length())
	}
}

// length is how long the ejection takes.
func (e *ejection) length() time.Duration {
	return min(ejectionTime*time.Duration(e.count), maxEjectionTime)
}

// convict counts a failure of a call that succeeded elsewhere afterwards. It reports whether the
// instance is to be ejected.
func (i *Instance) convict(s Suspect) bool {
	i.lock.Lock()
	defer i.lock.Unlock()
	e := &i.ejection
	switch {
	case s.Failed.Before(e.succeeded): // it has worked since
		return false
	case e.count > 0:
		return !s.Chosen.Before(e.begun)
	}
	e.strikes += s.Weight
	return e.strikes >= strikesOut
}

// eject ejects the instance and returns for how long.
func (i *Instance) eject(now time.Time) time.Duration {
	i.ejectionCount.Inc()
	i.lock.Lock()
	defer i.lock.Unlock()
	e := &i.ejection
	if e.count++; e.count == 1 {
		i.shared.ejected.Add(1)
	}
	e.begun, e.until, e.strikes = now, now.Add(e.length()), 0
	return e.length()
}

// IsEjected reports whether the instance is ejected.
func (i *Instance) IsEjected() bool {
	i.lock.Lock()
	defer i.lock.Unlock()
	return i.ejection.count > 0
}

// isOut reports whether the instance gets no calls because it is ejected, and since when.
func (i *Instance) isOut(now time.Time) (since time.Time, out bool) {
	i.lock.Lock()
	defer i.lock.Unlock()
	return i.ejection.begun, i.ejection.isOut(now)
}

func (e *ejection) isOut(now time.Time) bool {
	return e.count > 0 && (!e.probe.IsZero() || now.Before(e.until))
}

// try notes that the instance gets a call, and returns when, or that it gets none because it is
// ejected, unless it is spared. An ejected instance gets no other call until this one leaves. The
// time is zero if no instance is ejected.
func (i *Instance) try(spared bool) (chosen time.Time, ok bool) {
	if i.shared.ejected.Load() == 0 {
		return time.Time{}, true
	}
	chosen = time.Now()
	i.lock.Lock()
	defer i.lock.Unlock()
	e := &i.ejection
	if e.isOut(chosen) && !spared {
		return time.Time{}, false
	}
	if e.count > 0 && e.probe.IsZero() {
		e.probe = chosen
	}
	return chosen, true
}

func (i *Instance) leave(chosen time.Time) {
	if chosen.IsZero() {
		return
	}
	i.lock.Lock()
	defer i.lock.Unlock()
	if i.ejection.probe.Equal(chosen) {
		i.ejection.probe = time.Time{}
	}
}

// Judge counts the failures of a call that has now succeeded elsewhere, against the instances
// at which it failed. It calls ejected for each one that is ejected for them.
func (d *Dispatcher) Judge(suspects []Suspect, now time.Time, ejected func(at *Instance, length time.Duration)) {
	d.shared.ejecting.Lock()
	defer d.shared.ejecting.Unlock()
	for _, s := range suspects {
		if d.MaxEjected > 0 && s.At.convict(s) && (s.At.IsEjected() || d.mayEject()) {
			ejected(s.At, s.At.eject(now))
		}
	}
}

// maxOut is how many instances may be ejected of so many that are up: at least one, if any, but
// never more than half.
func (d *Dispatcher) maxOut(up int) int {
	if d.MaxEjected == 0 {
		return 0
	}
	return min(max(1, up*d.MaxEjected/100), up/2)
}

// mayEject reports whether one more instance may be ejected.
func (d *Dispatcher) mayEject() bool {
	up, ejected, v := 0, 1, d.newest.Load()
	for i, u := range v.upstreams {
		if !u.Available() {
			continue
		}
		up++
		if v.instances[i].IsEjected() {
			ejected++
		}
	}
	return ejected <= d.maxOut(up)
}

// out returns which instances get no calls because they are ejected. They are never more than
// may be, even if others are down, or they were ejected by another pool: the rest is spared.
func (d *Dispatcher) out(v *view) (out, spared []*Instance) {
	if d.shared.ejected.Load() == 0 {
		return nil, nil
	}
	now, up, since := time.Now(), 0, make(map[*Instance]time.Time)
	for i, u := range v.upstreams {
		if !u.Available() {
			continue
		}
		up++
		at := v.instances[i]
		var isOut bool
		if since[at], isOut = at.isOut(now); isOut {
			out = append(out, at)
		}
	}
	slices.SortStableFunc(out, func(a, b *Instance) int { return since[a].Compare(since[b]) })
	n := min(len(out), d.maxOut(up))
	return out[:n:n], out[n:]
}
