package dispatch

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var oneEach = Settings{Limit: 1, QueueSize: 1000}

// Requests take turns, in the order in which they came; so do the items of each.
func TestQueueTakesTurns(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1")
	first := f.ask(t.Context(), newAsk())
	a, b, c := new(Turn), new(Turn), new(Turn)
	order := make(chan string, 6)
	var wg sync.WaitGroup
	for _, item := range []struct {
		name string
		of   *Turn
	}{{"a1", a}, {"a2", a}, {"a3", a}, {"b1", b}, {"c1", c}, {"b2", b}} {
		got := f.asks(t, &Ask{Turn: item.of})
		wg.Go(func() {
			c := <-got
			order <- item.name
			c.slot.Release()
		})
	}
	first.slot.Release()
	wg.Wait()
	close(order)
	var names []string
	for name := range order {
		names = append(names, name)
	}
	assert.Equal(t, []string{"a1", "b1", "c1", "a2", "b2", "a3"}, names)
}

// A slot at an instance at which a request has failed goes to the next request.
func TestQueuePassesOverWhoHasFailedThere(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	a, b := f.ask(t.Context(), newAsk("b:1")), f.ask(t.Context(), newAsk("a:1"))
	x, y := f.asks(t, newAsk("a:1")), f.asks(t, newAsk())
	a.slot.Release()
	gotY := <-y
	assert.Equal(t, "a:1", gotY.address)
	b.slot.Release()
	gotX := <-x
	assert.Equal(t, "b:1", gotX.address)
	gotX.slot.Release()
	gotY.slot.Release()
}

// Who has failed everywhere does not wait for anybody.
func TestQueueIsNotForThoseWithNobodyLeft(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	assert.ErrorIs(t, f.ask(t.Context(), newAsk("a:1", "b:1")).err, ErrNobody)
}

// A request that had a slot already is not refused, however many wait.
func TestQueueLetsWhoIsInGoOn(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1, QueueSize: 1}, "a:1")
	in := new(Turn)
	first := f.ask(t.Context(), &Ask{Turn: in})
	one, two := f.asks(t, newAsk()), f.asks(t, &Ask{Turn: in})
	assert.True(t, f.Full())
	assert.Equal(t, BusyError{"the queue is full (queue_size 1)"}, f.ask(t.Context(), newAsk()).err)
	first.slot.Release()
	c := <-one
	c.slot.Release()
	c = <-two
	c.slot.Release()
	assert.False(t, f.Full())
}

// Without a queue, a call that finds no free slot is refused at once.
func TestNoQueue(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1}, "a:1")
	assert.False(t, f.Full())
	c := f.ask(t.Context(), newAsk())
	assert.True(t, f.Full())
	assert.Equal(t, BusyError{"the queue is full (queue_size 0)"}, f.ask(t.Context(), newAsk()).err)
	c.slot.Release()
	assert.False(t, f.Full())
}

// A wait ends with queue_timeout, with the longer patience of a call, or with its context.
func TestQueueTimeout(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1, QueueSize: 9, QueueTime: time.Millisecond}, "a:1")
	c := f.ask(t.Context(), newAsk())
	assert.Equal(t, BusyError{"waited 1ms for an instance (queue_timeout)"}, f.ask(t.Context(), newAsk()).err)
	assert.Equal(t, BusyError{"waited 2ms for an instance (kv_lease)"}, f.ask(t.Context(), &Ask{Turn: new(Turn), Patience: 2 * time.Millisecond}).err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, f.ask(ctx, &Ask{Turn: new(Turn), Patience: time.Hour}).err, context.Canceled)
	c.slot.Release()
}

