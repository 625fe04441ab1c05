package memory

import (
	"context"
	"errors"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	kiB = 1 << 10
	miB = 1 << 20
)

// newLedger returns a ledger whose idle memory is inaccessible.
func newLedger() *Ledger { return &Ledger{Guard: protectIdle} }

// promisedBytes returns what clients have announced and not sent yet.
func (l *Ledger) promisedBytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.promised
}

func (l *Ledger) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.claims)
}

// assertEmpty waits until no body is in memory.
func (l *Ledger) assertEmpty(t *testing.T) {
	t.Helper()
	eventually(t, "no memory is held", func() bool { return l.Held() == 0 && l.promisedBytes() == 0 })
}

func eventually(t *testing.T, message string, what func() bool) {
	t.Helper()
	require.Eventually(t, what, 10*time.Second, time.Millisecond, message)
}

// receive takes memory for n bytes that a client has announced and sent.
func (l *Ledger) receive(t *testing.T, n int, limit int64) (*Buffer, error) {
	t.Helper()
	s, err := l.Reserve(t.Context(), int64(n), limit)
	if err != nil {
		return nil, err
	}
	b := s.alloc(n)[:n]
	if err := s.reach(int64(n)); err != nil {
		s.end(0).Release()
		return nil, err
	}
	for i := range b {
		b[i] = 'x'
	}
	return s.end(int64(n)), nil
}

// Memory is bounded, and a body that is released makes room at once.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	l := newLedger()
	var bodies []*Buffer
	for range 8 {
		m, err := l.receive(t, miB, 8*miB)
		require.NoError(t, err)
		bodies = append(bodies, m)
	}
	_, err := l.receive(t, 1, 8*miB)
	assert.ErrorIs(t, err, ErrExhausted)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Reserve(ctx, 1, 8*miB)
	assert.ErrorIs(t, err, context.Canceled)
	other, err := l.receive(t, 1, 16*miB) // of a handler with another bound
	require.NoError(t, err)
	other.Release()

	for range 64 {
		bodies[0].Release()
		bodies = bodies[1:]
		m, err := l.receive(t, miB, 8*miB)
		require.NoError(t, err)
		bodies = append(bodies, m)
	}
	for _, m := range bodies {
		m.Release()
	}
	l.assertEmpty(t)
}

// What clients announce is counted before it arrives, up to a size and for a time.
func TestMemoryIsPromised(t *testing.T) {
	t.Parallel()
	l := newLedger()
	first, err := l.Reserve(t.Context(), 6*miB, 8*miB)
	require.NoError(t, err)
	_, err = l.Reserve(t.Context(), 3*miB, 8*miB)
	assert.ErrorIs(t, err, ErrExhausted)
	small, err := l.receive(t, kiB, 8*miB)
	require.NoError(t, err)
	small.Release()
	for _, n := range []int64{2 * miB, 6 * miB} {
		require.NoError(t, first.reach(n))
		assert.Equal(t, n, l.Held())
		assert.Equal(t, 6*miB-n, l.promisedBytes())
	}
	first.end(6 * miB).Release()
	l.assertEmpty(t)

	_, err = l.Reserve(t.Context(), 6*miB, 8*miB)
	require.NoError(t, err)
	eventually(t, "the promise has ended", func() bool {
		s, err := l.Reserve(t.Context(), 3*miB, 8*miB)
		if err == nil {
			s.end(0).Release()
		}
		return err == nil
	})

	l.assertEmpty(t)
	for range 2 {
		s, err := l.Reserve(t.Context(), 1<<50, 64*miB)
		require.NoError(t, err)
		defer func() { s.end(0).Release() }()
	}
}

// A body that has begun to arrive waits for others to be released.
func TestMemoryThatGrowsWaits(t *testing.T) {
	t.Parallel()
	l := newLedger()
	mine, err := l.Reserve(t.Context(), 0, 4*miB)
	require.NoError(t, err)
	require.NoError(t, mine.reach(miB))
	others, err := l.receive(t, 2*miB, 4*miB)
	require.NoError(t, err)
	grown := make(chan error)
	go func() { grown <- mine.reach(3 * miB) }()
	eventually(t, "it waits", func() bool { return l.waiting() == 1 })
	others.Release()
	assert.NoError(t, <-grown)
	mine.end(2 * miB).Release()
	l.assertEmpty(t)
}

