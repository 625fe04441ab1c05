package dispatch

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

func newBudget() Budget {
	return NewInstances(telemetry.NewMetrics()).Budget(telemetry.Decode, nil, "", 20)
}

// A bad instance among four costs nobody a request, whatever the load and from the first one
// on; where nothing works, the load grows by the budget only.
func TestBudget(t *testing.T) {
	t.Parallel()
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
				b, now := newBudget(), time.Now()
				attempts, lost := 0, 0
				for range requests {
					now = now.Add(time.Duration(float64(time.Second) / perSecond))
					b.Earn(now)
					attempts++
					if random.Float64() >= tc.bad {
						continue
					}
					if b.Tokens(now) < 1 {
						lost++
						continue
					}
					attempts++
					if random.Float64() < tc.worse {
						b.Charge(now)
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
func TestBudgetIsPaidBack(t *testing.T) {
	t.Parallel()
	b := newBudget()
	now := b.updated
	for range 300 {
		b.Charge(now)
	}
	assert.Less(t, b.Tokens(now.Add(100*time.Second)), 1.0)
	assert.Greater(t, b.Tokens(now.Add(292*time.Second)), 1.0)
	assert.EqualValues(t, budgetSize, b.Tokens(now.Add(time.Hour)), "it is bounded")
	assert.EqualValues(t, budgetSize, b.Tokens(now), "time goes backwards")
}

// Pools with the same instances share a budget, whatever else is different, and it is forgotten
// when nobody uses it any more.
func TestBudgetIsOfThePool(t *testing.T) {
	t.Parallel()
	shared := NewInstances(telemetry.NewMetrics())
	of := func(source string, percent int, addresses ...string) *account {
		return shared.Budget(telemetry.Encode, upstreams(addresses...), source, percent).account
	}
	two := of("", 20, "x:1", "y:1")
	assert.Same(t, two, of("", 50, "y:1", "x:1"))
	assert.NotSame(t, two, of("", 20, "x:1"))
	assert.NotSame(t, two, of("dns", 20))
	assert.Same(t, of("dns", 20), of("dns", 20))
	assert.NotSame(t, of("dns", 20), of("srv", 20))

	two.updated = time.Now().Add(-2 * keptFor)
	of("", 20, "new:1")
	assert.NotSame(t, two, of("", 20, "x:1", "y:1"))

	none := shared.Budget(telemetry.Encode, upstreams("x:1"), "", 0)
	assert.Zero(t, none)
	none.Earn(time.Now())
	none.Charge(time.Now())
	assert.Greater(t, none.Tokens(time.Now()), 1.0)
}

func BenchmarkBudget(b *testing.B) {
	budget := newBudget()
	for b.Loop() {
		budget.Earn(time.Now())
	}
}
