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
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// failsAt returns a failed attempt at an instance.
func failsAt(a *attempts, at string, why telemetry.Reason, status int) *failure {
	by := a.pool.NotSent(why, assert.AnError)
	by.Chosen, by.Status, by.Body, by.Reached = []string{at}, status, new(body.Segments), why != telemetry.Refused
	return newFailure(by, nil)
}

// succeedsAt makes an attempt at an instance succeed.
func (a *attempts) succeedsAt(at string) {
	a.attempt = a.pool.NotSent("", nil)
	a.attempt.Chosen, a.attempt.Body, a.attempt.Selected = []string{at}, new(body.Segments), time.Now()
	a.succeeds()
}

// ofEncoders loads a handler with these encoders.
func ofEncoders(t *testing.T, options string, encoders ...string) *exchange {
	h := loadAlone(t, fmt.Sprintf(`{"encode":{%s,"health_checks":{"active":{}}},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}%s}`, upstreamsOf(encoders), options))
	return &exchange{h: h, id: "test"}
}

// Only a further attempt that fails at an engine is charged to the retry budget.
func TestWhatTheRetryBudgetPaysFor(t *testing.T) {
	for name, tc := range map[string]struct {
		second telemetry.Reason
		status int
		cost   float64
	}{
		"broken":   {telemetry.Broken, 0, 1},
		"500":      {telemetry.BadStatus, 500, 1},
		"time-out": {telemetry.TimedOut, 0, 1},
		"429":      {telemetry.BadStatus, 429, 1},
		"400":      {telemetry.BadStatus, 400, 0},
		"refused":  {telemetry.Refused, 0, 0},
		"canceled": {telemetry.Canceled, 0, 0},
		"no room":  {telemetry.Overloaded, 0, 0},
		"nobody":   {telemetry.Unavailable, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			x := ofEncoders(t, `,"retries":9`, "a:1", "b:1", "c:1")
			a := x.h.attempts(x.h.site.Encode)
			for range 5 { // stay below the maximum, where refills are lost
				a.pool.Budget.Charge(time.Now())
			}
			before := a.pool.Budget.Tokens(time.Now())
			x.settle(a, failsAt(a, "a:1", telemetry.Broken, 0))
			require.True(t, a.paid)
			assert.InDelta(t, before, a.pool.Budget.Tokens(time.Now()), 0.1, "the first attempt costs nothing")
			x.settle(a, failsAt(a, "b:1", tc.second, tc.status))
			assert.InDelta(t, before-tc.cost, a.pool.Budget.Tokens(time.Now()), 0.1)
		})
	}
}

// If the retry budget is spent, there is no further attempt.
func TestSpentRetryBudget(t *testing.T) {
	x := ofEncoders(t, `,"retries":9`, "a:1", "b:1", "c:1")
	a := x.h.attempts(x.h.site.Encode)
	for range 100 {
		a.pool.Budget.Charge(time.Now())
	}
	spent := testutil.ToFloat64(x.h.process.Metrics.BudgetSpent.WithLabelValues("encode"))
	a.begun = time.Now()
	free := failsAt(a, "a:1", telemetry.Refused, 0)
	x.settle(a, free)
	assert.False(t, free.final, "a refused connection costs nothing")
	f := failsAt(a, "b:1", telemetry.Broken, 0)
	x.settle(a, f)
	assert.True(t, f.final && f.unpaid)
	x.h.EncodeOptional = true
	assert.False(t, x.h.mayBeOptional(f), "another encoder could have been asked")
	assert.EqualValues(t, spent+1, testutil.ToFloat64(x.h.process.Metrics.BudgetSpent.WithLabelValues("encode")))
}

// Only failures of the engine count towards ejection, and only if the request then succeeds elsewhere.
func TestWhatCountsAgainstAnInstance(t *testing.T) {
	const enough = 10 // failures for an ejection
	for name, tc := range map[string]struct {
		reason  telemetry.Reason
		status  int
		counts  bool
		nowhere bool // the request fails at all instances
	}{
		"500":            {reason: telemetry.BadStatus, status: 500, counts: true},
		"503":            {reason: telemetry.BadStatus, status: 503, counts: true},
		"time-out":       {reason: telemetry.TimedOut, counts: true},
		"broken":         {reason: telemetry.Broken, counts: true},
		"429":            {reason: telemetry.BadStatus, status: http.StatusTooManyRequests},
		"400":            {reason: telemetry.BadStatus, status: 400},
		"canceled":       {reason: telemetry.Canceled},
		"refused":        {reason: telemetry.Refused},
		"full":           {reason: telemetry.Overloaded},
		"500 everywhere": {reason: telemetry.BadStatus, status: 500, nowhere: true},
	} {
		t.Run(name, func(t *testing.T) {
			bad, good := "bad:1", "good:1"
			x := ofEncoders(t, "", bad, good)
			pool := x.h.site.Encode
			for range enough {
				a := x.h.attempts(pool)
				x.settle(a, failsAt(a, bad, tc.reason, tc.status))
				if tc.nowhere {
					x.settle(a, failsAt(a, good, tc.reason, tc.status))
				} else {
					a.succeedsAt(good)
				}
			}
			assert.Equal(t, tc.counts, pool.Instance(bad).IsEjected())
			assert.False(t, pool.Instance(good).IsEjected())
			if tc.counts {
				a := x.h.attempts(pool)
				a.succeedsAt(bad)
			}
			assert.False(t, pool.Instance(bad).IsEjected(), "an instance that has served requests since")
		})
	}
}

// The first prefill answer without blocks is logged, and the first one with blocks after that.
// Answers that do not show whether the instance hands blocks over do not count.
func TestNoteHandOver(t *testing.T) {
	h := loadAlone(t, `{"encode":{"upstreams":[{"dial":"a:1"}],"health_checks":{"active":{}}},"prefill":{"upstreams":[{"dial":"p:1"}],"health_checks":{"active":{}}},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}}`)
	logs := observe(h)
	const length, stop = `{"choices":[{"finish_reason":"length"}]}`, `{"choices":[{"finish_reason":"stop"}]}`
	a := h.site.Prefill.NotSent("", nil)
	a.Chosen = []string{"p:1"}
	for i, tc := range []struct {
		blocks bool
		answer string
		lines  int
	}{{true, length, 0}, {false, stop, 0}, {false, length, 1}, {false, length, 1}, {true, stop, 2}, {true, length, 2}} {
		h.noteHandOver(a, tc.blocks, []byte(tc.answer))
		assert.Equal(t, tc.lines, logs.Len(), i)
	}
}

// An attempt has a new id only if an engine may have received the previous one.
func TestAttemptIDs(t *testing.T) {
	t.Parallel()
	a := &attempts{attempt: new(engine.Attempt)}
	assert.Equal(t, "x", a.id("x"))
	a.sent()
	assert.Equal(t, "x", a.id("x"))
	a.attempt.Reached = true
	a.sent()
	assert.Regexp(t, "^x-[0-9a-f]{6}$", a.id("x"))
}
