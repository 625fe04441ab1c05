package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

const completionsPath = "/v1/completions"

// Requests that vLLM splits, or whose prompt decode always computes, skip prefill; requests
// that only look like them do not. The client gets all choices in either case.
func TestRequestsWithoutHandOver(t *testing.T) {
	t.Parallel()
	completion := func(members string) string { return `{"model":"fake",` + members + `}` }
	for name, tc := range map[string]struct {
		path, body string
		prefills   int
	}{
		"prompts":              {completionsPath, completion(`"prompt":["one","two"]`), 0},
		"prompts of tokens":    {completionsPath, completion(`"prompt":[[1,2],[3]]`), 0},
		"prompts, spaced":      {completionsPath, completion(`"prompt": [ "o,\"]ne" , "two" ]`), 0},
		"tokens":               {completionsPath, completion(`"prompt":[1,2,3]`), 1},
		"one prompt in a list": {completionsPath, completion(`"prompt":["one, two"]`), 1},
		"one list of tokens":   {completionsPath, completion(`"prompt":[[1,2]]`), 1},
		"embeddings too":       {completionsPath, completion(`"prompt":"a","prompt_embeds":"QUJD"`), 0},

		"n":             {chatPath, chat(`,"n":2`, text("x")), 0},
		"n, media":      {chatPath, chat(`,"n":2`, text("x"), image("AAAA")), 0},
		"n in a string": {chatPath, chat(`,"n":"2"`, text("x")), 0},
		"n with a dot":  {completionsPath, completion(`"prompt":"a","n":2.0`), 0},
		"n 1":           {chatPath, chat(`,"n":1`, text("x")), 1},
		"n 1, lax":      {chatPath, chat(`,"n":"1"`, text("x")), 1},
		"n null":        {chatPath, chat(`,"n":null`, text("x")), 1},
		"best_of":       {completionsPath, completion(`"prompt":"a","best_of":3`), 0},
		"beams":         {chatPath, chat(`,"use_beam_search":true`, text("x")), 0},
		"no beams":      {chatPath, chat(`,"use_beam_search":false`, text("x")), 1},

		"prompt_logprobs":        {chatPath, chat(`,"prompt_logprobs":0`, text("x"), image("AAAA")), 0},
		"prompt_logprobs null":   {chatPath, chat(`,"prompt_logprobs":null`, text("x")), 1},
		"echo of a chat":         {chatPath, chat(`,"echo":true`, text("x")), 0},
		"echo off":               {chatPath, chat(`,"echo":false,"logprobs":true`, text("x")), 1},
		"echo with logprobs":     {completionsPath, completion(`"prompt":"a","echo":"yes","logprobs":1`), 0},
		"echo without":           {completionsPath, completion(`"prompt":"a","echo":true,"logprobs":null`), 1},
		"truncate_prompt_tokens": {completionsPath, completion(`"prompt":"a","truncate_prompt_tokens":-1`), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 1, modern)
			c := startCaddy(t, e.block("references", "trust_clients")) // for prompt_embeds
			for _, body := range []string{tc.body, stream(tc.body)} {
				e.reset()
				r := c.do(t, http.MethodPost, tc.path, body, "X-Request-Id: mine")
				assertAnswer(t, body, r)
				e.assertContract(t)
				// decode does not use delivered embeddings, so encoders are not needed
				e.assertRequests(t, 0, tc.prefills, 1)
				for _, engine := range e.prefill {
					for _, got := range engine.Requests() {
						assert.NotRegexp(t, `"n": ?[^1]`, string(got.Body))
					}
				}
				without := c.access(t, "mine").at("epd", "no_prefill")
				assert.Equal(t, tc.prefills == 0, without != nil, "no_prefill: %v", without)
				if tc.prefills == 0 {
					assert.NotContains(t, string(e.decode[0].Requests()[0].Body), "kv_transfer_params")
				}
			}
		})
	}
}

// Without a prefill pool, decode computes every prompt anyway, so media are encoded.
func TestSplitRequestsWithoutPrefillPool(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	body := chat(`,"n":2`, text("x"), image("AAAA"))
	assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
	e.assertRequests(t, 1, 0, 1)
	e.assertContract(t)
}