// Requests that wait for memory are not woken while nothing becomes free, and then get it in
// the order in which they came.
func TestManyWaitForMemory(t *testing.T) {
	l := newLedger() // not in parallel: goroutines of the whole process are counted
	const waiting, limit = 500, 8 * miB
	busy, err := l.Reserve(t.Context(), 6*miB, limit)
	require.NoError(t, err)
	busy.timer.Stop() // the promise does not end
	full, err := l.Reserve(t.Context(), 0, limit)
	require.NoError(t, err)
	require.NoError(t, full.reach(2*miB))

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	granted, over := make(chan error, waiting), make(chan error, waiting)
	wait := func(ctx context.Context, done chan<- error) {
		s, err := l.Reserve(ctx, 0, limit)
		if err == nil {
			err = s.Add(miB) // of ordinary memory
		}
		done <- err
	}
	go wait(t.Context(), granted)
	eventually(t, "it waits", func() bool { return l.waiting() == 1 })
	for range waiting - 1 {
		go wait(ctx, over)
	}
	eventually(t, "all wait", func() bool { return l.waiting() == waiting })

	before := scheduled()
	for n := range int64(96) {
		require.NoError(t, busy.reach((n+1)*64*kiB))
	}
	assert.Less(t, scheduled()-before, uint64(10*waiting), "they are woken though nothing is free")
	assert.Equal(t, waiting, l.waiting())

	l.mu.Lock()
	full.hold(miB)
	l.mu.Unlock()
	require.NoError(t, <-granted)
	assert.Equal(t, waiting-1, l.waiting())
	leave()
	for range waiting - 1 {
		assert.ErrorIs(t, <-over, context.Canceled)
	}
	assert.EqualValues(t, limit, l.Held())
	l.mu.Lock()
	l.give(miB) // of the share that was granted
	l.mu.Unlock()
	full.end(miB).Release()
	busy.end(6 * miB).Release()
	l.assertEmpty(t)
}

// scheduled is how often a goroutine has begun to run.
func scheduled() (n uint64) {
	latencies := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(latencies)
	for _, count := range latencies[0].Value.Float64Histogram().Counts {
		n += count
	}
	return n
}

// Memory that is never released is given back when it is garbage.
func TestMemoryThatIsForgotten(t *testing.T) {
	t.Parallel()
	l := newLedger()
	_, err := l.receive(t, miB, 4*miB)
	require.NoError(t, err)
	eventually(t, "it is given back", func() bool {
		runtime.GC()
		return l.Held() == 0
	})
}

// Regions are used again, and unmapped when there is no room, when there are many, or when
// they have been idle for long.
func TestRegions(t *testing.T) {
	if _, err := mapMemory(1); errors.Is(err, errors.ErrUnsupported) {
		t.Skip("there are no regions on this system")
	}
	t.Parallel()
	l := newLedger()
	idle := func() (n int, touched int64) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.idle.list), l.idle.touched
	}
	for range 3 {
		m, err := l.receive(t, 3*miB, 64*miB)
		require.NoError(t, err)
		m.Release()
	}
	n, touched := idle()
	assert.Equal(t, 1, n, "it was used again")
	assert.EqualValues(t, 3*miB, touched)

	m, err := l.receive(t, 5*miB, 6*miB)
	require.NoError(t, err)
	n, _ = idle()
	assert.Zero(t, n, "its memory was needed")
	m.Release()

	var all []*Buffer
	for range 40 {
		m, err := l.receive(t, 2*miB, 1<<30)
		require.NoError(t, err)
		all = append(all, m)
	}
	for _, m := range all {
		m.Release()
	}
	_, touched = idle()
	assert.LessOrEqual(t, touched, int64(maxIdle))
	assert.NotZero(t, touched)

	l.mu.Lock()
	for _, r := range l.idle.list {
		r.idleSince = r.idleSince.Add(-idleTime)
	}
	l.mu.Unlock()
	l.expire()
	n, touched = idle()
	assert.Zero(t, n)
	assert.Zero(t, touched)
	l.assertEmpty(t)
}
