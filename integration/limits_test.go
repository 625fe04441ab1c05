package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// No instance ever gets more requests than its pool's limit, and all requests are served.
func TestLimits(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 2, 2, func(o *fakevllm.Options) {
		o.Delay = map[fakevllm.Role]time.Duration{fakevllm.Encode: 10, fakevllm.Prefill: 5, fakevllm.Decode: 20}[o.Role] * time.Millisecond
	})
	c := startCaddy(t, e.block("encode_limit 3", "prefill_limit 2", "decode_limit 2"))
	c.crowd(t, c.client(t, true), 48, 8, mixed)
	for i := range 2 {
		// more means that the limit is exceeded, less that engines are left idle
		assert.Equal(t, 3, e.encode[i].Peak())
		assert.Equal(t, 2, e.decode[i].Peak())
		assert.LessOrEqual(t, e.prefill[i].Peak(), 2)
	}
	e.assertContract(t)
	assert.Empty(t, c.lines())
}

// occupy sends a request that one of these engines holds until release is called.
func (c *caddy) occupy(t *testing.T, body, mark string, list ...*fakevllm.Engine) (release func()) {
	t.Helper()
	setFault(fault{Kind: fakevllm.Hang, Match: mark}, list...)
	before := arrived(list...)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if res, err := c.send(ctx, c.client(t, true), http.MethodPost, chatPath, body); err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	})
	require.Eventually(t, func() bool { return arrived(list...) > before }, waitLong, time.Millisecond)
	return func() {
		cancel()
		wg.Wait()
	}
}

// arrived is the number of requests that the engines have got.
func arrived(list ...*fakevllm.Engine) (n int) {
	for _, engine := range list {
		n += len(engine.Requests())
	}
	return n
}

// busy is the number of requests in service at the engines.
func busy(list ...*fakevllm.Engine) (n int) {
	for _, engine := range list {
		n += engine.InFlight()
	}
	return n
}

// A request waits for the pool, not for one busy instance.
func TestBusyInstanceHoldsUpNobody(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"round_robin", "first", "least_conn", "header X-Request-Id"} {
		e := startEngines(t, 2, 0, 2)
		only := "lb_policy " + policy
		c := startCaddy(t, e.block("encode_limit 1", "decode_limit 1", "queue_timeout 10s", "encode "+only, "decode "+only))
		defer c.occupy(t, chat("", image("HELD")), "HELD", e.encode...)()
		defer c.occupy(t, chat("", text("STUCK")), "STUCK", e.decode...)()
		for range 8 {
			body := chat("", image("AAAA"), image("BBBB"))
			assertAnswer(t, body, c.post(t, body))
		}
		assert.Equal(t, "healthy", object(t, c.do(t, http.MethodGet, "/health", "").body)["decode_cluster"])
		assert.Empty(t, c.lines())
	}
}

// A request that finds the queue full is rejected at once, before any work; one that
// waits too long, after that time.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	for stage, tc := range map[string]struct {
		list func(*engines) []*fakevllm.Engine
		body string
	}{
		"encode":  {func(e *engines) []*fakevllm.Engine { return e.encode }, chat("", image("HELD"))},
		"prefill": {func(e *engines) []*fakevllm.Engine { return e.prefill }, chat("", text("HELD"))},
		"decode":  {func(e *engines) []*fakevllm.Engine { return e.decode }, chat("", text("HELD"))},
	} {
		for size := range 2 {
			t.Run(fmt.Sprintf("%s, queue of %d", stage, size), func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, 1, 1, 1)
				c := startCaddy(t, e.block(stage+"_limit 1", fmt.Sprintf("queue_size %d", size), "queue_timeout 2s", "kv_lease 3s"))
				list := tc.list(e)
				defer c.occupy(t, tc.body, "HELD", list...)()
				encode, prefill, decode := e.requests()

				late := strings.Replace(tc.body, "HELD", "LATE", 1)
				replies := make(chan *reply, 4)
				for range cap(replies) {
					go func() { replies <- c.post(t, late) }()
				}
				waited := 0
				for range cap(replies) {
					r := <-replies
					require.Equal(t, http.StatusServiceUnavailable, r.StatusCode, "%s", r.body)
					assert.Equal(t, stage+"_overloaded", r.apiError(t).str("code"))
					assert.Regexp(t, "^[1-5]$", r.Header.Get("Retry-After"))
					line := c.failure(t, r.id())
					access := c.access(t, r.id())
					if seconds := access.at("epd", "duration").(float64); seconds >= 2 {
						waited++
						assert.Equal(t, "failed", access.str("epd", "outcome"))
						assert.Equal(t, "overloaded", line.str("reason"))
						assert.Equal(t, "waited 2s for an instance (queue_timeout)", line.str("error"))
					} else {
						assert.Less(t, seconds, 1.0)
					}
				}
				assert.Equal(t, size, waited)
				c.metrics(t).has(t, map[string]float64{`stage_failures_total{reason="overloaded",stage="` + stage + `"}`: float64(cap(replies))})
				if size == 0 {
					e.assertRequests(t, encode, prefill, decode)
				}
			})
		}
	}
}

