package epdhandler

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Whatever the policy, an instance that failed is not chosen again, and the others
// are, as long as there are any.
func TestSelectorLeavesOut(t *testing.T) {
	for _, policy := range []string{
		`{"policy":"round_robin"}`, `{"policy":"random"}`, `{"policy":"first"}`, `{"policy":"least_conn"}`, `{"policy":"random_choose"}`,
		`{"policy":"ip_hash"}`, `{"policy":"uri_hash"}`, `{"policy":"header","field":"X-Key"}`, `{"policy":"cookie"}`,
		`{"policy":"weighted_round_robin","weights":[5,1,3,2]}`,
	} {
		t.Run(policy, func(t *testing.T) {
			h, err := load(t, fmt.Sprintf(`{
				"encode":{"upstreams":[{"dial":"a:1"},{"dial":"b:1"},{"dial":"c:1"},{"dial":"d:1"}],"load_balancing":{"selection_policy":%s}},
				"decode":{"upstreams":[{"dial":"a:1"}]}}`, policy))
			require.NoError(t, err)
			rp := h.encode.handler
			for range 100 {
				c := new(call)
				r := httptest.NewRequest(http.MethodPost, "/", nil)
				r.Header.Set("X-Key", "k")
				r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
				for range 4 {
					assert.True(t, h.encode.othersThan(c.skip))
					u := rp.LoadBalancing.SelectionPolicy.Select(rp.Upstreams, r, httptest.NewRecorder())
					require.NotNil(t, u)
					assert.NotContains(t, c.skip, u.String())
					assert.Equal(t, u.String(), c.upstream())
					c.skip = append(c.skip, u.String())
				}
				assert.Nil(t, rp.LoadBalancing.SelectionPolicy.Select(rp.Upstreams, r, httptest.NewRecorder()))
				assert.False(t, h.encode.othersThan(c.skip))
				assert.Len(t, c.chosen, 4)
			}
		})
	}
}

// Weights go by position: an instance with weight 0 must not get another one's
// share when one is left out.
func TestSelectorKeepsWeights(t *testing.T) {
	h, err := load(t, `{
		"encode":{"upstreams":[{"dial":"a:1"},{"dial":"drained:1"},{"dial":"c:1"}],"load_balancing":{"selection_policy":{"policy":"weighted_round_robin","weights":[9,0,1]}}},
		"decode":{"upstreams":[{"dial":"a:1"}]}}`)
	require.NoError(t, err)
	rp := h.encode.handler
	for range 50 {
		c := &call{skip: []string{"a:1"}}
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
		assert.Equal(t, "c:1", rp.LoadBalancing.SelectionPolicy.Select(rp.Upstreams, r, nil).String())
	}
}

// Calls that choose at the same time do not keep each other from the only instance
// that is up: Caddy's round_robin counts for all of them.
func TestSelectorFindsTheOnlyOneThatIsUp(t *testing.T) {
	up := httptest.NewServer(http.NotFoundHandler())
	defer up.Close()
	down := httptest.NewServer(http.NotFoundHandler())
	down.Close()
	h, err := load(t, fmt.Sprintf(`{
		"encode":{"upstreams":[{"dial":"%s"},{"dial":"%s"}],"health_checks":{"active":{"interval":"10ms","fails":1,"expect_status":404}}},
		"decode":{"upstreams":[{"dial":"a:1"}],"health_checks":{"active":{}}}}`, down.Listener.Addr(), up.Listener.Addr()))
	require.NoError(t, err)
	rp := h.encode.handler
	require.Eventually(t, func() bool { return !rp.Upstreams[0].Available() }, 10*time.Second, time.Millisecond)
	var wg sync.WaitGroup
	var missed atomic.Int64
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				r := httptest.NewRequest(http.MethodPost, "/", nil)
				r = r.WithContext(context.WithValue(r.Context(), callKey{}, new(call)))
				if rp.LoadBalancing.SelectionPolicy.Select(rp.Upstreams, r, nil) == nil {
					missed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	assert.Zero(t, missed.Load())
}
