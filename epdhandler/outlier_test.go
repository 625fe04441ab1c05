package epdhandler

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// record is what happens at an instance, a second later each time.
type record struct {
	h   *history
	now time.Time
}

func newRecord(t *testing.T) *record {
	h := historyOf(instance{"encode", t.Name()})
	t.Cleanup(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.outlier.end()
		h.outlier = outlier{}
	})
	return &record{h, time.Now()}
}

// fails has a request fail there and then succeed elsewhere.
func (r *record) fails(weight float64) {
	r.now = r.now.Add(time.Second)
	s := suspect{failed: r.now, chosen: r.now, weight: weight}
	r.h.try(r.now)
	r.h.leave(r.now)
	r.h.fails(r.now, r.now)
	if r.h.convict(s) {
		r.h.eject(r.now)
	}
}

func (r *record) succeeds() bool {
	r.now = r.now.Add(time.Second)
	return r.h.succeeds(r.now, r.now)
}

// left is for how much longer it gets no request.
func (r *record) left() time.Duration {
	if _, out := r.h.isOut(r.now); !out {
		return 0
	}
	return r.h.outlier.until.Sub(r.now)
}

func TestEjection(t *testing.T) {
	t.Run("five failures in a row", func(t *testing.T) {
		r := newRecord(t)
		for range strikesOut - 1 {
			r.fails(1)
		}
		assert.False(t, r.succeeds())
		for range strikesOut - 1 {
			r.fails(1)
			assert.False(t, r.h.isEjected())
		}
		r.fails(1)
		assert.True(t, r.h.isEjected())
		assert.Equal(t, ejectionTime, r.left())
		r.now = r.now.Add(ejectionTime)
		assert.Zero(t, r.left())
		assert.True(t, r.h.isEjected(), "it has proved nothing yet")
		assert.True(t, r.succeeds())
		assert.False(t, r.h.isEjected())
		assert.Zero(t, ejectedNow.Load())
	})
	t.Run("what others may have lost counts half", func(t *testing.T) {
		r := newRecord(t)
		for range 2*strikesOut - 1 {
			r.fails(0.5)
			assert.False(t, r.h.isEjected())
		}
		r.fails(0.5)
		assert.True(t, r.h.isEjected())
	})
	t.Run("for longer each time", func(t *testing.T) {
		r := newRecord(t)
		for range strikesOut {
			r.fails(1)
		}
		for n := 2; n < 100; n++ {
			r.now = r.h.outlier.until
			r.fails(1)
			assert.Equal(t, min(time.Duration(n)*ejectionTime, maxEjectionTime), r.left())
		}
		r.now = r.h.outlier.until
		assert.True(t, r.succeeds())
		for range strikesOut {
			r.fails(1)
		}
		assert.Equal(t, ejectionTime, r.left(), "a success resets it")
	})
	t.Run("a probe that fails everywhere", func(t *testing.T) {
		r := newRecord(t)
		for range strikesOut {
			r.fails(1)
		}
		r.now = r.h.outlier.until.Add(time.Second)
		r.h.fails(r.now, r.now)
		assert.Equal(t, ejectionTime, r.left(), "does not make it longer")
	})
	t.Run("what began before", func(t *testing.T) {
		r := newRecord(t)
		old := suspect{failed: r.now, weight: 1}
		r.succeeds()
		for range 2 * strikesOut {
			assert.False(t, r.h.convict(old), "it has worked since")
		}
		for range strikesOut {
			r.fails(1)
		}
		assert.False(t, r.h.convict(suspect{failed: r.now, weight: 1}), "was in flight")
		assert.False(t, r.h.succeeds(time.Time{}, r.now), "was in flight")
		assert.True(t, r.h.isEjected())
	})
}

// ejectAt ejects instances as of a while ago.
func ejectAt(t *testing.T, ago time.Duration, addresses ...string) {
	for _, address := range addresses {
		h := historyOf(instance{"encode", address})
		h.eject(time.Now().Add(-ago))
		t.Cleanup(func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.outlier.end()
		})
	}
}

