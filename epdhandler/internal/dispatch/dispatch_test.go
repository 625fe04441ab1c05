package dispatch

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// fixture is a pool of encoders with a process of its own.
type fixture struct {
	*Dispatcher
	now    atomic.Pointer[reverseproxy.UpstreamPool] // what the source of a dynamic pool tells
	policy reverseproxy.RoundRobinSelection
}

// newFixture returns a pool of these instances, all of which are up.
func newFixture(t testing.TB, s Settings, addresses ...string) *fixture {
	return inProcess(t, NewInstances(telemetry.NewMetrics()), s, addresses...)
}

func inProcess(t testing.TB, shared *Instances, s Settings, addresses ...string) *fixture {
	s.Stage = telemetry.Encode
	if s.QueueTime == 0 {
		s.QueueTime = time.Minute
	}
	f := &fixture{Dispatcher: shared.New(s, upstreams(addresses...))}
	t.Cleanup(func() {
		shared.Range(func(i *Instance) {
			assert.Zero(t, i.taken.Load()+i.offered.Load()+i.reserved.Load(), i.Address)
		})
		assert.Zero(t, f.Waiting())
		assert.Zero(t, f.queue.turns.Len())
		assert.Zero(t, shared.waiters.Load())
		assert.Empty(t, shared.waiting)
	})
	return f
}

func upstreams(addresses ...string) (list reverseproxy.UpstreamPool) {
	for _, a := range addresses {
		list = append(list, &reverseproxy.Upstream{Dial: a, Host: new(reverseproxy.Host)})
	}
	return list
}

// roundRobin is the policy of an ask that has none.
func (f *fixture) roundRobin(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
	return f.policy.Select(fit, nil, nil)
}

// chosen is what came of an ask.
type chosen struct {
	address string
	slot    *Slot
	err     error
}

func (f *fixture) ask(ctx context.Context, a *Ask) chosen {
	if a.Policy == nil {
		a.Policy = f.roundRobin
	}
	if f.Dynamic && a.LookUp == nil {
		a.LookUp = func() reverseproxy.UpstreamPool { return *f.now.Load() }
	}
	u, slot, err := f.Choose(ctx, f.Upstreams(), a)
	if err != nil {
		return chosen{err: err}
	}
	return chosen{u.Dial, slot, nil}
}

// calls is the number of calls in the queue.
func (f *fixture) calls() int { return int(f.shared.waiters.Load()) }

// asks asks in the background, and returns when the call waits.
func (f *fixture) asks(t testing.TB, a *Ask) <-chan chosen {
	t.Helper()
	n, got := f.calls(), make(chan chosen, 1)
	go func() { got <- f.ask(context.WithoutCancel(t.Context()), a) }()
	require.Eventually(t, func() bool { return f.calls() == n+1 }, 10*time.Second, 50*time.Microsecond)
	return got
}

// asking is the request with which a policy is asked.
func asking(t testing.TB, a *Ask) *http.Request {
	return httptest.NewRequestWithContext(WithAsk(t.Context(), a), http.MethodPost, "/", nil)
}

// tell has the source of a dynamic pool tell these instances to somebody, and whoever asks.
func (f *fixture) tell(addresses ...string) {
	list := upstreams(addresses...)
	f.now.Store(&list)
	f.see(list)
}

func newAsk(skip ...string) *Ask { return &Ask{Turn: new(Turn), Skip: skip} }

// choices are how often each instance is chosen for a hundred calls.
func (f *fixture) choices(t testing.TB, skip ...string) map[string]int {
	n := make(map[string]int)
	for range 100 {
		c := f.ask(t.Context(), newAsk(skip...))
		n[c.address]++
		c.slot.Release()
	}
	return n
}

// Conditions of a candidate, apart from limits and ejection.
func TestCandidates(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Weights: []int{1, 0, 1}}, "a:1", "drained:1", "c:1", "unnamed:1")
	assert.Equal(t, map[string]int{"a:1": 50, "c:1": 50}, f.choices(t))
	assert.Equal(t, map[string]int{"c:1": 100}, f.choices(t, "a:1"))
	assert.Equal(t, map[string]int{"": 100}, f.choices(t, "a:1", "c:1"))
	assert.True(t, f.Others([]string{"a:1"}))
	assert.False(t, f.Others([]string{"a:1", "c:1"}))
	assert.ErrorIs(t, f.ask(t.Context(), newAsk("a:1", "c:1")).err, ErrNobody)

	only := f.ask(t.Context(), &Ask{Turn: new(Turn), Only: "drained:1"})
	assert.Equal(t, "drained:1", only.address, "it was reserved")
	only.slot.Release()
	assert.ErrorIs(t, f.ask(t.Context(), &Ask{Turn: new(Turn), Only: "gone:1"}).err, ErrNobody)
}

