package epdhandler

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// A bad instance among four costs nobody a request, whatever the load and from the first one
// on; where nothing works, the load grows by the budget only.
func TestRetryBudget(t *testing.T) {
	const requests = 5000
	for _, perSecond := range []float64{0.1, 1, 5, 50, 1000} {
		for name, tc := range map[string]struct{ bad, worse float64 }{ // shares of attempts that fail: first ones, further ones
			"one of four fails":        {0.25, 0},
			"all first ones fail":      {1, 0},
			"everything fails":         {1, 1},
			"a tenth fails everywhere": {0.1, 1},
		} {
			t.Run(fmt.Sprintf("%s, %g per second", name, perSecond), func(t *testing.T) {
				random := rand.New(rand.NewPCG(1, 2))
				now := time.Now()
				p := &pool{stage: "decode", budget: &budget{tokens: budgetSize, updated: now}, budgetShare: 0.2}
				attempts, lost := 0, 0
				for range requests {
					now = now.Add(time.Duration(float64(time.Second) / perSecond))
					p.earn(now)
					attempts++
					if random.Float64() >= tc.bad {
						continue
					}
					if !p.mayRetry(now) {
						lost++
						continue
					}
					attempts++
					if random.Float64() < tc.worse {
						p.charge(now)
					}
				}
				if tc.worse == 0 || tc.bad < 0.2 {
					assert.Zero(t, lost)
				}
				bound := 1.2*requests + budgetSize + budgetPerSecond*requests/perSecond
				if tc.worse == 1 {
					assert.LessOrEqual(t, float64(attempts), bound)
				}
				if tc.bad*tc.worse == 1 && perSecond > 2 {
					assert.Greater(t, float64(attempts), 1.19*requests, "the budget is not used")
				}
			})
		}
	}
}

// However many further attempts are in flight when the first of them fails, they are all
// paid for.
func TestRetryBudgetIsPaidBack(t *testing.T) {
	now := time.Now()
	b := &budget{tokens: budgetSize, updated: now}
	for range 300 {
		b.add(now, -1)
	}
	assert.Less(t, b.add(now.Add(100*time.Second), 0), 1.0)
	assert.Greater(t, b.add(now.Add(292*time.Second), 0), 1.0)
	assert.EqualValues(t, budgetSize, b.add(now.Add(time.Hour), 0), "it is bounded")
	assert.EqualValues(t, budgetSize, b.add(now, 0), "time goes backwards")
}

// What pays for a further attempt: one that fails as well, at an engine.
func TestWhatTheRetryBudgetPaysFor(t *testing.T) {
	h, err := load(t, `{"retries":9,
		"encode":{"upstreams":[{"dial":"a:1"},{"dial":"b:1"},{"dial":"c:1"}],"health_checks":{"active":{}}},
		"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}}`)
	require.NoError(t, err)
	fail := func(why reason, status int, at string) *failure {
		f := &failure{reason: why, status: status, stage: "encode", call: &call{chosen: []string{at}, reached: why != refused, body: body.Join([]byte("{}"))}}
		f.verdict = f.explain()
		return f
	}
	for name, tc := range map[string]struct {
		second *failure
		cost   float64
	}{
		"broken":   {fail(broken, 0, "b:1"), 1},
		"500":      {fail(badStatus, 500, "b:1"), 1},
		"time-out": {fail(timedOut, 0, "b:1"), 1},
		"429":      {fail(badStatus, 429, "b:1"), 1},
		"400":      {fail(badStatus, 400, "b:1"), 0},
		"refused":  {fail(refused, 0, "b:1"), 0},
		"canceled": {fail(canceled, 0, "b:1"), 0},
		"no room":  {fail(overloaded, 0, "b:1"), 0},
		"nobody":   {fail(unavailable, 0, "b:1"), 0},
	} {
		t.Run(name, func(t *testing.T) {
			h.encode.budget.tokens = 5
			x := &exchange{h: h}
			a := x.attempts(h.encode)
			x.settle(a, fail(broken, 0, "a:1"))
			require.True(t, a.paid)
			assert.InDelta(t, 5, h.encode.budget.tokens, 0.1, "the first attempt costs nothing")
			x.settle(a, tc.second)
			assert.InDelta(t, 5-tc.cost, h.encode.budget.tokens, 0.1)
		})
	}

	// one that cannot be paid for is not made
	h.encode.budget.tokens = -100
	x, spent := &exchange{h: h}, testutil.ToFloat64(budgetSpent.WithLabelValues("encode"))
	a := x.attempts(h.encode)
	a.begun = time.Now()
	free := fail(refused, 0, "a:1")
	x.settle(a, free)
	assert.False(t, free.final, "a refused connection costs nothing")
	f := fail(broken, 0, "b:1")
	x.settle(a, f)
	assert.True(t, f.final && f.unpaid)
	h.EncodeOptional = true
	assert.False(t, x.mayBeOptional(f), "another encoder could have been asked")
	assert.EqualValues(t, spent+1, testutil.ToFloat64(budgetSpent.WithLabelValues("encode")))
}

// Pools with the same instances share a budget, also before and after a reload, and nothing
// is left of it afterwards.
func TestRetryBudgetIsOfThePool(t *testing.T) {
	config := func(encoders, options string) string {
		return fmt.Sprintf(`{"encode":{%s},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}%s}`, encoders, options)
	}
	const (
		two     = `"upstreams":[{"dial":"x:1"},{"dial":"y:1"}],"health_checks":{"active":{}}`
		swapped = `"upstreams":[{"dial":"y:1"},{"dial":"x:1"}],"health_checks":{"active":{}}`
		one     = `"upstreams":[{"dial":"x:1"}],"health_checks":{"active":{}}`
		dns     = `"dynamic_upstreams":{"source":"a","name":"localhost","port":"1"},"health_checks":{"active":{}}`
		srv     = `"dynamic_upstreams":{"source":"a","name":"localhost","port":"2"},"health_checks":{"active":{}}`
	)
	budgetOf := func(config string) *budget {
		h, err := load(t, config)
		require.NoError(t, err)
		return h.encode.budget
	}
	b := budgetOf(config(two, ""))
	assert.Same(t, b, budgetOf(config(swapped, `,"retry_budget":50`)))
	assert.NotSame(t, b, budgetOf(config(one, "")))
	assert.NotSame(t, b, budgetOf(config(dns, "")))
	assert.Same(t, budgetOf(config(dns, "")), budgetOf(config(dns, "")))
	assert.NotSame(t, budgetOf(config(dns, "")), budgetOf(config(srv, "")))
	assert.Nil(t, budgetOf(config(two, `,"retry_budget":0`)))

	t.Run("forgotten", func(t *testing.T) {
		var key budgetKey
		t.Run("used", func(t *testing.T) {
			h, err := load(t, config(`"upstreams":[{"dial":"gone:1"}],"health_checks":{"active":{}}`, ""))
			require.NoError(t, err)
			_, err = load(t, config(`"upstreams":[{"dial":"gone:1"}],"transport":{"protocol":"fastcgi"}`, ""))
			require.Error(t, err)
			_, err = load(t, config(`"upstreams":[{"dial":"gone:1"}],"trusted_proxies":["nonsense"]`, ""))
			require.Error(t, err)
			key = h.encode.budgetKey
			n, _ := budgets.References(key)
			assert.Equal(t, 1, n)
		})
		_, there := budgets.References(key)
		assert.False(t, there)
	})
}

func BenchmarkRetryBudget(b *testing.B) {
	p := &pool{budget: &budget{updated: time.Now()}, budgetShare: 0.2}
	for b.Loop() {
		p.earn(time.Now())
	}
}
