package epdhandler

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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
		runtime.GC()
		held, promised := held()
		return held == 0 && promised == 0
	}, 10*time.Second, time.Millisecond)
}

func bodyOf(t *testing.T, s *share, n int) []byte {
	t.Helper()
	b, err := s.alloc(n)
	require.NoError(t, err)
	return b
}

// Memory is bounded; what is done with makes room, though nobody else calls the
// garbage collector.
func TestMemoryIsBounded(t *testing.T) {
	nothingHeld(t)
	var bodies [][]byte
	for range 8 {
		s, err := newShare(t.Context(), miB, 8*miB)
		require.NoError(t, err)
		bodies = append(bodies, bodyOf(t, s, miB))
		s.close()
	}
	_, err := newShare(t.Context(), 1, 8*miB)
	assert.ErrorIs(t, err, errNoMemory)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = newShare(ctx, 1, 8*miB)
	assert.ErrorIs(t, err, context.Canceled)
	other, err := newShare(t.Context(), 1, 16*miB) // of a handler with another bound
	require.NoError(t, err)
	other.close()

	runtime.KeepAlive(bodies)
	bodies = nil
	for range 64 {
		s, err := newShare(t.Context(), miB, 8*miB)
		require.NoError(t, err)
		bodyOf(t, s, miB)
		s.close()
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
	small, err := newShare(t.Context(), kiB, 8*miB)
	require.NoError(t, err)
	small.close()
	b := bodyOf(t, first, 2*miB)
	b = append(b, bodyOf(t, first, 4*miB)...)
	held, promised := held()
	assert.EqualValues(t, 6*miB, held)
	assert.Zero(t, promised)
	runtime.KeepAlive(b)

	// and not for ever
	nothingHeld(t)
	_, err = newShare(t.Context(), 6*miB, 8*miB)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		s, err := newShare(t.Context(), 3*miB, 8*miB)
		if err == nil {
			s.close()
		}
		return err == nil
	}, 10*time.Second, time.Millisecond)

	// nor whatever they say
	nothingHeld(t)
	_, err = newShare(t.Context(), 1<<50, 64*miB)
	require.NoError(t, err)
	s, err := newShare(t.Context(), 1<<50, 64*miB)
	require.NoError(t, err)
	s.close()
	nothingHeld(t)
}

// A body that has begun to arrive waits for others to end.
func TestMemoryThatGrowsWaits(t *testing.T) {
	nothingHeld(t)
	s, err := newShare(t.Context(), 0, 4*miB)
	require.NoError(t, err)
	mine := bodyOf(t, s, miB)
	others := bodyOf(t, s, 2*miB)
	grown := make(chan error)
	go func() {
		_, err := s.alloc(2 * miB)
		grown <- err
	}()
	require.Eventually(t, func() bool {
		memory.Lock()
		defer memory.Unlock()
		return memory.waiting == 1
	}, 10*time.Second, time.Millisecond)
	runtime.KeepAlive(others)
	assert.NoError(t, <-grown)
	runtime.KeepAlive(mine)
	nothingHeld(t)
}