// However calls come and go, no instance has more than its limit, everybody is served,
// and nothing stays behind.
func TestQueueInDisorder(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1", "c:1")
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		taken  = map[string]int{}
		served int
	)
	for range 16 {
		wg.Go(func() {
			of := new(Turn)
			for range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if rand.IntN(4) == 0 {
					go cancel()
				}
				a := &Ask{Turn: of}
				if rand.IntN(4) == 0 {
					a.Skip = []string{"b:1"}
				}
				c := f.ask(ctx, a)
				mu.Lock()
				if c.err == nil {
					taken[c.address]++
					served++
					assert.LessOrEqual(t, taken[c.address], 1)
				} else {
					assert.Error(t, ctx.Err())
				}
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				if c.err == nil {
					taken[c.address]--
				}
				mu.Unlock()
				c.slot.Release()
				cancel()
			}
		})
	}
	wg.Wait()
	assert.Greater(t, served, 1000)
}

// A slot that is free is for who waits, not for who comes at that moment.
func TestQueueIsNotJumped(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1")
	for range 100 {
		first := f.ask(t.Context(), newAsk())
		order := make(chan string, 2)
		waits := f.asks(t, newAsk())
		go func() {
			c := <-waits
			order <- "waits"
			c.slot.Release()
		}()
		first.slot.Release()
		comes := f.ask(t.Context(), newAsk())
		order <- "comes"
		comes.slot.Release()
		require.Equal(t, "waits", <-order)
		<-order
	}
}

// Those who wait get the slots of a new instance at once, all that it has, in turn, as soon as
// anybody hears of it; and none of one that is gone.
func TestWhoWaitsSeesNewInstances(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Settings{Dynamic: true, Limit: 2, QueueSize: 10})
		f.tell("a:1")
		held := []chosen{f.ask(t.Context(), newAsk()), f.ask(t.Context(), newAsk())}
		var waiting []<-chan chosen
		for range 3 {
			waiting = append(waiting, f.asks(t, newAsk()))
		}
		time.Sleep(2 * ownLookGap)
		f.tell("a:1", "b:1")
		for _, got := range waiting[:2] {
			c := <-got
			assert.Equal(t, "b:1", c.address)
			held = append(held, c)
		}
		time.Sleep(2 * ownLookGap)
		f.tell("b:1")
		held[0].slot.Release()
		synctest.Wait()
		assert.Equal(t, 1, f.calls(), "a is gone")
		held[2].slot.Release()
		c := <-waiting[2]
		assert.Equal(t, "b:1", c.address)
		c.slot.Release()
		held[1].slot.Release()
		held[3].slot.Release()
	})
}

// Calls choose among the upstreams that there are for them, which are others for other clients.
func TestUpstreamsOfACall(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Dynamic: true, Limit: 2, QueueSize: 100})
	var wg sync.WaitGroup
	for _, tenant := range []string{"a", "b"} {
		list := upstreams(tenant+"1", tenant+"2")
		for range 16 {
			wg.Go(func() {
				for range 50 {
					a := newAsk()
					a.Policy, a.LookUp = f.roundRobin, func() reverseproxy.UpstreamPool { return list }
					u, slot, err := f.Choose(t.Context(), list, a)
					if !assert.NoError(t, err) {
						return
					}
					assert.Contains(t, list, u)
					slot.Release()
				}
			})
		}
	}
	wg.Wait()
}

// Instances that the source has never told before are found also when no one may wait.
func TestDynamicPoolIsNeverFull(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Dynamic: true, Limit: 1})
	f.tell("a:1")
	c := f.ask(t.Context(), newAsk())
	assert.False(t, f.Full())
	assert.Error(t, f.ask(t.Context(), newAsk()).err)
	f.tell("a:1", "b:1")
	other := f.ask(t.Context(), newAsk())
	assert.Equal(t, "b:1", other.address)
	c.slot.Release()
	other.slot.Release()
}

// A full queue refuses nobody for whom there is a slot.
func TestFullQueueAndAFreeSlot(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1, QueueSize: 1}, "a:1", "b:1")
	a := f.ask(t.Context(), newAsk("b:1"))
	waits := f.asks(t, newAsk("b:1"))
	b := f.ask(t.Context(), newAsk())
	assert.Equal(t, "b:1", b.address)
	b.slot.Release()
	a.slot.Release()
	c := <-waits
	c.slot.Release()
}