// A request with many images does not delay the items of other requests until all of its own are done.
func TestManyImagesLetOthersThrough(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) {
		if o.Role == fakevllm.Encode {
			o.Delay = 50 * time.Millisecond
		}
	})
	c := startCaddy(t, e.block("encode_limit 1"))
	var many []string
	for i := range 32 {
		many = append(many, image(fmt.Sprintf("MANY%04d", i)))
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		assert.NoError(t, c.check(t, c.client(t, true), chat("", many...)))
	}()
	require.Eventually(t, func() bool { return len(e.encode[0].Requests()) > 0 }, waitLong, time.Millisecond)
	body := chat("", image("FEWX"))
	assertAnswer(t, body, c.post(t, body))
	before := len(e.encode[0].Requests())
	assert.Less(t, before, 16, "items of the large request before the other one")
	<-over
}

// The time that an item waits for an encoder does not count towards encode_timeout.
func TestWaitingIsNoSilence(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) {
		if o.Role == fakevllm.Encode {
			o.Delay = 300 * time.Millisecond
		}
	})
	c := startCaddy(t, e.block("encode_limit 1", "encode_timeout 1s"))
	body := chat("", image("AAAA"), image("BBBB"), image("CCCC"), image("DDDD"), image("EEEE"), image("FFFF"))
	assertAnswer(t, body, c.post(t, body))
	assert.Len(t, e.encode[0].Requests(), 6)
}

// A client that leaves the queue leaves nothing behind.
func TestClientLeavesTheQueue(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("encode_limit 1", "queue_size 1"))
	release := c.occupy(t, chat("", image("HELD")), "HELD", e.encode...)
	for range 3 {
		ctx, leave := context.WithCancel(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := c.send(ctx, c.client(t, true), http.MethodPost, chatPath, chat("", image("GONE"), image("AWAY")), "X-Request-Id: left")
			left <- err
		}()
		waiting := func() float64 { return c.metrics(t)[`caddy_epd_stage_requests_waiting{stage="encode"}`] }
		require.Eventually(t, func() bool { return waiting() == 1 }, waitLong, tick)
		leave()
		assert.ErrorIs(t, <-left, context.Canceled)
		require.Eventually(t, func() bool { return waiting() == 0 }, waitLong, tick)
	}
	for _, e := range c.entries(t, 3, func(e entry) bool { return e.str("epd", "request_id") == "left" }) {
		assert.Equal(t, 499.0, e.at("status"))
	}
	release()
	body := chat("", image("AAAA"), image("BBBB"))
	assertAnswer(t, body, c.post(t, body))
	for _, r := range e.encode[0].Requests() {
		assert.NotContains(t, string(r.Body), "GONE")
	}
	c.assertNoLeaks(t)
}

// Requests of the previous configuration that are in flight count towards the limit.
func TestLimitsSurviveReload(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	release := c.occupy(t, chat("", text("HELD")), "HELD", e.decode...)
	c.reload(t, e.block("decode_limit 1", "queue_size 0"))
	r := c.post(t, chat("", text("x")))
	assert.Equal(t, "decode_overloaded", r.apiError(t).str("code"))
	assert.Equal(t, http.StatusOK, c.do(t, http.MethodGet, "/v1/models", "").StatusCode, "GET /v1/models does not wait")
	release()
	require.Eventually(t, func() bool { return c.post(t, chat("", text("x"))).StatusCode == http.StatusOK }, waitLong, tick)
	assert.Equal(t, 2, e.decode[0].Peak(), "the held one, and the list of models")
}

