package epdhandler

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

const (
	kiB = 1 << 10
	miB = 1 << 20
)

// held is the memory that bodies hold.
func held() (held, promised int64) {
	memory.Lock()
	defer memory.Unlock()
	return memory.held, memory.promised
}

// nothingHeld waits until no body is in memory.
func nothingHeld(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		held, promised := held()
		return held == 0 && promised == 0
	}, 10*time.Second, time.Millisecond)
}

// receive takes memory for n bytes that a client has announced, and has sent.
func receive(t *testing.T, n int, limit int64) (*body.Memory, error) {
	t.Helper()
	s, err := newShare(t.Context(), int64(n), limit)
	if err != nil {
		return nil, err
	}
	b := s.alloc(n)[:n]
	if err := s.reach(int64(n)); err != nil {
		s.arrived(0).Release()
		return nil, err
	}
	for i := range b {
		b[i] = 'x'
	}
	return s.arrived(int64(n)), nil
}

// Memory is bounded, and what is done with makes room at once.
func TestMemoryIsBounded(t *testing.T) {
	nothingHeld(t)
	var bodies []*body.Memory
	for range 8 {
		m, err := receive(t, miB, 8*miB)
		require.NoError(t, err)
		bodies = append(bodies, m)
	}
	_, err := receive(t, 1, 8*miB)
	assert.ErrorIs(t, err, errNoMemory)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = newShare(ctx, 1, 8*miB)
	assert.ErrorIs(t, err, context.Canceled)
	other, err := receive(t, 1, 16*miB) // of a handler with another bound
	require.NoError(t, err)
	other.Release()

	for range 64 {
		bodies[0].Release()
		bodies = bodies[1:]
		m, err := receive(t, miB, 8*miB)
		require.NoError(t, err)
		bodies = append(bodies, m)
	}
	for _, m := range bodies {
		m.Release()
	}
	nothingHeld(t)
}

// Not more bodies begin than can end, as long as clients are believed.
func TestMemoryIsPromised(t *testing.T) {
	nothingHeld(t)
	first, err := newShare(t.Context(), 6*miB, 8*miB)
	require.NoError(t, err)
	_, err = newShare(t.Context(), 3*miB, 8*miB)
	assert.ErrorIs(t, err, errNoMemory)
	small, err := receive(t, kiB, 8*miB)
	require.NoError(t, err)
	small.Release()
	for _, n := range []int64{2 * miB, 6 * miB} {
		require.NoError(t, first.reach(n))
		held, promised := held()
		assert.Equal(t, n, held)
		assert.Equal(t, 6*miB-n, promised)
	}
	first.arrived(6 * miB).Release()
	nothingHeld(t)

	// and not for ever
	_, err = newShare(t.Context(), 6*miB, 8*miB)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		s, err := newShare(t.Context(), 3*miB, 8*miB)
		if err == nil {
			s.arrived(0).Release()
		}
		return err == nil
	}, 10*time.Second, time.Millisecond)

	// nor whatever they say
	nothingHeld(t)
	for range 2 {
		s, err := newShare(t.Context(), 1<<50, 64*miB)
		require.NoError(t, err)
		defer func() { s.arrived(0).Release() }()
	}
}

// A body that has begun to arrive waits for others to end.
func TestMemoryThatGrowsWaits(t *testing.T) {
	nothingHeld(t)
	mine, err := newShare(t.Context(), 0, 4*miB)
	require.NoError(t, err)
	require.NoError(t, mine.reach(miB))
	others, err := receive(t, 2*miB, 4*miB)
	require.NoError(t, err)
	grown := make(chan error)
	go func() { grown <- mine.reach(3 * miB) }()
	require.Eventually(t, func() bool {
		memory.Lock()
		defer memory.Unlock()
		return memory.waiting == 1
	}, 10*time.Second, time.Millisecond)
	others.Release()
	assert.NoError(t, <-grown)
	mine.arrived(2 * miB).Release()
	nothingHeld(t)
}

// What is never given back is, when nobody knows it any more.
func TestMemoryThatIsForgotten(t *testing.T) {
	nothingHeld(t)
	_, err := receive(t, miB, 4*miB)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		runtime.GC()
		held, _ := held()
		return held == 0
	}, 10*time.Second, time.Millisecond)
}

// Regions are used again, and given back to the system when there is no room, when
// there are many, or when nobody has used them for long.
func TestRegions(t *testing.T) {
	if _, err := mapMemory(1); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("there are no regions on this system")
	}
	drop := func() {
		memory.Lock()
		defer memory.Unlock()
		memory.idle.drop(0)
	}
	idle := func() (n int, touched int64) {
		memory.Lock()
		defer memory.Unlock()
		return len(memory.idle.list), memory.idle.touched
	}
	nothingHeld(t)
	drop()
	for range 3 {
		m, err := receive(t, 3*miB, 64*miB)
		require.NoError(t, err)
		m.Release()
	}
	n, touched := idle()
	assert.Equal(t, 1, n, "it was used again")
	assert.EqualValues(t, 3*miB, touched)

	m, err := receive(t, 5*miB, 6*miB)
	require.NoError(t, err)
	n, _ = idle()
	assert.Zero(t, n, "it was in the way")
	m.Release()

	var all []*body.Memory
	for range 40 {
		m, err := receive(t, 2*miB, 1<<30)
		require.NoError(t, err)
		all = append(all, m)
	}
	for _, m := range all {
		m.Release()
	}
	_, touched = idle()
	assert.LessOrEqual(t, touched, int64(maxIdle))
	assert.NotZero(t, touched)

	memory.Lock()
	for _, r := range memory.idle.list {
		r.idle = r.idle.Add(-idleTime)
	}
	memory.Unlock()
	memory.idle.expire()
	n, touched = idle()
	assert.Zero(t, n)
	assert.Zero(t, touched)
	nothingHeld(t)
}