// A call leaves the instance that was reserved for it if that is busy or down and another one is not.
func TestMovable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Settings{Limit: 1, QueueSize: 9}, "a:1", "b:1")
		a := f.ask(t.Context(), newAsk("b:1"))
		pinned := func() *Ask { return &Ask{Turn: new(Turn), Only: "a:1", Movable: true} }
		assert.ErrorIs(t, f.ask(t.Context(), pinned()).err, ErrElsewhere)
		b := f.ask(t.Context(), newAsk())
		waits := f.asks(t, pinned())
		b.slot.Release() // for nobody: it finds out by itself
		c := <-waits
		assert.ErrorIs(t, c.err, ErrElsewhere)
		_, reserved, err := f.Choose(t.Context(), f.Upstreams(), &Ask{Turn: new(Turn), Early: true, Policy: f.roundRobin})
		require.NoError(t, err)
		waits = f.asks(t, pinned())
		time.Sleep(2 * lookPeriod)
		assert.Equal(t, 1, f.calls(), "the other one is reserved")
		a.slot.Release()
		c = <-waits
		assert.Equal(t, "a:1", c.address)
		c.slot.Release()
		reserved.Release()
	})
}

// A call does not wait for the end of queue_timeout behind a call that hangs, although there is always
// somebody whose media are being encoded for the other instance.
func TestMovableThatHasWaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Settings{Limit: 1, QueueSize: 9, QueueTime: time.Minute}, "a:1", "b:1")
		hangs := f.ask(t.Context(), newAsk("b:1"))
		_, reserved, err := f.Choose(t.Context(), f.Upstreams(), &Ask{Turn: new(Turn), Early: true, Skip: []string{"a:1"}, Policy: f.roundRobin})
		require.NoError(t, err)
		begun := time.Now()
		assert.ErrorIs(t, f.ask(t.Context(), &Ask{Turn: new(Turn), Only: "a:1", Movable: true}).err, ErrElsewhere)
		assert.InDelta(t, 15, time.Since(begun).Seconds(), 1)
		hangs.slot.Release()
		reserved.Release()
	})
}

// A request for which media have been encoded gets a new reservation, whoever has come meanwhile.
func TestReservationOfAnAdmittedRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1}, "a:1")
	early := func(admitted bool) (*Slot, error) {
		_, s, err := f.Choose(t.Context(), f.Upstreams(), &Ask{Turn: &Turn{Admitted: admitted}, Early: true, Policy: f.roundRobin})
		return s, err
	}
	first, err := early(false)
	require.NoError(t, err)
	_, err = early(false)
	assert.Equal(t, BusyError{"the queue is full (queue_size 0)"}, err)
	again, err := early(true)
	require.NoError(t, err)
	first.Release()
	again.Release()
}

// A policy that declines is not asked again about instances that it has declined.
func TestPolicyThatDeclinesAReservation(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	held, asked := f.ask(t.Context(), newAsk("b:1")), 0
	_, _, err := f.Choose(t.Context(), f.Upstreams(), &Ask{Turn: new(Turn), Early: true, Policy: func(reverseproxy.UpstreamPool) *reverseproxy.Upstream {
		asked++
		return nil
	}})
	assert.ErrorIs(t, err, ErrNobody)
	assert.Equal(t, 1, asked)
	held.slot.Release()
}

// A request's calls share its place in the queue.
func TestCallsOfOneRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Limit: 1, QueueSize: 1, QueueTime: time.Minute}, "a:1", "b:1")
	var wg sync.WaitGroup
	turn := new(Turn)
	for range 8 {
		wg.Go(func() {
			for range 50 {
				c := f.ask(t.Context(), &Ask{Turn: turn})
				assert.NoError(t, c.err)
				c.slot.Release()
			}
		})
	}
	wg.Wait()
}