// A waiting request gets an instance that comes up again, without another request having to end.
func TestInstanceComesBackToTheQueue(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 2)
	c := startCaddy(t, e.block("decode_limit 1", "decode health_interval 50ms"))
	health := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool {
			return object(t, c.do(t, http.MethodGet, "/health", "").body)["decode_cluster"] == want
		}, waitLong, tick)
	}
	e.decode[1].Kill()
	health("degraded")
	defer c.occupy(t, chat("", text("HELD")), "HELD", e.decode[0])()
	body := chat("", image("AAAA"))
	answered := make(chan error)
	go func() { answered <- c.check(t, c.client(t, true), body) }()
	require.Eventually(t, func() bool { return len(e.encode[0].Requests()) == 1 }, waitLong, tick)
	require.NoError(t, e.decode[1].Restart())
	assert.NoError(t, <-answered)
	assert.Len(t, e.decode[1].Requests(), 1)
}

// Caddy's own policies work with all other ones as fallback.
func TestStockPoliciesThatFallBack(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"", "decode_limit 1"} {
		e := startEngines(t, 1, 0, 2)
		c := startCaddy(t, e.block(limit, "decode lb_policy header X-Session {\nfallback cookie\n}"))
		for range 3 {
			body := chat("", image("AAAA"))
			assertAnswer(t, body, c.post(t, body, "X-Session: 1"))
			r := c.post(t, body)
			assertAnswer(t, body, r)
			require.Len(t, r.Header["Set-Cookie"], 1)
			cookie, _, _ := strings.Cut(r.Header.Get("Set-Cookie"), ";")
			again := c.post(t, body, "Cookie: "+cookie)
			assertAnswer(t, body, again)
			assert.Equal(t, r.Header.Get("X-Engine"), again.Header.Get("X-Engine"))
			assert.Empty(t, again.Header["Set-Cookie"])
		}
		assert.Equal(t, "healthy", object(t, c.do(t, http.MethodGet, "/health", "").body)["decode_cluster"])
		assert.Empty(t, c.lines())
	}
}

// After a reload, requests that were waiting before it and requests that come after it
// share the new limit.
func TestWaitingGetsTheNewLimit(t *testing.T) {
	t.Parallel()
	for _, limit := range []string{"decode_limit 4", ""} {
		e := startEngines(t, 1, 0, 1)
		c := startCaddy(t, e.block("decode_limit 1"))
		release := c.occupy(t, chat("", text("HELD")), "HELD", e.decode...)
		waiting := c.askFor(t, chat("", text("HELD")), chat("", text("HELD")), chat("", text("HELD")))
		c.reload(t, e.block(limit))
		require.Eventually(t, func() bool { return e.decode[0].InFlight() == 4 }, waitLong, tick)
		setFault(fault{}, e.decode...)
		for _, r := range waiting {
			assert.Equal(t, http.StatusOK, (<-r).StatusCode)
		}
		release()
		e.assertContract(t)
	}
}

// A prefill instance that hangs keeps only its share of the requests, so that others reach
// decode.
func TestPrefillThatHangsHoldsUpNobody(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 2, 1)
	c := startCaddy(t, e.block("decode_limit 4", "queue_timeout 2s", "prefill health_fails 1000"))
	setFault(fault{Kind: fakevllm.Hang}, e.prefill[0])
	body := chat("", text("x"))
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if res, err := c.send(ctx, c.client(t, true), http.MethodPost, chatPath, body); err == nil {
				_ = res.Body.Close()
			}
		})
	}
	require.Eventually(t, func() bool { return e.prefill[0].InFlight() == 2 && len(e.decode[0].Requests()) == 10 }, waitLong, tick)
	for range 6 {
		assertAnswer(t, body, c.post(t, body))
	}
	leave()
	wg.Wait()
	c.assertNoLeaks(t)
}

// The items of an album are queued together. As long as they get slots one after the other,
// none exceeds queue_timeout.
func TestAlbumsAreServedToTheirEnd(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) {
		if o.Role == fakevllm.Encode {
			o.Delay = 150 * time.Millisecond
		}
	})
	c := startCaddy(t, e.block("encode_limit 1", "queue_timeout 2s"))
	var replies []chan *reply
	for range 3 {
		var parts []string
		for n := range 8 {
			parts = append(parts, image(fmt.Sprintf("AAA%d", n)))
		}
		answered := make(chan *reply, 1)
		go func() { answered <- c.post(t, chat("", parts...)) }()
		replies = append(replies, answered)
	}
	for _, r := range replies {
		assert.Equal(t, http.StatusOK, (<-r).StatusCode)
	}
	e.assertContract(t)
}
