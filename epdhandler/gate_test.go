package epdhandler

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// gateOf is a gate in front of a dynamic pool with so many instances.
func gateOf(instances, limit, size int) *gate {
	q := &queue{stage: "decode", limit: limit, size: size, wait: time.Minute}
	g := &gate{pool: &pool{stage: "decode", dynamic: true, queue: q, handler: new(reverseproxy.Handler)}}
	if instances > 0 {
		g.scale(instances)
	}
	return g
}

// scale is what the source of a dynamic pool does.
func (g *gate) scale(instances int) {
	list := make(reverseproxy.UpstreamPool, instances)
	for i := range list {
		list[i] = &reverseproxy.Upstream{Dial: "d:1", Host: new(reverseproxy.Host)}
	}
	g.pool.queue.seen.Store(&list)
}

func isIn(turn chan struct{}) bool {
	select {
	case <-turn:
		return true
	default:
		return false
	}
}

// As many get in as decode has slots, and again as many; of those that may wait at all.
func TestGateLetsIn(t *testing.T) {
	for name, tc := range map[string]struct{ instances, limit, size, in, waiting int }{
		"one":         {1, 1, 1000, 2, 1000 - 1},
		"two of four": {2, 4, 1000, 16, 1000 - 8},
		"short queue": {1, 4, 2, 6, 0},
		"no queue":    {2, 3, 0, 6, 0},
		"unknown":     {0, 3, 10, 6, 7},
	} {
		t.Run(name, func(t *testing.T) {
			g := gateOf(tc.instances, tc.limit, tc.size)
			var turns []chan struct{}
			for {
				assert.Equal(t, len(turns) == tc.in+tc.waiting, g.full())
				turn, err := g.join()
				if err != nil {
					break
				}
				turns = append(turns, turn)
			}
			require.Len(t, turns, tc.in+tc.waiting)
			for n, turn := range turns {
				assert.Equal(t, n < tc.in, isIn(turn), n)
			}
			assert.Equal(t, tc.waiting, g.waitingNow())
			for n := range tc.waiting { // in turn
				g.leave()
				assert.True(t, isIn(turns[tc.in+n]))
			}
			for range tc.in {
				g.leave()
			}
			assert.Zero(t, g.inside)
			assert.Zero(t, g.waitingNow())
		})
	}
}

// Instances that come and go count when somebody comes or goes.
func TestGateFollowsTheInstances(t *testing.T) {
	g := gateOf(1, 1, 1000)
	var turns []chan struct{}
	for range 5 {
		turn, err := g.join()
		require.NoError(t, err)
		turns = append(turns, turn)
	}
	g.scale(2)
	g.leave()
	assert.True(t, isIn(turns[4]), "4 may be in, and one has left")
	g.scale(1)
	last, err := g.join()
	require.NoError(t, err)
	g.leave()
	g.leave()
	assert.False(t, isIn(last), "2 are in")
	g.leave()
	assert.True(t, isIn(last))
}

// Who waits too long, or goes away, leaves nothing behind: not even if it is let in at that
// very moment.
func TestGateForgetsWhoLeaves(t *testing.T) {
	g := gateOf(1, 1, 1000)
	g.pool.queue.wait = time.Millisecond
	for range 2 {
		_, err := g.join()
		require.NoError(t, err)
	}
	turn, err := g.join()
	require.NoError(t, err)
	assert.ErrorContains(t, g.wait(t.Context(), turn), "queue_timeout")

	g.pool.queue.wait = time.Minute
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	turn, err = g.join()
	require.NoError(t, err)
	assert.Error(t, g.wait(gone, turn))
	assert.Zero(t, g.waitingNow())
	assert.Equal(t, 2, g.inside)
	assert.Zero(t, atGates.Load())
}

func TestGateInACrowd(t *testing.T) {
	g := gateOf(2, 2, 1000)
	var (
		wg         sync.WaitGroup
		inside, in atomic.Int64
	)
	for n := range 200 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if n%3 == 0 {
				time.AfterFunc(time.Duration(n)*10*time.Microsecond, cancel)
			}
			turn, err := g.join()
			if err != nil {
				return
			}
			if g.wait(ctx, turn) == nil {
				assert.LessOrEqual(t, inside.Add(1), int64(8))
				in.Add(1)
				inside.Add(-1)
				g.leave()
			}
		})
	}
	wg.Wait()
	assert.Zero(t, g.inside)
	assert.Zero(t, g.waitingNow())
	assert.GreaterOrEqual(t, in.Load(), int64(133))
}