// A call that waits at its instance is bound to the limit of its own dispatcher.
func TestPinnedCallsAndAnotherLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		one := newFixture(t, oneEach, "a:1")
		three := inProcess(t, one.shared, Settings{Limit: 3, QueueSize: 9, QueueTime: time.Minute}, "a:1")
		first := one.ask(t.Context(), newAsk())
		pinned := one.asks(t, &Ask{Turn: new(Turn), Only: "a:1"})
		second, third := three.ask(t.Context(), newAsk()), three.ask(t.Context(), newAsk())
		waits := three.asks(t, newAsk())
		third.slot.Release()
		c := <-waits
		assert.NoError(t, c.err)
		c.slot.Release()
		second.slot.Release()
		first.slot.Release()
		c = <-pinned
		c.slot.Release()
	})
}

// Calls that wait for one instance hold up nobody who waits for others, and take turns with those
// who wait for any.
func TestPinnedCallsWaitApart(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	a, b := f.ask(t.Context(), newAsk("b:1")), f.ask(t.Context(), newAsk("a:1"))
	first := f.asks(t, &Ask{Turn: new(Turn), Only: "a:1"})
	second := f.asks(t, newAsk())
	third := f.asks(t, &Ask{Turn: new(Turn), Only: "a:1"})
	b.slot.Release()
	c := <-second
	assert.Equal(t, "b:1", c.address)
	c.slot.Release()
	for _, got := range []<-chan chosen{first, third} {
		a.slot.Release()
		a = <-got
		assert.Equal(t, "a:1", a.address)
	}
	a.slot.Release()
}

// A call that waits asks a dynamic source itself, one call at a time.
func TestWhoWaitsLooksUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{Dynamic: true, Limit: 1, QueueSize: 10})
	f.tell("a:1")
	held := f.ask(t.Context(), newAsk())
	a := newAsk()
	a.LookUp = func() reverseproxy.UpstreamPool { return upstreams("a:1", "b:1") }
	c := f.ask(t.Context(), a)
	assert.Equal(t, "b:1", c.address)
	c.slot.Release()
	held.slot.Release()
}

// A policy that hangs keeps the slot that its call was offered for a moment only.
func TestPolicyThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1")
	first := f.ask(t.Context(), newAsk())
	release := make(chan struct{})
	hangs := newAsk()
	hangs.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
		<-release
		return fit[0]
	}
	one, two := f.asks(t, hangs), f.asks(t, newAsk())
	first.slot.Release()
	c := <-two
	assert.Equal(t, "a:1", c.address)
	close(release)
	c.slot.Release()
	c = <-one
	assert.Equal(t, "a:1", c.address, "its turn comes after all")
	c.slot.Release()
}

// An offer goes through the whole queue to the one that can take it, and to nobody if nobody can.
func TestOfferFindsWhoCanTakeIt(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	a, b := f.ask(t.Context(), newAsk("b:1")), f.ask(t.Context(), newAsk("a:1"))
	var others []<-chan chosen
	for range 50 {
		others = append(others, f.asks(t, &Ask{Turn: new(Turn), Only: "b:1"}))
	}
	last := f.asks(t, newAsk("b:1"))
	a.slot.Release()
	c := <-last
	assert.Equal(t, "a:1", c.address)
	c.slot.Release() // for nobody
	assert.Equal(t, 50, f.calls())
	var wg sync.WaitGroup
	for _, got := range others { // in any order: the other offer may still be on its way
		wg.Go(func() {
			c := <-got
			assert.Equal(t, "b:1", c.address)
			c.slot.Release()
		})
	}
	b.slot.Release()
	wg.Wait()
}

// A call whose policy hangs gets no second offer, which would hold up the next slot as well.
func TestPolicyThatHangsGetsNoFurtherOffer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1")
	held := f.ask(t.Context(), newAsk())
	asked, release := make(chan struct{}, 9), make(chan struct{})
	hangs := newAsk()
	hangs.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
		asked <- struct{}{}
		<-release
		return fit[0]
	}
	one := f.asks(t, hangs)
	var others []<-chan chosen
	for range 10 {
		others = append(others, f.asks(t, newAsk()))
	}
	held.slot.Release()
	<-asked
	begun := time.Now()
	for _, other := range others {
		c := <-other
		c.slot.Release()
	}
	assert.Less(t, time.Since(begun), 5*slowPolicy)
	close(release)
	c := <-one
	assert.NoError(t, c.err)
	c.slot.Release()
}

