package dispatch

import (
	"slices"
	"time"
)

// An instance can pass its health checks and fail at everything else. It is then ejected for a
// while, as by other proxies' outlier detection. Afterwards it gets one call at a time until one
// of them succeeds. A call counts against an instance if it failed there and then succeeded at
// another one: one that fails everywhere, such as one that kills engines, counts against nobody.
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

// Succeeds notes that a call that was chosen then succeeded. It reports whether that ends an ejection.
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

// try notes that the instance gets a call, and returns when; zero if no instance is ejected. It is
// not ok if this one is, and is not spared, or has such a call already.
func (i *Instance) try(spared bool) (chosen time.Time, ok bool) {
	if i.shared.ejected.Load() == 0 {
		return time.Time{}, true
	}
	chosen = time.Now()
	i.lock.Lock()
	defer i.lock.Unlock()
	e := &i.ejection
	if e.isOut(chosen) && !spared {
		return chosen, false
	}
	if e.count > 0 && e.probe.IsZero() {
		e.probe = chosen
	}
	return chosen, true
}

func (i *Instance) leave(chosen time.Time) {
	if chosen.IsZero() {
		return // as most do
	}
	i.lock.Lock()
	defer i.lock.Unlock()
	if i.ejection.probe.Equal(chosen) {
		i.ejection.probe = time.Time{}
	}
}

// Judge counts the failures of a call that has now succeeded elsewhere. It calls ejected for each
// instance that is ejected for them.
func (d *Dispatcher) Judge(suspects []Suspect, now time.Time, ejected func(at *Instance, length time.Duration)) {
	d.shared.ejecting.Lock()
	defer d.shared.ejecting.Unlock()
	for _, s := range suspects {
		if d.MaxEjected > 0 && s.At.convict(s) && (s.At.IsEjected() || d.mayEject()) {
			ejected(s.At, s.At.eject(now))
		}
	}
}

// maxOut is how many instances of a view may be ejected: at least one, if there are others, but
// never more than half of those that are up.
func (d *Dispatcher) maxOut(v *view) int {
	if d.MaxEjected == 0 {
		return 0
	}
	up := v.up()
	return min(max(1, up*d.MaxEjected/100), up/2)
}

func (d *Dispatcher) mayEject() bool {
	ejected, v := 0, d.newest.Load()
	for i, u := range v.upstreams {
		if u.Available() && v.instances[i].IsEjected() {
			ejected++
		}
	}
	return ejected < d.maxOut(v)
}

// out returns which instances get no calls because they are ejected. They are never more than
// may be, even if others are down, or they were ejected by another pool: the rest is spared.
func (d *Dispatcher) out(v *view) (out, spared []*Instance) {
	if d.shared.ejected.Load() == 0 {
		return nil, nil
	}
	now, since := time.Now(), make(map[*Instance]time.Time)
	for i, u := range v.upstreams {
		at := v.instances[i]
		if begun, isOut := at.isOut(now); isOut && u.Available() {
			out, since[at] = append(out, at), begun
		}
	}
	slices.SortStableFunc(out, func(a, b *Instance) int { return since[a].Compare(since[b]) })
	n := min(len(out), d.maxOut(v))
	return out[:n:n], out[n:]
}