// choices are how often each instance is chosen for a hundred calls that leave these out.
func (h *Handler) choices(t *testing.T, skip ...string) map[string]int {
	n := make(map[string]int)
	for range 100 {
		c := newCall(new(turn), skip...)
		n[h.ask(t.Context(), c)]++
		freeSlot(c)
	}
	return n
}

// ofEncoders loads a handler with these encoders.
func ofEncoders(t *testing.T, options string, dials ...string) *Handler {
	list := ""
	for _, d := range dials {
		list += fmt.Sprintf(`,{"dial":"%s"}`, d)
	}
	h, err := load(t, fmt.Sprintf(`{"encode":{"upstreams":[%s],"health_checks":{"active":{}}},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}%s}`, list[1:], options))
	require.NoError(t, err)
	return h
}

func TestEjectedInstancesGetNoRequests(t *testing.T) {
	t.Run("half of them", func(t *testing.T) {
		h := ofEncoders(t, "", "o1:1", "o2:1", "o3:1", "o4:1")
		ejectAt(t, 2*time.Second, "o3:1")
		ejectAt(t, time.Second, "o1:1")
		assert.Equal(t, map[string]int{"o2:1": 50, "o4:1": 50}, h.choices(t))
		ejectAt(t, 0, "o2:1") // by somebody else
		assert.Equal(t, map[string]int{"o2:1": 50, "o4:1": 50}, h.choices(t), "more than half")
	})
	t.Run("the only one", func(t *testing.T) {
		h := ofEncoders(t, "", "o1:1")
		ejectAt(t, 0, "o1:1")
		assert.Equal(t, map[string]int{"o1:1": 100}, h.choices(t))
	})
	t.Run("nobody else", func(t *testing.T) {
		h := ofEncoders(t, "", "o1:1", "o2:1", "o3:1", "o4:1")
		ejectAt(t, 0, "o1:1", "o2:1")
		assert.Equal(t, map[string]int{"o1:1": 50, "o2:1": 50}, h.choices(t, "o3:1", "o4:1"))
		assert.Equal(t, map[string]int{"o4:1": 100}, h.choices(t, "o3:1"))
		assert.Equal(t, map[string]int{"": 100}, h.choices(t, "o1:1", "o2:1", "o3:1", "o4:1"))
	})
	t.Run("turned off", func(t *testing.T) {
		h := ofEncoders(t, `,"max_ejected":0`, "o1:1", "o2:1")
		ejectAt(t, 0, "o1:1")
		assert.Equal(t, map[string]int{"o1:1": 50, "o2:1": 50}, h.choices(t))
	})
	t.Run("less than one", func(t *testing.T) {
		h := ofEncoders(t, `,"max_ejected":1`, "o1:1", "o2:1", "o3:1", "o4:1")
		ejectAt(t, time.Second, "o1:1")
		assert.Zero(t, h.choices(t)["o1:1"])
	})
	t.Run("a quarter", func(t *testing.T) {
		h := ofEncoders(t, `,"max_ejected":25`, "o1:1", "o2:1", "o3:1", "o4:1")
		ejectAt(t, time.Second, "o1:1")
		ejectAt(t, 0, "o2:1")
		assert.Zero(t, h.choices(t)["o1:1"])
		assert.NotZero(t, h.choices(t)["o2:1"])
	})
}

// After its time an instance gets one request, and others only when that has succeeded.
func TestEjectedInstanceProvesItself(t *testing.T) {
	h := ofEncoders(t, "", "p1:1", "p2:1")
	ejectAt(t, ejectionTime, "p1:1")
	at := instance{"encode", "p1:1"}
	probe := func() *call {
		for range 100 {
			c := newCall(new(turn))
			c.body = body.Join([]byte("{}"))
			if h.ask(t.Context(), c) == at.address {
				return c
			}
			freeSlot(c)
		}
		require.Fail(t, "it gets no request")
		return nil
	}
	first := probe()
	assert.Equal(t, map[string]int{"p2:1": 100}, h.choices(t), "a second one")
	freeSlot(first) // without an answer
	second := probe()
	historyOf(at).fails(second.chosenAt, time.Now())
	freeSlot(second)
	assert.Equal(t, map[string]int{"p2:1": 100}, h.choices(t), "it has failed again")

	historyOf(at).outlier.until = time.Now()
	third := probe()
	h.encode.clear(third, time.Now())
	assert.Equal(t, map[string]int{"p1:1": 50, "p2:1": 50}, h.choices(t))
	freeSlot(third)
}