// A call that has waited has no better place in the queue when it chooses again.
func TestQueueForgetsOldOffers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1")
	held, asked := f.ask(t.Context(), newAsk()), 0
	a := newAsk()
	a.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
		asked++
		return fit[0]
	}
	got := f.asks(t, a)
	held.slot.Release()
	first := <-got
	b := f.asks(t, newAsk())
	again := f.asks(t, a)
	assert.Equal(t, 1, asked, "there is no candidate")
	first.slot.Release()
	for _, next := range []<-chan chosen{b, again} {
		c := <-next
		c.slot.Release()
	}
}

// A call sees within moments that another one does not take a slot that was kept for that one
// while it looked.
func TestQueueLooksAgainAfterAnOffer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	a, b := f.ask(t.Context(), newAsk("b:1")), f.ask(t.Context(), newAsk("a:1"))
	x, y := newAsk("a:1"), newAsk()
	y.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
		if fit[0].Dial == "a:1" {
			return fit[0]
		}
		return nil
	}
	gotX := f.asks(t, x) // which first has the offer of a, and passes it on
	gotY := f.asks(t, y) // which is offered b meanwhile, and does not want it
	begun := time.Now()
	f.shared.mu.Lock()
	for _, at := range f.newest.Load().instances {
		at.taken.Add(-1)
		f.offerLocked(at)
	}
	f.shared.mu.Unlock()
	c, d := <-gotX, <-gotY
	assert.Equal(t, []string{"b:1", "a:1"}, []string{c.address, d.address})
	assert.Less(t, time.Since(begun), lookPeriod/2)
	for _, at := range f.newest.Load().instances {
		at.taken.Add(1)
	}
	for _, held := range []chosen{a, b, c, d} {
		held.slot.Release()
	}
}

// Several dispatchers, such as those before and after a reload, share the slots of an instance.
// Who waits in one that has been replaced goes by the limit that is in force.
func TestSlotsAreOfTheProcess(t *testing.T) {
	t.Parallel()
	old := newFixture(t, oneEach, "a:1")
	first := old.ask(t.Context(), newAsk())
	got := old.asks(t, newAsk())
	next := inProcess(t, old.shared, Settings{Limit: 2, QueueSize: 10}, "a:1")
	old.shared.PutInForce([]*Dispatcher{next.Dispatcher})
	old.Retire()
	assert.Equal(t, map[string]int{"encode": 1, "decode": 0}, old.shared.Waiting())
	c := <-got // it looks by itself
	assert.Equal(t, "a:1", c.address)
	waits := next.asks(t, newAsk())
	first.slot.Release()
	w := <-waits
	assert.Equal(t, "a:1", w.address)
	w.slot.Release()
	c.slot.Release()
}

// A slot that nobody in one queue takes is offered to those in the queues of other dispatchers.
func TestOfferGoesToOtherQueues(t *testing.T) {
	t.Parallel()
	f := newFixture(t, oneEach, "a:1", "b:1")
	other := inProcess(t, f.shared, oneEach, "a:1")
	for range 10 { // either queue may have the offer first
		a, b := f.ask(t.Context(), newAsk("b:1")), f.ask(t.Context(), newAsk("a:1"))
		notA, waits := f.asks(t, newAsk("a:1")), other.asks(t, newAsk())
		begun := time.Now()
		a.slot.Release()
		c := <-waits
		assert.Equal(t, "a:1", c.address)
		assert.Less(t, time.Since(begun), lookPeriod/2)
		b.slot.Release()
		c.slot.Release()
		c = <-notA
		assert.Equal(t, "b:1", c.address)
		c.slot.Release()
	}
}
