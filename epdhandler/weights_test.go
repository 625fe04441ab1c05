package epdhandler

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Weights go by the place in the pool, whoever is left out, and their shares go to the
// others by their weights. An instance of weight 0, or without one, gets nothing, ever.
func TestWeights(t *testing.T) {
	for _, policy := range []string{
		`{"policy":"weighted_round_robin","weights":[5,1,0,3]}`,
		`{"policy":"header","field":"X-Key","fallback":{"policy":"weighted_round_robin","weights":[5,1,0,3]}}`,
	} {
		h, err := load(t, fmt.Sprintf(`{
			"encode":{"upstreams":[{"dial":"a:1"},{"dial":"b:1"},{"dial":"drained:1"},{"dial":"d:1"},{"dial":"unnamed:1"}],"load_balancing":{"selection_policy":%s},"health_checks":{"active":{}}},
			"decode":{"upstreams":[{"dial":"a:1"}],"health_checks":{"active":{}}}}`, policy))
		require.NoError(t, err)
		for _, tc := range []struct {
			skip []string
			want map[string]int
		}{
			{nil, map[string]int{"a:1": 50, "b:1": 10, "d:1": 30}},
			{[]string{"a:1"}, map[string]int{"b:1": 20, "d:1": 60}},
			{[]string{"d:1"}, map[string]int{"a:1": 50, "b:1": 10}},
			{[]string{"a:1", "d:1"}, map[string]int{"b:1": 10}},
			{[]string{"a:1", "b:1", "d:1"}, map[string]int{}},
		} {
			total := 0
			for _, n := range tc.want {
				total += n
			}
			got := map[string]int{}
			for range max(total, 5) {
				c := &call{skip: tc.skip}
				r := httptest.NewRequest(http.MethodPost, "/", nil)
				if u := h.encode.handler.LoadBalancing.SelectionPolicy.Select(h.encode.handler.Upstreams, r.WithContext(context.WithValue(r.Context(), callKey{}, c)), nil); u != nil {
					got[u.String()]++
				}
			}
			for address, n := range tc.want { // what was left out before still has a lead, or none
				assert.InDelta(t, n, got[address], 3, "%s without %v: %v", policy, tc.skip, got)
			}
			assert.Zero(t, got["drained:1"]+got["unnamed:1"])
		}
	}
}

// All that have a weight are busy: that is a reason to wait, and none to go elsewhere.
func TestWeightsAndLimits(t *testing.T) {
	for weights, drained := range map[string]int{"1,0": 1, "0,1": 0} {
		instances := []*holder{newHolder(t), newHolder(t)}
		port := hostileDecode(t, `,"retries":1,"decode_limit":1`, fmt.Sprintf(`{%s,"load_balancing":{"selection_policy":{"policy":"weighted_round_robin","weights":[%s]}}}`,
			upstreamsOf([]string{instances[0].address, instances[1].address}), weights))
		one := instances[1-drained]
		held := inBackground(t, port, "held")
		<-one.arrived
		second := inBackground(t, port, "x")
		waitFor(t, 1)
		close(one.release)
		assert.Equal(t, http.StatusOK, (<-held).status)
		assert.Equal(t, http.StatusOK, (<-second).status)
		assert.Zero(t, instances[drained].peak.Load(), weights)
	}
}