// A policy is asked with the candidates only, and once more only if they have changed. What it
// says is final: nobody is nobody, and a stranger fails the call.
func TestPolicy(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1, QueueSize: 10}, "a:1", "b:1", "c:1")
	held := f.ask(t.Context(), newAsk("b:1", "c:1"))
	var seen []string
	answer := func(u *reverseproxy.Upstream) *Ask {
		a := newAsk("c:1")
		a.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
			for _, u := range fit {
				seen = append(seen, u.Dial)
			}
			return u
		}
		return a
	}
	assert.ErrorContains(t, f.ask(t.Context(), answer(upstreams("b:1")[0])).err, "none of its candidates")
	assert.Equal(t, []string{"b:1"}, seen)

	// it wants none of those that are free, and waits for the one that is not
	seen = nil
	got := f.asks(t, answer(nil))
	assert.Equal(t, []string{"b:1"}, seen)
	held.slot.Release()
	assert.ErrorIs(t, (<-got).err, ErrNobody)
	assert.Equal(t, []string{"b:1", "a:1", "b:1"}, seen)
}

// A slot can be released more than once, by whoever has it, and nil is a slot of nobody.
func TestSlot(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{}, "a:1")
	c := f.ask(t.Context(), newAsk())
	at := f.shared.Get(telemetry.Encode, "a:1")
	assert.Equal(t, 1, at.InFlight())
	c.slot.Release()
	c.slot.Release()
	(*Slot)(nil).Release()
	assert.Zero(t, at.InFlight())
	assert.Zero(t, f.ask(t.Context(), new(Ask)).slot.Since, "it takes no slot")
	assert.Zero(t, at.InFlight())
}

// An instance that is reserved counts for policies that go by load, and takes no slot from
// anybody. The call that it is for waits for it alone.
func TestReserve(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1, QueueSize: 3}, "a:1", "b:1")
	var reserved []*Slot
	spread := map[string]int{}
	for range 2*1 + 3 {
		a := &Ask{Turn: new(Turn), Early: true}
		a.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
			return leastLoaded{}.Select(fit, asking(t, a), nil)
		}
		u, slot, err := f.Choose(t.Context(), f.Upstreams(), a)
		require.NoError(t, err)
		spread[u.Dial]++
		reserved = append(reserved, slot)
	}
	assert.InDelta(t, spread["a:1"], spread["b:1"], 1)
	_, _, err := f.Choose(t.Context(), f.Upstreams(), &Ask{Turn: new(Turn), Early: true})
	assert.Equal(t, BusyError{"the queue is full (queue_size 3)"}, err, "it has a bound")

	text := f.ask(t.Context(), newAsk("b:1"))
	require.Equal(t, "a:1", text.address, "it starves nobody")
	got := f.asks(t, &Ask{Turn: new(Turn), Only: "a:1"})
	b := f.ask(t.Context(), &Ask{Turn: new(Turn), Only: "b:1"})
	_ = b
	text.slot.Release()
	c := <-got
	assert.Equal(t, "a:1", c.address)
	c.slot.Release()
	b.slot.Release()
	for _, slot := range reserved {
		slot.Release()
	}
	u, slot, err := f.Choose(t.Context(), f.Upstreams(), &Ask{Turn: new(Turn), Early: true, Policy: f.roundRobin})
	require.NoError(t, err)
	assert.NotNil(t, u)
	slot.Release()
}

// What is not used for long is forgotten with its metrics, unless a configuration names it or
// it has something to do.
func TestInstancesAreForgotten(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{}, "named:1", "busy:1")
	shared := f.shared
	c := f.ask(t.Context(), newAsk("named:1"))
	for _, address := range []string{"named:1", "busy:1", "gone:1", "lately:1"} {
		i := shared.Get(telemetry.Encode, address)
		i.Failed(telemetry.Broken)
		if address == "gone:1" {
			i.eject(time.Now())
		}
		if address != "lately:1" {
			i.used = time.Now().Add(-2 * keptFor)
		}
	}
	shared.PutInForce([]*Dispatcher{shared.New(Settings{Stage: telemetry.Encode}, upstreams("named:1"))})
	shared.Get(telemetry.Encode, "new:1")
	var known []string
	shared.Range(func(i *Instance) { known = append(known, i.Address) })
	assert.ElementsMatch(t, []string{"named:1", "busy:1", "lately:1", "new:1"}, known)
	assert.False(t, shared.metrics.UpstreamFailures.DeleteLabelValues(telemetry.Encode, "gone:1"), "its metrics stay")
	assert.Zero(t, shared.ejected.Load())
	c.slot.Release()
}