// min_tokens is checked by decode, whatever its form.
func TestPrefillGetsNoMinTokens(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	for _, value := range []string{`5`, `1`, `" 5 "`, `"\u0035"`, `5e0`} {
		e.reset()
		body := chat(fmt.Sprintf(`,"min_tokens":%s`, value), text("x"))
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
		e.assertContract(t)
		for engine, want := range map[*fakevllm.Engine]bool{e.prefill[0]: false, e.decode[0]: true} {
			assert.Equal(t, want, bytes.Contains(engine.Requests()[0].Body, []byte(`"min_tokens":`+value)), "%s at %s", value, engine.Name())
		}
	}
}

// askFor sends requests one after the other, each when the previous one waits for decode
// or is there, and returns channels for the replies.
func (c *caddy) askFor(t *testing.T, bodies ...string) (replies []chan *reply) {
	t.Helper()
	for _, body := range bodies {
		before := c.seen(t)
		answered := make(chan *reply, 1)
		go func() { answered <- c.post(t, body) }()
		require.Eventually(t, func() bool { return c.seen(t) > before }, waitLong, tick)
		replies = append(replies, answered)
	}
	return replies
}

// seen is how many requests wait for decode, are there, or have been answered.
func (c *caddy) seen(t *testing.T) (n int) {
	m := c.metrics(t)
	for _, name := range []string{`stage_requests_waiting{stage="decode"}`, `stage_requests_in_flight{stage="decode"}`} {
		n += int(m["caddy_epd_"+name])
	}
	for _, outcome := range []string{"ok", "failed", "client_closed"} {
		n += int(m[`caddy_epd_requests_total{api="chat_completions",outcome="`+outcome+`"}`])
	}
	return n
}

// waiting is the number of requests that wait for decode.
func (c *caddy) waiting(t *testing.T) int {
	return int(c.metrics(t)[`caddy_epd_stage_requests_waiting{stage="decode"}`])
}

// While decode is busy, the number of prefilled requests is little more than the number of its
// slots, and the others wait before prefill, in order. A request that waits there too long, or
// finds the queue full, is rejected without a prefill; one that has been prefilled is not.
func TestRefusedBeforePrefill(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block("decode_limit 1", "queue_size 3", "queue_timeout 4s", "kv_lease 10m"))
	release := c.occupy(t, chat("", text("HELD")), "HELD", e.decode...)
	replies := c.askFor(t, chat("", text("ready")), chat("", image("LATE"), text("one")), chat("", text("two")), chat("", text("full")))
	assert.Equal(t, 3, c.waiting(t))
	assert.Equal(t, 3, c.status(t).Handlers[0].Pools[2].Waiting)
	for n, why := range map[int]string{3: "the queue is full (queue_size 3)", 1: "waited 4s for an instance (queue_timeout)", 2: "waited 4s for an instance (queue_timeout)"} {
		r := <-replies[n]
		assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		assert.Equal(t, "decode_overloaded", r.apiError(t).str("code"))
		assert.NotEmpty(t, r.Header.Get("Retry-After"))
		if line := c.failure(t, r.id()); line.str("msg") == "request failed" {
			assert.Equal(t, why, line.str("error"))
			assert.Equal(t, "decode", line.str("stage"))
		}
	}
	assert.Len(t, e.prefill[0].Requests(), 2)
	release()
	assertAnswer(t, chat("", text("ready")), <-replies[0])
	assert.Len(t, e.prefill[0].Requests(), 2)
	e.assertContract(t)
	c.assertNoLeaks(t)
}