// Where others are only busy, a request waits for them.
func TestEjectedInstanceIsNoSlot(t *testing.T) {
	h := limited(t, "", "w1:1", "w2:1")
	ejectAt(t, 0, "w1:1")
	held := newCall(new(turn))
	require.Equal(t, "w2:1", h.ask(t.Context(), held))
	got, next := make(chan string, 1), newCall(new(turn))
	h.asks(t, next, func(address string) { got <- address })
	freeSlot(held)
	assert.Equal(t, "w2:1", <-got)
	freeSlot(next)
}

// What counts: a failure of the engine, if the request then succeeds elsewhere. Never so many
// that less than half of the pool is left.
func TestWhatCountsAgainstAnInstance(t *testing.T) {
	for name, tc := range map[string]struct {
		reason  reason
		status  int
		counts  bool
		nowhere bool // it does not succeed
	}{
		"500":            {reason: badStatus, status: 500, counts: true},
		"503":            {reason: badStatus, status: 503, counts: true},
		"time-out":       {reason: timedOut, counts: true},
		"broken":         {reason: broken, counts: true},
		"429":            {reason: badStatus, status: http.StatusTooManyRequests},
		"400":            {reason: badStatus, status: 400},
		"canceled":       {reason: canceled},
		"refused":        {reason: refused},
		"full":           {reason: overloaded},
		"500 everywhere": {reason: badStatus, status: 500, nowhere: true},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := t.Name()+"bad:1", t.Name()+"good:1"
			h := ofEncoders(t, "", bad, good)
			at := instance{"encode", bad}
			before := testutil.ToFloat64(upstreamEjections.WithLabelValues("encode", bad))
			for range 2 * strikesOut {
				x := &exchange{h: h}
				a := x.attempts(h.encode)
				c := &call{chosen: []string{bad}, reached: tc.reason != refused, body: body.Join([]byte("{}"))}
				a.begin(c)
				f := &failure{reason: tc.reason, status: tc.status, stage: "encode", call: c}
				f.verdict = f.explain()
				x.settle(a, f)
				again := &call{chosen: []string{good}, reached: true, body: body.Join([]byte("{}"))}
				a.begin(again)
				if tc.nowhere {
					x.settle(a, &failure{reason: tc.reason, status: tc.status, stage: "encode", call: again})
				} else {
					a.succeeds()
				}
			}
			assert.Equal(t, tc.counts, historyOf(at).isEjected())
			assert.Equal(t, tc.counts, testutil.ToFloat64(upstreamEjections.WithLabelValues("encode", bad)) == before+1)
			assert.False(t, historyOf(instance{"encode", good}).isEjected())

			for range 2 * strikesOut { // now the other one fails as well
				x := &exchange{h: h}
				a := x.attempts(h.encode)
				a.suspects = []suspect{{at: instance{"encode", good}, failed: time.Now().Add(time.Second), weight: 1}}
				a.begin(&call{chosen: []string{bad}, reached: true, body: body.Join([]byte("{}"))})
				a.succeeds()
			}
			assert.Equal(t, !tc.counts, historyOf(instance{"encode", good}).isEjected(), "the last one that is left")
			for _, address := range []string{bad, good} {
				historyOf(instance{"encode", address}).outlier.end()
			}
		})
	}
}

func BenchmarkOutlier(b *testing.B) {
	h := historyOf(instance{"encode", "bench:1"})
	b.Run("success", func(b *testing.B) {
		for b.Loop() {
			h.succeeds(time.Time{}, time.Now())
		}
	})
	b.Run("look-up and success", func(b *testing.B) {
		for b.Loop() {
			historyOf(instance{"encode", "bench:1"}).succeeds(time.Time{}, time.Now())
		}
	})
}
