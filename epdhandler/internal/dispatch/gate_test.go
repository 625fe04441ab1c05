package dispatch

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// gateOf is a gate in front of a dynamic pool with so many instances.
func gateOf(instances, limit, size int) *Gate {
	shared := NewInstances(telemetry.NewMetrics())
	d := shared.New(Settings{Stage: telemetry.Decode, Dynamic: true, Limit: limit, QueueSize: size, QueueTime: time.Minute}, nil)
	g := NewGate(d, time.Hour)
	if instances > 0 {
		g.scale(instances)
	}
	return g
}

// scale is what the source of a dynamic pool does.
func (g *Gate) scale(instances int) {
	var addresses []string
	for i := range instances {
		addresses = append(addresses, fmt.Sprintf("d%d:1", i))
	}
	g.decode.see(upstreams(addresses...))
}

// As many get in as decode has slots, and a quarter more; of those that may wait at all.
func TestGateLetsIn(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ instances, limit, size, in, waiting int }{
		"one":         {1, 1, 1000, 2, 1000 - 1},
		"two of four": {2, 4, 1000, 10, 1000 - 2},
		"short queue": {1, 8, 1, 9, 0},
		"no queue":    {2, 3, 0, 6, 0},
		"unknown":     {0, 3, 10, 4, 9},
	} {
		t.Run(name, func(t *testing.T) {
			g := gateOf(tc.instances, tc.limit, tc.size)
			var turns []*Place
			for {
				assert.Equal(t, len(turns) == tc.in+tc.waiting, g.Full())
				turn, err := g.Join()
				if err != nil {
					break
				}
				turns = append(turns, turn)
			}
			require.Len(t, turns, tc.in+tc.waiting)
			for n, turn := range turns {
				assert.Equal(t, n < tc.in, turn.Passes(), n)
			}
			assert.Equal(t, tc.waiting, g.Waiting())
			for n := range tc.waiting { // in turn
				g.Leave()
				assert.True(t, turns[tc.in+n].Passes())
			}
			for range tc.in {
				g.Leave()
			}
			assert.Zero(t, g.inside)
			assert.Zero(t, g.Waiting())
		})
	}
}

// Instances that come and go count when somebody comes or goes.
func TestGateFollowsTheInstances(t *testing.T) {
	t.Parallel()
	g := gateOf(1, 1, 1000)
	var turns []*Place
	for range 5 {
		turn, err := g.Join()
		require.NoError(t, err)
		turns = append(turns, turn)
	}
	g.scale(2)
	g.Leave()
	assert.True(t, turns[3].Passes(), "3 may be in, and one has left")
	assert.False(t, turns[4].Passes())
	g.scale(1)
	last, err := g.Join()
	require.NoError(t, err)
	g.Leave()
	g.Leave()
	assert.True(t, turns[4].Passes())
	assert.False(t, last.Passes(), "2 are in")
	g.Leave()
	assert.True(t, last.Passes())
}

// The faster slots become free, the more get in ahead of them.
func TestGateKeepsPace(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		every time.Duration
		ahead int
	}{
		"short streams":     {time.Millisecond, 16},
		"each second":       {time.Second, 10},
		"each four seconds": {4 * time.Second, 2},
		"long streams":      {time.Minute, 1},
	} {
		t.Run(name, func(t *testing.T) {
			const slots = 16
			g, now := &Gate{before: 10 * time.Second, inside: slots + 1}, time.Now()
			assert.Equal(t, slots/4, g.ahead(slots), "not known yet")
			for range 40 {
				now = now.Add(tc.every)
				g.measure(now, slots)
			}
			assert.Equal(t, tc.ahead, g.ahead(slots))

			g.inside = slots // nobody waits, for an hour
			g.measure(now.Add(tc.every), slots)
			g.inside = slots + 1
			g.measure(now.Add(time.Hour), slots)
			g.measure(now.Add(time.Hour+tc.every), slots)
			assert.Equal(t, tc.ahead, g.ahead(slots))
		})
	}
}

// Who waits finds out by itself that there are more instances.
func TestGateSeesNewInstances(t *testing.T) {
	t.Parallel()
	g := gateOf(1, 1, 1000)
	for range 2 {
		_, err := g.Join()
		require.NoError(t, err)
	}
	turn, err := g.Join()
	require.NoError(t, err)
	g.scale(2)
	require.NoError(t, g.Wait(t.Context(), turn))
	assert.Equal(t, 3, g.inside)
}

// Who waits too long, or goes away, leaves nothing behind: not even if it is let in at that
// very moment.
func TestGateForgetsWhoLeaves(t *testing.T) {
	t.Parallel()
	g := gateOf(1, 1, 1000)
	g.decode.QueueTime = time.Millisecond
	for range 2 {
		_, err := g.Join()
		require.NoError(t, err)
	}
	turn, err := g.Join()
	require.NoError(t, err)
	assert.ErrorContains(t, g.Wait(t.Context(), turn), "queue_timeout")

	g.decode.QueueTime = time.Minute
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	turn, err = g.Join()
	require.NoError(t, err)
	assert.Error(t, g.Wait(gone, turn))
	assert.Zero(t, g.Waiting())
	assert.Equal(t, 2, g.inside)
	assert.Zero(t, g.decode.shared.atGates.Load())
}

func TestGateInACrowd(t *testing.T) {
	t.Parallel()
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
			turn, err := g.Join()
			if err != nil {
				return
			}
			if g.Wait(ctx, turn) == nil {
				assert.LessOrEqual(t, inside.Add(1), int64(8))
				in.Add(1)
				inside.Add(-1)
				g.Leave()
			}
		})
	}
	wg.Wait()
	assert.Zero(t, g.inside)
	assert.Zero(t, g.Waiting())
	assert.GreaterOrEqual(t, in.Load(), int64(133))
}
