package dispatch

import (
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// events is what happens at an instance, a second later each time.
type events struct {
	*Instance
	now time.Time
}

func newEvents() *events {
	return &events{NewInstances(telemetry.NewMetrics()).Get(telemetry.Encode, "a:1"), time.Now()}
}

// fails has a call fail there and then succeed elsewhere.
func (e *events) fails(weight float64) {
	e.now = e.now.Add(time.Second)
	e.Fails(e.now, e.now)
	if e.convict(Suspect{Failed: e.now, Chosen: e.now, Weight: weight}) {
		e.eject(e.now)
	}
}

func (e *events) succeeds() bool {
	e.now = e.now.Add(time.Second)
	return e.Succeeds(e.now, e.now)
}

// left is for how much longer it gets no call.
func (e *events) left() time.Duration {
	if _, out := e.isOut(e.now); !out {
		return 0
	}
	return e.ejection.until.Sub(e.now)
}

func (e *events) fail(n int, weight float64) {
	for range n {
		e.fails(weight)
	}
}

func TestEjection(t *testing.T) {
	t.Parallel()
	t.Run("five failures in a row", func(t *testing.T) {
		e := newEvents()
		e.fail(strikesOut-1, 1)
		assert.False(t, e.succeeds())
		e.fail(strikesOut-1, 1)
		assert.False(t, e.IsEjected())
		e.fails(1)
		assert.True(t, e.IsEjected())
		assert.Equal(t, ejectionTime, e.left())
		e.now = e.now.Add(ejectionTime)
		assert.Zero(t, e.left())
		assert.True(t, e.IsEjected(), "it has proved nothing yet")
		assert.True(t, e.succeeds())
		assert.False(t, e.IsEjected())
		assert.Zero(t, e.shared.ejected.Load())
	})
	t.Run("what others may have lost counts half", func(t *testing.T) {
		e := newEvents()
		e.fail(2*strikesOut-1, 0.5)
		assert.False(t, e.IsEjected())
		e.fails(0.5)
		assert.True(t, e.IsEjected())
	})
	t.Run("for longer each time", func(t *testing.T) {
		e := newEvents()
		e.fail(strikesOut, 1)
		for n := 2; n < 100; n++ {
			e.now = e.ejection.until
			e.fails(1)
			assert.Equal(t, min(time.Duration(n)*ejectionTime, maxEjectionTime), e.left())
		}
		e.now = e.ejection.until
		assert.True(t, e.succeeds())
		e.fail(strikesOut, 1)
		assert.Equal(t, ejectionTime, e.left(), "a success resets it")
	})
	t.Run("a probe that fails everywhere", func(t *testing.T) {
		e := newEvents()
		e.fail(strikesOut, 1)
		e.now = e.ejection.until.Add(time.Second)
		e.Fails(e.now, e.now)
		assert.Equal(t, ejectionTime, e.left(), "does not make it longer")
	})
	t.Run("what began before", func(t *testing.T) {
		e := newEvents()
		old := Suspect{Failed: e.now, Weight: 1}
		e.succeeds()
		for range 2 * strikesOut {
			assert.False(t, e.convict(old), "it has worked since")
		}
		e.fail(strikesOut, 1)
		assert.False(t, e.convict(Suspect{Failed: e.now, Weight: 1}), "was in flight")
		assert.False(t, e.Succeeds(time.Time{}, e.now), "was in flight")
		assert.True(t, e.IsEjected())
	})
}

// ejectAt ejects instances as of a while ago.
func (f *fixture) ejectAt(ago time.Duration, addresses ...string) {
	for _, address := range addresses {
		f.shared.Get(f.Stage, address).eject(time.Now().Add(-ago))
	}
}

func TestEjectedInstancesGetNoCalls(t *testing.T) {
	t.Parallel()
	pool := func(t *testing.T, maxEjected int, addresses ...string) *fixture {
		return newFixture(t, Settings{MaxEjected: maxEjected}, addresses...)
	}
	t.Run("half of them", func(t *testing.T) {
		f := pool(t, 50, "o1", "o2", "o3", "o4")
		f.ejectAt(2*time.Second, "o3")
		f.ejectAt(time.Second, "o1")
		assert.Equal(t, map[string]int{"o2": 50, "o4": 50}, f.choices(t))
		f.ejectAt(0, "o2") // by somebody else
		assert.Equal(t, map[string]int{"o2": 50, "o4": 50}, f.choices(t), "more than half")
	})
	t.Run("the only one", func(t *testing.T) {
		f := pool(t, 50, "o1")
		f.ejectAt(0, "o1")
		assert.Equal(t, map[string]int{"o1": 100}, f.choices(t))
	})
	t.Run("nobody else", func(t *testing.T) {
		f := pool(t, 50, "o1", "o2", "o3", "o4")
		f.ejectAt(0, "o1", "o2")
		assert.Equal(t, map[string]int{"o1": 50, "o2": 50}, f.choices(t, "o3", "o4"))
		assert.Equal(t, map[string]int{"o4": 100}, f.choices(t, "o3"))
		assert.Equal(t, map[string]int{"": 100}, f.choices(t, "o1", "o2", "o3", "o4"))
	})
	t.Run("turned off", func(t *testing.T) {
		f := pool(t, 0, "o1", "o2")
		f.ejectAt(0, "o1")
		assert.Equal(t, map[string]int{"o1": 50, "o2": 50}, f.choices(t))
	})
	t.Run("less than one", func(t *testing.T) {
		f := pool(t, 1, "o1", "o2", "o3", "o4")
		f.ejectAt(time.Second, "o1")
		f.ejectAt(0, "o2")
		assert.Zero(t, f.choices(t)["o1"])
		assert.NotZero(t, f.choices(t)["o2"])
	})
	t.Run("others are only busy", func(t *testing.T) {
		f := newFixture(t, Settings{Limit: 1, QueueSize: 9, MaxEjected: 50}, "w1", "w2")
		f.ejectAt(0, "w1")
		held := f.ask(t.Context(), newAsk())
		require.Equal(t, "w2", held.address)
		got := f.asks(t, newAsk())
		held.slot.Release()
		c := <-got
		assert.Equal(t, "w2", c.address)
		c.slot.Release()
	})
}

// A call goes to the instance that was reserved for it even if that is ejected and down.
func TestReservedInstanceIsEjectedAndDown(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{MaxEjected: 50}, "o1", "o2")
	f.ejectAt(0, "o1")
	u := f.Upstreams()[0]
	*(*int32)(reflect.ValueOf(u).Elem().FieldByName("unhealthy").Addr().UnsafePointer()) = 1 // as health checks do
	require.False(t, u.Available())
	c := f.ask(t.Context(), &Ask{Turn: new(Turn), Only: "o1"})
	assert.Equal(t, "o1", c.address)
	c.slot.Release()
}

