package epdhandler

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

const (
	kiB = 1 << 10
	miB = 1 << 20
)

// held is the memory that bodies hold.
func held() (held, promised int64) {
	memory.Lock()
	defer memory.Unlock()
	return memory.sum - memory.promised, memory.promised
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
		return len(memory.claims) == 1
	}, 10*time.Second, time.Millisecond)
	others.Release()
	assert.NoError(t, <-grown)
	mine.arrived(2 * miB).Release()
	nothingHeld(t)
}

// Those who wait for memory are left alone while nothing becomes free, and then get it in
// the order in which they came.
func TestManyWaitForMemory(t *testing.T) {
	nothingHeld(t)
	const waiting, limit = 500, 8 * miB
	busy, err := newShare(t.Context(), 6*miB, limit)
	require.NoError(t, err)
	busy.timer.Stop() // it keeps its promise
	full, err := newShare(t.Context(), 0, limit)
	require.NoError(t, err)
	require.NoError(t, full.reach(2*miB))

	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	granted, over := make(chan error, waiting), make(chan error, waiting)
	wait := func(ctx context.Context, done chan<- error) {
		s, err := newShare(ctx, 0, limit)
		if err == nil {
			err = s.add(miB) // of ordinary memory
		}
		done <- err
	}
	claims := func() int {
		memory.Lock()
		defer memory.Unlock()
		return len(memory.claims)
	}
	go wait(t.Context(), granted)
	eventually(t, "it waits", func() bool { return claims() == 1 })
	for range waiting - 1 {
		go wait(ctx, over)
	}
	eventually(t, "all wait", func() bool { return claims() == waiting })

	before := scheduled()
	for n := range int64(96) {
		require.NoError(t, busy.reach((n+1)*64*kiB))
	}
	assert.Less(t, scheduled()-before, uint64(10*waiting), "they are woken though nothing is free")
	assert.Equal(t, waiting, claims())

	memory.Lock()
	full.holds(miB)
	memory.Unlock()
	require.NoError(t, <-granted)
	assert.Equal(t, waiting-1, claims())
	leave()
	for range waiting - 1 {
		assert.ErrorIs(t, <-over, context.Canceled)
	}
	got, _ := held()
	assert.EqualValues(t, limit, got)
	memory.Lock()
	memory.give(miB) // whose share nobody has
	memory.Unlock()
	full.arrived(miB).Release()
	busy.arrived(6 * miB).Release()
	nothingHeld(t)
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

// What somebody else's reader panics with is no reason to keep a body.
func TestPanicGivesMemoryBack(t *testing.T) {
	nothingHeld(t)
	for _, length := range []int64{-1, miB} {
		r := httptest.NewRequest(http.MethodPost, chatPath, nil)
		r.Header.Set("Content-Type", "application/json")
		r.Body, r.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader("{"), panics{})), length
		h := &Handler{MaxBodySize: miB, MaxMemory: 8 * miB, BodyTimeout: caddy.Duration(time.Minute)}
		x := &exchange{h: h, w: httptest.NewRecorder(), r: r, report: newReport("x", apiChat)}
		assert.Panics(t, func() { x.complete(true) })
		requestsInFlight.WithLabelValues(apiChat).Dec()
		nothingHeld(t)
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("no") }

// What is kept of a body until decode answers is counted, also of one that has next to
// nothing but media items.
func TestItemsAreCounted(t *testing.T) {
	const items = 10_000
	var parts []string
	for i := range items { // equal media are encoded once
		parts = append(parts, fmt.Sprintf(`{"image_url":"%d"}`, i))
	}
	in := `{"messages":[{"content":[` + strings.Join(parts, ",") + `]}]}`
	retries := 1
	h := &Handler{MaxBodySize: miB, MaxMemory: 64 * miB, MaxMediaItems: items, BodyTimeout: caddy.Duration(time.Minute),
		References: true, EncodeBatch: 1, Retries: &retries, encode: &pool{stage: "encode", handler: new(reverseproxy.Handler)}}
	r := httptest.NewRequest(http.MethodPost, chatPath, strings.NewReader(in))
	r.Header.Set("Content-Type", "application/json")
	r = r.WithContext(context.WithValue(t.Context(), caddy.ReplacerCtxKey, caddy.NewReplacer()))
	nothingHeld(t)
	before := liveHeap()
	x := &exchange{h: h, w: httptest.NewRecorder(), r: r, report: new(report)}
	defer x.release()
	require.Nil(t, x.readBody(true))
	counted, _ := held()
	x.planEncoding()
	answers := make([]media.Answer, items)
	for i := range answers {
		said := fmt.Appendf(nil, `{"ec_transfer_params":{"%064d":{"item_indices":[0],"metadata":{"image_grid_thw":[[1,44,80]]}}}}`, i)
		var err error
		answers[i], err = x.plan.Read(i, said, []string{"01234567-89ab-cdef-0123-456789abcdef"})
		require.NoError(t, err)
	}
	x.embeddings = x.plan.Encoded(answers)
	require.True(t, x.embeddings.Refers)
	out := x.embeddings.Body.Rewrite(body.Set(body.ECTransferParams, x.embeddings.Handles))
	took := liveHeap() - before
	t.Logf("%d bytes for each item", took/items)
	assert.Less(t, took, counted)
	x.release()
	nothingHeld(t)
	runtime.KeepAlive(x)
	runtime.KeepAlive(answers)
	runtime.KeepAlive(out)
}

func liveHeap() int64 {
	runtime.GC()
	runtime.GC() // what pools had kept
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
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
