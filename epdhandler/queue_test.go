package epdhandler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// limited loads a handler with these encoders, each with one slot, and further options.
func limited(t *testing.T, options string, encoders ...string) *Handler {
	t.Helper()
	dials := ""
	for _, e := range encoders {
		dials += fmt.Sprintf(`,{"dial":"%s"}`, e)
	}
	h, err := load(t, fmt.Sprintf(`{"encode_limit":1%s,"encode":{"upstreams":[%s],"health_checks":{"active":{}}},
		"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}}`, options, dials[1:]))
	require.NoError(t, err)
	t.Cleanup(func() {
		slots.Lock()
		defer slots.Unlock()
		assert.Empty(t, slots.taken)
		assert.Empty(t, h.encode.queue.turns)
	})
	return h
}

// ask has a call ask for an encoder, as reverse_proxy does.
func (h *Handler) ask(ctx context.Context, c *call) string {
	r := httptest.NewRequestWithContext(context.WithValue(ctx, callKey{}, c), http.MethodPost, "/", nil)
	if u := h.encode.handler.LoadBalancing.SelectionPolicy.Select(h.encode.handler.Upstreams, r, nil); u != nil {
		return u.String()
	}
	return ""
}

// waiting is the number of calls in the queue for encoders.
func (h *Handler) waiting() (n int) {
	slots.Lock()
	defer slots.Unlock()
	for _, t := range h.encode.queue.turns {
		n += len(t.waiting)
	}
	return n
}

// asks has a call ask in the background and returns when it waits.
func (h *Handler) asks(t *testing.T, c *call, then func(instance string)) {
	t.Helper()
	n := h.waiting()
	go func() { then(h.ask(t.Context(), c)) }()
	require.Eventually(t, func() bool { return h.waiting() == n+1 }, 10*time.Second, time.Millisecond)
}

func newCall(t *turn, skip ...string) *call {
	return &call{turn: t, skip: skip, clock: new(stream.Silence)}
}

// Requests take turns, in the order in which they came; so do the items of each.
func TestQueueTakesTurns(t *testing.T) {
	h := limited(t, "", "a:1")
	first := newCall(new(turn))
	require.Equal(t, "a:1", h.ask(t.Context(), first))

	var order []string
	served := make(chan *call)
	ask := func(name string, of *turn) {
		c := newCall(of)
		h.asks(t, c, func(string) {
			order = append(order, name) // one at a time: there is one slot
			served <- c
		})
	}
	a, b, c := new(turn), new(turn), new(turn)
	ask("a1", a)
	ask("a2", a)
	ask("a3", a)
	ask("b1", b)
	ask("c1", c)
	ask("b2", b)
	for next := first; h.waiting() > 0; next = <-served {
		freeSlot(next)
		if h.waiting() == 0 {
			freeSlot(<-served)
			break
		}
	}
	assert.Equal(t, []string{"a1", "b1", "c1", "a2", "b2", "a3"}, order)
}

// A slot at an instance at which a request has failed goes to the next request.
func TestQueuePassesOverWhoHasFailedThere(t *testing.T) {
	h := limited(t, "", "a:1", "b:1")
	held := map[string]*call{}
	for range 2 {
		c := newCall(new(turn))
		held[h.ask(t.Context(), c)] = c
	}
	require.Len(t, held, 2)
	chosen := make(chan string, 2)
	x, y := newCall(new(turn), "a:1"), newCall(new(turn))
	h.asks(t, x, func(i string) { chosen <- "x " + i })
	h.asks(t, y, func(i string) { chosen <- "y " + i })
	freeSlot(held["a:1"])
	assert.Equal(t, "y a:1", <-chosen)
	freeSlot(held["b:1"])
	assert.Equal(t, "x b:1", <-chosen)
	freeSlot(x)
	freeSlot(y)
}

// Who has failed everywhere does not wait for anybody.
func TestQueueIsNotForThoseWithNobodyLeft(t *testing.T) {
	h := limited(t, "", "a:1", "b:1")
	c := newCall(new(turn), "a:1", "b:1")
	assert.Empty(t, h.ask(t.Context(), c))
	assert.NoError(t, c.crowded)
}

// A request that had a slot already is not refused, however many wait.
func TestQueueLetsWhoIsInGoOn(t *testing.T) {
	h := limited(t, `,"queue_size":1`, "a:1")
	in := new(turn)
	first := newCall(in)
	require.Equal(t, "a:1", h.ask(t.Context(), first))
	served := make(chan *call)
	for _, of := range []*turn{new(turn), in} {
		c := newCall(of)
		h.asks(t, c, func(string) { served <- c })
	}
	assert.True(t, h.encode.queue.full(nil))
	late := newCall(new(turn))
	assert.Empty(t, h.ask(t.Context(), late))
	assert.EqualError(t, late.crowded, "the queue is full (queue_size 1)")
	freeSlot(first)
	for range 2 {
		freeSlot(<-served)
	}
	assert.False(t, h.encode.queue.full(nil))
}

// However calls come and go, no instance has more than its limit, everybody is served,
// and nothing stays behind.
func TestQueueInDisorder(t *testing.T) {
	h := limited(t, "", "a:1", "b:1", "c:1")
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		taken  = map[string]int{}
		served int
	)
	for range 16 {
		wg.Go(func() {
			of := new(turn)
			for range 200 {
				c := newCall(of)
				ctx, cancel := context.WithCancel(t.Context())
				if rand.IntN(4) == 0 {
					go cancel()
				}
				i := h.ask(ctx, c)
				mu.Lock()
				if c.slot != (instance{}) {
					taken[i]++
					served++
					assert.LessOrEqual(t, taken[i], 1)
				} else {
					assert.Error(t, ctx.Err())
				}
				mu.Unlock()
				runtime.Gosched()
				if c.slot != (instance{}) {
					mu.Lock()
					taken[i]--
					mu.Unlock()
				}
				freeSlot(c)
				cancel()
			}
		})
	}
	wg.Wait()
	assert.Greater(t, served, 1000)
}

// A slot that is free is for who waits, not for who comes at that moment.
func TestQueueIsNotJumped(t *testing.T) {
	h := limited(t, "", "a:1")
	for range 100 {
		first := newCall(new(turn))
		require.Equal(t, "a:1", h.ask(t.Context(), first))
		order := make(chan string, 2)
		waits, comes := newCall(new(turn)), newCall(new(turn))
		h.asks(t, waits, func(string) {
			order <- "waits"
			freeSlot(waits)
		})
		freeSlot(first)
		h.ask(t.Context(), comes)
		order <- "comes"
		freeSlot(comes)
		require.Equal(t, "waits", <-order)
		<-order
	}
}