// Requests before prefill go on in order as decode gets free slots, and a client that leaves
// meanwhile leaves nothing behind.
func TestWaitingBeforePrefillIsInTurn(t *testing.T) {
	t.Parallel()
	for _, options := range [][]string{nil, {"prefill_limit 1"}} {
		e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) {
			if o.Role == fakevllm.Decode {
				o.Delay = 200 * time.Millisecond // time to prefill the next one
			}
		})
		c := startCaddy(t, e.block(append(options, "decode_limit 1")...))
		release := c.occupy(t, chat("", text("HELD")), "HELD", e.decode...)
		first := c.askFor(t, chat("", text("T0")), chat("", text("T1")))
		ctx, leave := context.WithCancel(t.Context())
		gone := make(chan error)
		go func() {
			_, err := c.send(ctx, c.client(t, true), http.MethodPost, chatPath, chat("", text("GONE")))
			gone <- err
		}()
		require.Eventually(t, func() bool { return c.waiting(t) == 3 }, waitLong, tick)
		rest := c.askFor(t, chat("", text("T2")), chat(`,"n":2`, text("T3")))
		leave()
		assert.ErrorIs(t, <-gone, context.Canceled)
		require.Eventually(t, func() bool { return c.waiting(t) == 4 }, waitLong, tick)
		assert.Len(t, e.prefill[0].Requests(), 2)
		release()
		for n, r := range append(first, rest...) {
			assert.Equal(t, http.StatusOK, (<-r).StatusCode, n)
		}
		var order []string
		for _, r := range e.decode[0].Requests() {
			order = append(order, regexp.MustCompile(`HELD|GONE|T\d`).FindString(string(r.Body)))
		}
		assert.Equal(t, []string{"HELD", "T0", "T1", "T2", "T3"}, order)
		e.assertContract(t)
		c.assertNoLeaks(t)
	}
}

// A request that has waited longer than its blocks are guaranteed to exist is prefilled again,
// once. If the new blocks expire too, decode computes the prompt.
func TestBlocksThatAreTooOldAreMadeAgain(t *testing.T) {
	t.Parallel()
	const lease = 3 * time.Second
	for name, change := range map[string]func(*fakevllm.Options){
		"shared":     func(*fakevllm.Options) {},
		"handles":    func(o *fakevllm.Options) { o.Handles = true },
		"references": modern,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 1, change, func(o *fakevllm.Options) { o.KVLease, o.ComputesPrompts = lease, true })
			lines := []string{"decode_limit 1", "kv_lease " + lease.String()}
			if name == "references" {
				lines = append(lines, "references")
			}
			c := startCaddy(t, e.block(lines...))
			release := c.occupy(t, chat("", text("HELD")), "HELD", e.decode...)
			old := chat("", text("OLD"), image("AAAA"))
			first := c.askFor(t, old)[0]
			second := c.askFor(t, chat("", text("HELD")))[0]
			time.Sleep(lease * 2 / 3) // until the blocks are too old
			setFault(fault{Kind: fakevllm.Hang, Match: "OLD"}, e.prefill...)
			release()
			require.Eventually(t, func() bool { return busy(e.decode...) == 1 && len(e.decode[0].Requests()) == 2 }, waitLong, tick, "the slot is not held during the prefill")
			setFault(fault{}, e.prefill...)
			require.Eventually(t, func() bool { return c.waiting(t) == 1 }, waitLong, tick)
			time.Sleep(lease * 2 / 3)
			setFault(fault{}, e.decode...)
			assertAnswer(t, chat("", text("HELD")), <-second)
			assertAnswer(t, old, <-first)
			prefilled := 0
			for _, r := range e.prefill[0].Requests() {
				if bytes.Contains(r.Body, []byte("OLD")) {
					prefilled++
				}
			}
			assert.Equal(t, 2, prefilled)
			last := e.decode[0].Requests()[2].Body
			assert.NotContains(t, string(last), "kv_transfer_params")
			assert.Contains(t, string(last), "base64,AAAA", "there is no embedding at decode to refer to")
			e.assertContract(t)
			c.assertNoLeaks(t)
		})
	}
}

// A request that has passed the gate keeps its place when decode fails and prefill is repeated.
func TestFailoverBehindTheGate(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 2, 2)
	c := startCaddy(t, e.block("decode_limit 1", "decode lb_policy first", "queue_size 2"))
	setFault(fault{Kind: fakevllm.Status, Code: 503, Spend: true}, e.decode[0])
	body := chat("", image("AAAA"))
	for range 3 {
		assertAnswer(t, body, c.post(t, body))
	}
	e.assertContract(t)
	e.assertRequests(t, 3, 6, 6)
	c.assertNoLeaks(t)
}

