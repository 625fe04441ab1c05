package epdhandler

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What instances have done is forgotten when they are gone, not when they only rest.
func TestHistoryIsForgotten(t *testing.T) {
	_, err := load(t, `{"encode":{"upstreams":[{"dial":"rests:1"}],"health_checks":{"active":{}}},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}}`)
	require.NoError(t, err)
	rests, gone := instance{"encode", "rests:1"}, instance{"encode", "gone:1"}
	long := time.Now().Add(-2 * historyKept)
	for _, at := range []instance{rests, gone} {
		h := historyOf(at)
		h.failed(broken)
		h.used = long
	}
	historyOf(instance{"encode", "new:1"}).answered(time.Second)

	histories.Lock()
	defer histories.Unlock()
	assert.Contains(t, histories.of, rests)
	assert.NotContains(t, histories.of, gone)
	assert.False(t, upstreamFailures.DeleteLabelValues(gone.stage, gone.address), "its metrics stay")
}

func TestHistoryIsBounded(t *testing.T) {
	h := historyOf(instance{"encode", "busy:1"})
	assert.Zero(t, h.quantile(0.5))
	for n := range 3 * maxTimes {
		h.answered(time.Duration(n))
		h.failed(refused)
	}
	assert.Len(t, h.times, maxTimes)
	assert.Len(t, h.since(time.Now().Add(-time.Minute)), maxFailings)
	assert.Empty(t, h.since(time.Now()))
	assert.EqualValues(t, 2*maxTimes, h.quantile(0))
	assert.EqualValues(t, 3*maxTimes-1, h.quantile(1))
	assert.InDelta(t, 2.5*maxTimes, float64(h.quantile(0.5)), 1)
}