// After its time an instance gets one call, and others only when that has succeeded.
func TestEjectedInstanceProvesItself(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{MaxEjected: 50}, "p1", "p2")
	f.ejectAt(ejectionTime, "p1")
	at := f.shared.Get(f.Stage, "p1")
	probe := func() *Slot {
		for range 100 {
			c := f.ask(t.Context(), newAsk())
			if c.address == "p1" {
				return c.slot
			}
			c.slot.Release()
		}
		require.Fail(t, "it gets no call")
		return nil
	}
	first := probe()
	assert.Equal(t, map[string]int{"p2": 100}, f.choices(t), "a second one")
	first.Release() // without an answer
	second := probe()
	at.Fails(second.Since, time.Now())
	second.Release()
	assert.Equal(t, map[string]int{"p2": 100}, f.choices(t), "it has failed again")

	at.ejection.until = time.Now()
	third := probe()
	assert.True(t, at.Succeeds(third.Since, time.Now()))
	assert.Equal(t, map[string]int{"p1": 50, "p2": 50}, f.choices(t))
	third.Release()
}

// Never so many are ejected that less than half of the pool is left.
func TestJudge(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{MaxEjected: 50}, "bad", "good")
	var ejected []string
	judge := func(address string) {
		for range strikesOut {
			s := Suspect{At: f.shared.Get(f.Stage, address), Failed: time.Now(), Weight: 1}
			f.Judge([]Suspect{s}, time.Now(), func(at *Instance, length time.Duration) {
				assert.Equal(t, ejectionTime, length)
				ejected = append(ejected, at.Address)
			})
		}
	}
	judge("bad")
	judge("good")
	assert.Equal(t, []string{"bad"}, ejected)
	assert.False(t, f.shared.Get(f.Stage, "good").IsEjected(), "the last one that is left")

	off := newFixture(t, Settings{}, "bad", "good")
	off.Judge([]Suspect{{At: off.shared.Get(off.Stage, "bad"), Failed: time.Now(), Weight: 99}}, time.Now(), nil)
	assert.False(t, off.shared.Get(off.Stage, "bad").IsEjected())
}

func BenchmarkSuccess(b *testing.B) {
	i := NewInstances(telemetry.NewMetrics()).Get(telemetry.Encode, "a:1")
	for b.Loop() {
		i.Succeeds(time.Time{}, time.Now())
	}
}