// If decode gets the embeddings too, media are also encoded for requests without prefill,
// and again if a decode attempt has spent the embeddings.
func TestRequestsWithoutHandOverAreEncodedForDecode(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*fakevllm.Options){"references": modern, "handles": withHandles} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 2, change, func(o *fakevllm.Options) { o.RequireKV = false })
			c := startCaddy(t, e.block("references", "decode_has_embeddings", "decode lb_policy first"))
			e.decode[0].SetFault(fault{Kind: fakevllm.Status, Code: 503, Spend: true})
			body := chat(`,"n":2`, text("x"), image("AAAA"))
			assertAnswer(t, body, c.post(t, body))
			e.assertContract(t)
			e.assertRequests(t, 2, 0, 2)
			assert.Contains(t, string(e.decode[1].Requests()[0].Body), "image_embeds")
		})
	}
}

// If prefill hands nothing over, the log says so once, and metrics and status do. Clients
// get their answers, and nothing is retried for it.
func TestPrefillHandsNothingOver(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, modern, func(o *fakevllm.Options) { o.NoHandOver, o.ComputesPrompts = true, true })
	c := startCaddy(t, e.block("references"))
	for _, body := range []string{chat("", image("AAAA")), stream(chat("", text("x"))), chat("", text("y"), image("BBBB"))} {
		assertAnswer(t, body, c.post(t, body))
	}
	body := chat(`,"n":2`, text("z"))
	assertAnswer(t, body, c.post(t, body))
	e.assertContract(t)
	e.assertRequests(t, 2, 3, 4)
	lines := c.lines()
	require.Len(t, lines, 1)
	assert.Equal(t, "warn", lines[0].str("level"))
	assert.Contains(t, lines[0].str("msg"), "prefill hands no KV blocks over")
	assert.Equal(t, "prefill#1", lines[0].str("upstream"))
	c.metrics(t).has(t, map[string]float64{
		`prefill_handoffs_total{result="none"}`:    3,
		`prefill_handoffs_total{result="blocks"}`:  0,
		`prefill_handoffs_total{result="expired"}`: 0,
		`prefill_handoffs_total{result="skipped"}`: 1,
	})
	assert.Equal(t, 3, c.status(t).Handlers[0].Pools[1].Upstreams[0].HandOvers.None)
}

// The number of cached tokens is that of prefill. If prefill does not report it, it is
// removed. The rest of the answer does not change, not even its length.
func TestCachedTokensArePrefills(t *testing.T) {
	t.Parallel()
	lookalike := `"usage":{"prompt_tokens_details":{"cached_tokens":999}}`
	for name, tc := range map[string]struct {
		change func(*fakevllm.Options)
		want   any // cached tokens of the request with a prefill
	}{
		"prefill says":     {func(o *fakevllm.Options) { o.PromptDetails = true; o.CachedTokens = 7 }, 7.0},
		"prefill says 0":   {func(o *fakevllm.Options) { o.PromptDetails = true }, 0.0},
		"only decode says": {func(o *fakevllm.Options) { o.PromptDetails = o.Role == fakevllm.Decode }, nil},
		"nothing is handed": {func(o *fakevllm.Options) {
			o.PromptDetails, o.NoHandOver, o.ComputesPrompts, o.CachedTokens = true, true, true, 5
		}, 5.0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 1, tc.change)
			c := startCaddy(t, e.block())
			for path, body := range map[string]string{chatPath: chat("", text(lookalike), image("AAAA")), completionsPath: `{"model":"fake","prompt":"a prompt that is long enough"}`} {
				r := c.do(t, http.MethodPost, path, body)
				assertAnswer(t, body, r)
				assert.Equal(t, fmt.Sprint(len(r.body)), r.Header.Get("Content-Length"))
				assert.Equal(t, tc.want, cached(t, r.body))

				r = c.do(t, http.MethodPost, path, stream(body))
				assertAnswer(t, stream(body), r)
				usage := regexp.MustCompile(`data: (.*"choices":\[\],.*)\n`).FindSubmatch(r.body)
				require.NotNil(t, usage)
				assert.Equal(t, tc.want, cached(t, usage[1]))
			}
			e.assertContract(t)
		})
	}
}

// cached returns the cached tokens in the usage of an answer, nil if there are none.
func cached(t *testing.T, answer []byte) any {
	t.Helper()
	return entry(object(t, answer)).at("usage", "prompt_tokens_details", "cached_tokens")
}