// A dynamic pool whose source tells the same instances after a long time does not go on with
// those that have been forgotten.
func TestForgottenInstancesComeBack(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Dynamic: true})
	f.tell("a:1")
	f.shared.Get(f.Stage, "a:1").used = time.Now().Add(-2 * keptFor)
	f.shared.Get(f.Stage, "new:1")
	f.tell("a:1")
	c := f.ask(t.Context(), newAsk())
	assert.Equal(t, 1, f.shared.Get(f.Stage, "a:1").InFlight())
	c.slot.Release()
}

func TestRecord(t *testing.T) {
	t.Parallel()
	i := NewInstances(telemetry.NewMetrics()).Get(telemetry.Encode, "a:1")
	assert.Equal(t, Summary{}, i.Summary(time.Minute))
	for n := range 3 * maxKept {
		i.Answered(time.Duration(n))
		i.Failed(telemetry.Refused)
	}
	assert.Len(t, i.times, maxKept)
	s := i.Summary(time.Minute)
	assert.Equal(t, 3*maxKept, s.Answers)
	assert.Equal(t, maxKept, s.Recent)
	assert.Equal(t, telemetry.Refused, s.Last.Reason)
	assert.Zero(t, i.Summary(0).Recent)
	assert.InDelta(t, 2.5*maxKept, float64(s.Median), 1)
	assert.InDelta(t, 2.95*maxKept, float64(s.P95), 1)

	for _, tc := range []struct{ blocks, says, changed bool }{
		{true, true, false}, {false, false, false}, {false, true, true}, {false, true, false}, {true, true, true},
	} {
		assert.Equal(t, tc.changed, i.HandedOver(tc.blocks, tc.says))
	}
	s = i.Summary(0)
	assert.Equal(t, []int{2, 3}, []int{s.Blocks, s.None})
}

// BenchmarkChoice is what a choice costs beside the policy's own, with a limit, of which one
// slot is taken at each instance.
func BenchmarkChoice(b *testing.B) {
	for _, n := range []int{4, 64, 256} {
		b.Run(fmt.Sprintf("%d instances", n), func(b *testing.B) {
			f := benchmark(b, n, 2)
			for b.Loop() {
				f.ask(b.Context(), &Ask{Turn: new(Turn), Policy: lastOne}).slot.Release()
			}
		})
	}
}

// BenchmarkLock is how long the lock of all queues is held for a slot that becomes free and is
// taken by who is next, with so many instances and calls that wait.
func BenchmarkLock(b *testing.B) {
	for _, n := range []struct{ instances, waiting int }{{4, 10}, {64, 10}, {256, 10}, {4, 1000}, {4, 10000}} {
		b.Run(fmt.Sprintf("%d instances, %d wait", n.instances, n.waiting), func(b *testing.B) {
			f := benchmark(b, n.instances, 1)
			at := f.newest.Load().instances[0]
			var wg sync.WaitGroup
			ctx, cancel := context.WithCancel(b.Context())
			for range n.waiting {
				wg.Go(func() { f.ask(ctx, &Ask{Turn: new(Turn), Policy: lastOne}) })
			}
			for int(f.queue.waiting.Load()) < n.waiting {
				time.Sleep(time.Millisecond)
			}
			f.shared.mu.Lock()
			for b.Loop() {
				at.taken.Add(-1)
				f.offerLocked(at)
				w := f.queue.turns.Front().Value.(*Turn).waiters.Front().Value.(*waiter)
				f.endOffer(w)
				at.taken.Add(1)
				f.queue.turns.MoveToBack(w.ask.Turn.place)
			}
			f.shared.mu.Unlock()
			cancel()
			wg.Wait()
		})
	}
}

func benchmark(b *testing.B, instances, limit int) *fixture {
	var addresses []string
	for i := range instances {
		addresses = append(addresses, fmt.Sprintf("10.0.0.%d:8000", i))
	}
	f := newFixture(b, Settings{Limit: limit, QueueSize: 1 << 20, QueueTime: time.Hour}, addresses...)
	for _, address := range addresses {
		held := f.ask(b.Context(), &Ask{Turn: new(Turn), Only: address}).slot
		b.Cleanup(held.Release)
	}
	return f
}

func lastOne(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
	return fit[len(fit)-1]
}
