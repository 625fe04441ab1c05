package dispatch

import (
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
)

// Weights go by the place in the pool, whoever is left out, and their shares go to the
// others by their weights. An instance of weight 0, or without one, gets nothing, ever.
func TestWeights(t *testing.T) {
	t.Parallel()
	policy := Fit(&reverseproxy.WeightedRoundRobinSelection{Weights: []int{5, 1, 0, 3}})
	f := newFixture(t, Settings{Weights: WeightsOf(policy)}, "a", "b", "drained", "d", "unnamed")
	for _, tc := range []struct {
		skip []string
		want map[string]int
	}{
		{nil, map[string]int{"a": 50, "b": 10, "d": 30}},
		{[]string{"a"}, map[string]int{"b": 20, "d": 60}},
		{[]string{"d"}, map[string]int{"a": 50, "b": 10}},
		{[]string{"a", "d"}, map[string]int{"b": 10}},
		{[]string{"a", "b", "d"}, map[string]int{"": 10}},
	} {
		total, got := 0, map[string]int{}
		for _, n := range tc.want {
			total += n
		}
		for range total {
			a := newAsk(tc.skip...)
			a.Policy = func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream {
				return policy.Select(fit, asking(t, a), nil)
			}
			c := f.ask(t.Context(), a)
			got[c.address]++
			c.slot.Release()
		}
		assert.Len(t, got, len(tc.want))
		for address, n := range tc.want { // what was left out before still has a lead, or none
			assert.InDelta(t, n, got[address], 3, "%s without %v", address, tc.skip)
		}
	}
}

// Caddy's policies that count requests count reservations as well, and choose at random among
// equals. Others are left as they are.
func TestLeastLoaded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Settings{}, "a", "b", "c")
	var reserved []*Slot
	for range 2 {
		for _, at := range f.newest.Load().instances[:2] {
			reserved = append(reserved, f.ask(t.Context(), &Ask{Early: true, Only: at.Address}).slot)
		}
	}
	reserved[0].Release()
	a := newAsk()
	a.view = f.configured
	f.candidates(a)
	choose := func(policy reverseproxy.Selector, fit reverseproxy.UpstreamPool) string {
		return Fit(policy).Select(append(reverseproxy.UpstreamPool{}, fit...), asking(t, a), nil).Dial
	}
	all := f.Upstreams()
	two := &reverseproxy.RandomChoiceSelection{Choose: 2}
	seen := map[string]int{}
	for range 300 {
		assert.Equal(t, "c", choose(new(reverseproxy.LeastConnSelection), all))
		assert.Equal(t, "a", choose(new(reverseproxy.LeastConnSelection), all[:2]))
		seen[choose(two, all)]++
	}
	assert.Zero(t, seen["b"], "two others are always better, or one of them is there")
	assert.InDelta(t, 200, seen["c"], 60)
	for _, slot := range reserved {
		slot.Release()
	}
	seen = map[string]int{}
	for range 300 {
		seen[choose(new(reverseproxy.LeastConnSelection), all)]++
	}
	for _, u := range all {
		assert.InDelta(t, 100, seen[u.Dial], 60)
	}
	first := new(reverseproxy.FirstSelection)
	assert.Same(t, first, Fit(first))
	assert.Nil(t, WeightsOf(first))
}
