package integration

import (
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

type fault = fakevllm.Fault

func setFault(f fault, list ...*fakevllm.Engine) {
	for _, e := range list {
		e.SetFault(f)
	}
}

// post sends a chat completions request.
func (c *caddy) post(t *testing.T, body string, headers ...string) *reply {
	t.Helper()
	return c.do(t, http.MethodPost, chatPath, body, headers...)
}

// noKeepalive disables connection reuse: a request that fails at once on a reused
// connection counts as one that met the end of an idle connection.
const noKeepalive = "transport http {\nkeepalive off\n}"

// What a client gets if a stage fails finally, and how many attempts there were.
func TestFailures(t *testing.T) {
	t.Parallel()
	picture := chat("", text("x"), image("AAAA"))
	for name, tc := range map[string]struct {
		role     fakevllm.Role
		fault    fault
		options  []string
		body     string
		status   int
		code     any
		message  string
		requests [3]int // at encode, prefill, decode
	}{
		"encode 400":               {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 400, Message: "the image is too large"}, status: 400, code: 400.0, message: "the image is too large", requests: [3]int{1, 0, 0}},
		"encode 422":               {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 422, Message: "no"}, status: 422, code: 422.0, message: "no", requests: [3]int{1, 0, 0}},
		"encode 500":               {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 500, Message: "out of memory"}, status: 500, code: 500.0, message: "out of memory", requests: [3]int{2, 0, 0}},
		"encode 503":               {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 503, Message: "busy"}, status: 503, code: 503.0, message: "busy", requests: [3]int{2, 0, 0}},
		"encode 500, no retries":   {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 500, Message: "out of memory"}, options: []string{"retries 0"}, status: 500, code: 500.0, message: "out of memory", requests: [3]int{1, 0, 0}},
		"encode 500, more retries": {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 500, Message: "out of memory"}, options: []string{"retries 9"}, status: 500, code: 500.0, message: "out of memory", requests: [3]int{3, 0, 0}},
		"encode redirects":         {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 302, Message: "x"}, status: 502, code: "encode_failed", requests: [3]int{1, 0, 0}},
		"encode is garbage":        {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Garbage}, status: 502, code: "encode_failed", requests: [3]int{2, 0, 0}},
		"encode is cut":            {role: fakevllm.Encode, fault: fault{Kind: fakevllm.CutBefore}, options: []string{"encode " + noKeepalive}, status: 502, code: "encode_failed", requests: [3]int{2, 0, 0}},
		"encode is cut in two":     {role: fakevllm.Encode, fault: fault{Kind: fakevllm.CutMiddle}, status: 502, code: "encode_failed", requests: [3]int{2, 0, 0}},
		"encode hangs":             {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Hang}, options: []string{"encode_timeout 1s", "retries 2"}, status: 504, code: "encode_timeout", requests: [3]int{2, 0, 0}},
		"encode hangs, no retries": {role: fakevllm.Encode, fault: fault{Kind: fakevllm.Hang}, options: []string{"encode_timeout 1s", "retries 0"}, status: 504, code: "encode_timeout", requests: [3]int{1, 0, 0}},

		"prefill 400":           {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.Status, Code: 400, Message: "the prompt is too long"}, status: 400, code: 400.0, message: "the prompt is too long", requests: [3]int{1, 1, 0}},
		"prefill 500":           {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.Status, Code: 500, Message: "out of memory"}, status: 500, code: 500.0, message: "out of memory", requests: [3]int{1, 2, 0}},
		"prefill is garbage":    {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.Garbage}, status: 502, code: "prefill_failed", requests: [3]int{1, 2, 0}},
		"prefill is cut":        {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.CutBefore}, options: []string{"prefill " + noKeepalive}, status: 502, code: "prefill_failed", requests: [3]int{1, 2, 0}},
		"prefill is cut in two": {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.CutMiddle}, status: 502, code: "prefill_failed", requests: [3]int{1, 2, 0}},
		"prefill hangs":         {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.Hang}, options: []string{"prefill_timeout 1s"}, status: 504, code: "prefill_timeout", requests: [3]int{1, 1, 0}},
		"prefill times out":     {role: fakevllm.Prefill, fault: fault{Kind: fakevllm.Hang}, options: []string{"prefill transport http {\nresponse_header_timeout 1s\n}"}, status: 504, code: "prefill_timeout", requests: [3]int{1, 1, 0}},

		"decode 400":        {role: fakevllm.Decode, fault: fault{Kind: fakevllm.Status, Code: 400, Message: "bad sampling"}, status: 400, code: 400.0, message: "bad sampling", requests: [3]int{1, 1, 1}},
		"decode 500":        {role: fakevllm.Decode, fault: fault{Kind: fakevllm.Status, Code: 500, Message: "out of memory"}, status: 500, code: 500.0, message: "out of memory", requests: [3]int{1, 2, 2}},
		"decode 503":        {role: fakevllm.Decode, fault: fault{Kind: fakevllm.Status, Code: 503, Message: "busy"}, status: 503, code: 503.0, message: "busy", requests: [3]int{1, 2, 2}},
		"decode is cut":     {role: fakevllm.Decode, fault: fault{Kind: fakevllm.CutBefore}, options: []string{"decode " + noKeepalive}, status: 502, code: "decode_failed", requests: [3]int{1, 2, 2}},
		"decode times out":  {role: fakevllm.Decode, fault: fault{Kind: fakevllm.Hang}, options: []string{"decode transport http {\nresponse_header_timeout 1s\n}"}, status: 504, code: "decode_timeout", requests: [3]int{1, 1, 1}},
		"decode 503, twice": {role: fakevllm.Decode, fault: fault{Kind: fakevllm.Status, Code: 503, Message: "busy"}, options: []string{"retries 2"}, status: 503, code: 503.0, message: "busy", requests: [3]int{1, 3, 3}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 3, 3, 3)
			c := startCaddy(t, e.block(tc.options...))
			for _, engine := range e.all() {
				if strings.HasPrefix(engine.Name(), string(tc.role)) {
					engine.SetFault(tc.fault)
				}
			}
			for _, body := range []string{picture, stream(picture)} {
				e.reset()
				r := c.post(t, body)
				assert.Equal(t, tc.status, r.StatusCode)
				got := r.apiError(t)
				assert.Equal(t, tc.code, got["code"])
				if tc.message != "" {
					assert.Equal(t, tc.message, got["message"])
				}
				e.assertRequests(t, tc.requests[0], tc.requests[1], tc.requests[2])
				e.assertContract(t)

				access := c.access(t, r.id()) // the last entry
				lines := c.failures(r.id())
				require.Len(t, lines, tc.requests[map[fakevllm.Role]int{fakevllm.Encode: 0, fakevllm.Prefill: 1, fakevllm.Decode: 2}[tc.role]])
				for i, line := range lines {
					assert.Equal(t, string(tc.role), line["stage"])
					assert.Equal(t, i < len(lines)-1, line["retrying"])
					assert.Regexp(t, "^"+string(tc.role)+"#[123]$", line["upstream"])
					assert.NotEmpty(t, line["error"])
				}
				outcome := "failed"
				if tc.status < http.StatusInternalServerError {
					outcome = "rejected" // from an engine
				}
				assert.Equal(t, outcome, access.str("epd", "outcome"))
				assert.EqualValues(t, len(lines), access.at("epd", string(tc.role), "attempts"))
			}
		})
	}
}

// The failure of one instance is invisible to clients.
func TestFailover(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{
		"500":             {Kind: fakevllm.Status, Code: 500},
		"502":             {Kind: fakevllm.Status, Code: 502},
		"503":             {Kind: fakevllm.Status, Code: 503, Spend: true},
		"504":             {Kind: fakevllm.Status, Code: 504},
		"cut":             {Kind: fakevllm.CutBefore, Spend: true},
		"cut in two":      {Kind: fakevllm.CutMiddle},
		"garbage":         {Kind: fakevllm.Garbage},
		"hangs in encode": {Kind: fakevllm.Hang},
		"dead":            {Kind: fakevllm.Crash},
	} {
		for _, handles := range []bool{false, true} {
			for _, prefills := range []int{0, 2} {
				t.Run(fmt.Sprintf("%s, handles %v, %d prefills", name, handles, prefills), func(t *testing.T) {
					t.Parallel()
					e := startEngines(t, 2, prefills, 2, func(o *fakevllm.Options) { o.Handles = handles })
					c := startCaddy(t, e.block("encode_timeout 2s")) // long enough for the other encoder on a busy machine
					e.encode[0].SetFault(f)
					if prefills > 0 && f.Kind != fakevllm.Hang {
						e.prefill[0].SetFault(f)
					}
					if f.Code > 500 || f.Kind == fakevllm.CutBefore || f.Kind == fakevllm.Crash {
						e.decode[0].SetFault(f)
					}
					rounds := 4
					if f.Kind == fakevllm.Hang {
						rounds = 1
					}
					for range rounds {
						for _, body := range []string{chat("", image("AAAA"), text("x"), image("BBBB")), stream(chat("", image("CCCC")))} {
							assertAnswer(t, body, c.post(t, body))
						}
					}
					assert.NotEmpty(t, e.encode[0].Requests(), "no request met the fault")
					e.assertContract(t)
				})
			}
		}
	}
}

// A decode attempt that reached an engine has spent what it was given; one that could not
// connect has not.
func TestWhatIsSpentIsMadeAgain(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prefills int
		handles  bool
		dead     bool
		requests [3]int
	}{
		"kv blocks":             {2, false, false, [3]int{2, 2, 2}},
		"kv blocks and handles": {2, true, false, [3]int{4, 2, 2}},
		"handles":               {0, true, false, [3]int{4, 0, 2}},
		"nothing":               {0, false, false, [3]int{2, 0, 2}},
		"kv blocks, dead":       {2, true, true, [3]int{2, 1, 1}},
		"handles, dead":         {0, true, true, [3]int{2, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 2, tc.prefills, 2, func(o *fakevllm.Options) { o.Handles = tc.handles })
			c := startCaddy(t, e.block("decode lb_policy first"))
			if tc.dead {
				e.decode[0].Kill()
			} else {
				e.decode[0].SetFault(fault{Kind: fakevllm.Status, Code: 503, Spend: true})
			}
			body := chat("", image("AAAA"), image("BBBB"))
			r := c.post(t, body, "X-Request-Id: mine")
			assertAnswer(t, body, r)
			assert.Equal(t, "mine", r.id())
			e.assertRequests(t, tc.requests[0], tc.requests[1], tc.requests[2])
			e.assertContract(t)

			ids := []string{}
			for _, engine := range e.decode {
				for _, r := range engine.Requests() {
					ids = append(ids, r.ID)
				}
			}
			assert.Regexp(t, "^mine-[0-9a-f]{12}$", ids[0])
			if !tc.dead {
				assert.Regexp(t, "^"+ids[0]+"-[0-9a-f]{6}$", ids[1])
			}
		})
	}
}

// If an idle connection ends just as a request is sent on it, the engine may have received
// the request. What the request carried is made again, and never reaches engines twice.
func TestIdleConnectionThatEndsWithARequest(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prefills int
		handles  bool
		requests [3]int
	}{
		"kv blocks":             {1, false, [3]int{1, 2, 2}},
		"kv blocks and handles": {1, true, [3]int{2, 2, 2}},
		"handles":               {0, true, [3]int{2, 0, 2}},
		"nothing":               {0, false, [3]int{1, 0, 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, tc.prefills, 1, func(o *fakevllm.Options) { o.Handles = tc.handles })
			c := startCaddy(t, e.block("retries 0"))
			body := chat("", image("AAAA"))
			assertAnswer(t, body, c.post(t, body))
			e.reset()
			setFault(fault{Kind: fakevllm.CutBefore, Times: 1, Spend: true}, e.decode...)
			assertAnswer(t, body, c.post(t, body))
			e.assertRequests(t, tc.requests[0], tc.requests[1], tc.requests[2])
			e.assertContract(t)
			c.assertNoLeaks(t)
		})
	}
}

// The KV blocks of a prefill engine that dies before decode has read them are lost. For a
// stream, decode reports that only after it has begun; the client does not notice.
func TestPrefillDiesBeforeDecode(t *testing.T) {
	t.Parallel()
	const prompt = `{"model":"fake","prompt":"Once upon a time","max_tokens":7}`
	for name, tc := range map[string]struct{ path, body string }{
		"chat":               {chatPath, chat("", image("AAAA"))},
		"chat, stream":       {chatPath, stream(chat("", image("AAAA")))},
		"completion":         {"/v1/completions", prompt},
		"completion, stream": {"/v1/completions", stream(prompt)},
	} {
		for retries, status := range map[int]int{1: http.StatusOK, 0: http.StatusInternalServerError} {
			t.Run(fmt.Sprintf("%s, %d retries", name, retries), func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, 1, 2, 1)
				c := startCaddy(t, e.block("prefill lb_policy first", fmt.Sprintf("retries %d", retries)))
				e.decode[0].SetFault(fault{Kind: fakevllm.Hang})
				answered := make(chan *reply, 1)
				go func() { answered <- c.do(t, http.MethodPost, tc.path, tc.body) }()
				require.Eventually(t, func() bool { return e.decode[0].InFlight() == 1 }, waitLong, tick)
				e.prefill[0].Kill()
				e.decode[0].SetFault(fault{})
				r := <-answered
				require.Equal(t, status, r.StatusCode, "%s", r.body)
				if status == http.StatusOK {
					assertAnswer(t, tc.body, r)
				} else {
					assert.Equal(t, "Internal server error", r.apiError(t).str("message"))
					assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
				}
				e.assertContract(t)
				assert.Equal(t, map[int]string{1: "ok", 0: "failed"}[retries], c.access(t, r.id()).str("epd", "outcome"))
			})
		}
	}
}

// An instance that has lost blocks may lose them again, so the prefill goes to another one if
// possible.
func TestPrefillThatLosesBlocksIsAvoided(t *testing.T) {
	t.Parallel()
	for prefills, want := range map[int][]int{1: {2}, 2: {1, 1}} {
		t.Run(fmt.Sprint(prefills), func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, prefills, 1)
			c := startCaddy(t, e.block("prefill lb_policy first"))
			e.decode[0].SetFault(fault{Kind: fakevllm.Hang})
			answered, body := make(chan *reply, 1), stream(chat("", image("AAAA")))
			go func() { answered <- c.post(t, body) }()
			require.Eventually(t, func() bool { return e.decode[0].InFlight() == 1 }, waitLong, tick)
			require.NoError(t, e.prefill[0].Restart())
			e.decode[0].SetFault(fault{})
			assertAnswer(t, body, <-answered)
			var got []int
			for _, engine := range e.prefill {
				got = append(got, len(engine.Requests()))
			}
			assert.Equal(t, want, got)
			e.assertRequests(t, 1, 2, 2)
		})
	}
}

// An answer of decode reaches the client unchanged, also if it is an error.
func TestDecodeAnswersForItself(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 2)
	c := startCaddy(t, e.block())
	setFault(fault{Kind: fakevllm.Status, Code: 503, Message: "busy", Header: http.Header{"Retry-After": {"7"}, "X-Queue": {"full"}}}, e.decode...)
	r := c.post(t, chat("", image("AAAA")))
	assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
	assert.Equal(t, "7", r.Header.Get("Retry-After"))
	assert.Equal(t, "full", r.Header.Get("X-Queue"))
	assert.Equal(t, "busy", r.apiError(t)["message"])
	e.assertRequests(t, 1, 0, 2)
}

// If one instance answers that it is busy, others are tried. If all do, the client gets
// their Retry-After.
func TestBusyInstanceIsNotTheOnlyOne(t *testing.T) {
	t.Parallel()
	busy := fault{Kind: fakevllm.Status, Code: 429, Message: "slow down", Header: http.Header{"Retry-After": {"7"}}}
	for _, role := range []fakevllm.Role{fakevllm.Encode, fakevllm.Prefill, fakevllm.Decode} {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 2, 2, 2, func(o *fakevllm.Options) { o.Handles = true })
			c := startCaddy(t, e.block("encode lb_policy first", "prefill lb_policy first", "decode lb_policy first"))
			list := e.of(role)
			list[0].SetFault(busy)
			body := chat("", image("AAAA"))
			for _, body := range []string{body, stream(body)} {
				assertAnswer(t, body, c.post(t, body))
			}
			c.metrics(t).has(t, map[string]float64{upstream("upstream_failures_total", string(role), list[0]): 0})
			assert.NotEmpty(t, list[0].Requests())

			list[1].SetFault(busy)
			e.reset()
			r := c.post(t, body)
			assert.Equal(t, http.StatusTooManyRequests, r.StatusCode)
			assert.Equal(t, "7", r.Header.Get("Retry-After"))
			assert.Equal(t, "slow down", r.apiError(t)["message"])
			assert.Equal(t, []int{1, 1}, []int{len(list[0].Requests()), len(list[1].Requests())})
			e.assertContract(t)
		})
	}
}

func TestRetryAfterOfEncodersIsKept(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	setFault(fault{Kind: fakevllm.Status, Code: 429, Message: "slow down", Header: http.Header{"Retry-After": {"7"}}}, e.encode...)
	r := c.post(t, chat("", image("AAAA")))
	assert.Equal(t, http.StatusTooManyRequests, r.StatusCode)
	assert.Equal(t, "7", r.Header.Get("Retry-After"))
}

func TestNobodyThere(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 2, 2)
	c := startCaddy(t, e.block())
	picture, words := chat("", image("AAAA")), chat("", text("x"))
	for _, stage := range []struct {
		list []*fakevllm.Engine
		code string
	}{{e.encode, "encode_unavailable"}, {e.prefill, "prefill_unavailable"}, {e.decode, "decode_unavailable"}} {
		for _, engine := range stage.list {
			engine.Kill()
		}
		r := c.post(t, picture)
		assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		assert.Equal(t, stage.code, r.apiError(t)["code"])
		assert.NotContains(t, string(r.body), "127.0.0.1")
		if stage.code == "encode_unavailable" {
			assertAnswer(t, words, c.post(t, words))
		}
		for _, engine := range stage.list {
			require.NoError(t, engine.Restart())
		}
		assertAnswer(t, picture, c.post(t, picture))
	}
}

// The first item that fails finally cancels the others at once. Here, encoders take an hour
// for all items but one.
func TestFirstFailureEndsItsSiblings(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 0, 1, func(o *fakevllm.Options) { o.Delay = time.Hour })
	c := startCaddy(t, e.block())
	setFault(fault{Kind: fakevllm.Status, Code: 400, Message: "no", Match: "FAIL"}, e.encode...)
	cancelled := 0
	for cancelled == 0 { // the failure may come before the others have arrived
		e.reset()
		r := c.post(t, chat("", image("AAAA"), image("BBBB"), image("CCCC"), image("FAIL")))
		assert.Equal(t, http.StatusBadRequest, r.StatusCode)
		c.access(t, r.id())
		require.Len(t, c.failures(r.id()), 1)
		assert.Equal(t, "messages[0].content[3]", c.failures(r.id())[0].str("item"))
		for _, engine := range e.encode {
			require.Eventually(t, func() bool { return engine.InFlight() == 0 }, time.Second, time.Millisecond, "the other items were not canceled")
			cancelled += len(engine.Cancellations())
		}
	}
	c.assertNoLeaks(t)
}

// An item that crashes every encoder must not be tried on all of them.
func TestPoisonKillsTwoAtMost(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 5, 0, 1)
	c := startCaddy(t, e.block())
	setFault(fault{Kind: fakevllm.Crash, Match: "POISON"}, e.encode...)
	fine := chat("", image("AAAA"), image("BBBB"), image("CCCC"), image("DDDD"), image("EEEE"))
	for range 4 { // opens idle connections to all of them
		assertAnswer(t, fine, c.post(t, fine))
	}
	r := c.post(t, chat("", image("POISON")))
	assert.Equal(t, http.StatusBadGateway, r.StatusCode)
	dead := 0
	for _, engine := range e.encode {
		for _, got := range engine.Requests() {
			if strings.Contains(string(got.Body), "POISON") {
				dead++
			}
		}
	}
	assert.LessOrEqual(t, dead, 2)
	assert.Positive(t, dead)
	assertAnswer(t, fine, c.post(t, fine))
}

// The same if the instances survive and there are idle connections to them: a
// connection that ends at once may have been dead before, so the request is sent again.
func TestPoisonOnIdleConnections(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 5, 0, 1)
	c := startCaddy(t, e.block())
	fine := chat("", image("AAAA"), image("BBBB"), image("CCCC"), image("DDDD"), image("EEEE"))
	for range 4 {
		assertAnswer(t, fine, c.post(t, fine))
	}
	e.reset()
	setFault(fault{Kind: fakevllm.CutBefore, Match: "POISON"}, e.encode...)
	assert.Equal(t, http.StatusBadGateway, c.post(t, chat("", image("POISON"))).StatusCode)
	met := 0
	for _, engine := range e.encode {
		if n := len(engine.Requests()); n > 0 {
			met++
			assert.LessOrEqual(t, n, 2, "more than one replay")
		}
	}
	assert.LessOrEqual(t, met, 2)
}

// If an engine dies some time after it got a request, what the request carried is spent:
// it is not sent again.
func TestDeathIsNoIdleConnection(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) {
		if o.Role == fakevllm.Decode {
			o.Delay = time.Hour
		}
	})
	c := startCaddy(t, e.block("retries 0"))
	_ = c.do(t, http.MethodGet, "/v1/models", "") // leaves an idle connection
	e.reset()
	go func() {
		assert.Eventually(t, func() bool { return len(e.decode[0].Requests()) == 1 }, waitLong, time.Millisecond)
		<-time.After(time.Second) // a failure after this time is not that of an idle connection
		assert.NoError(t, e.decode[0].Restart())
	}()
	assert.Equal(t, http.StatusBadGateway, c.post(t, chat("", text("x"))).StatusCode)
	assert.Len(t, e.decode[0].Requests(), 1)
}

// In a pool whose instances come from DNS, the number of attempts is limited too.
func TestDynamicPoolWithNobodyThere(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	e.decode[0].Kill()
	_, port, _ := strings.Cut(e.decode[0].Addr(), ":")
	c := startCaddy(t, "encode "+e.encode[0].Addr()+"\ndecode {\ndynamic a 127.0.0.1 "+port+"\n}")
	r := c.post(t, chat("", image("AAAA")))
	assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
	assert.Equal(t, "decode_unavailable", r.apiError(t)["code"])
	c.access(t, r.id())
	assert.LessOrEqual(t, len(c.failures(r.id())), 2)
}

// A stream must begin in time, and must not stall.
func TestSilentStreams(t *testing.T) {
	t.Parallel()
	body := stream(chat("", text("x"), image("AAAA")))

	t.Run("before its first byte", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 1, 1, 2, func(o *fakevllm.Options) {
			o.Delay = map[fakevllm.Role]time.Duration{fakevllm.Decode: time.Hour}[o.Role]
		})
		c := startCaddy(t, e.block("stream_start_timeout 200ms"))
		r := c.post(t, body)
		assert.Equal(t, http.StatusGatewayTimeout, r.StatusCode)
		assert.Equal(t, "decode_timeout", r.apiError(t)["code"])
		assert.Equal(t, "nothing came for 200ms (stream_start_timeout)", c.failure(t, r.id()).str("error"))
		e.assertRequests(t, 1, 1, 1)
	})
	t.Run("after it", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) { o.ChunkDelay = time.Hour })
		c := startCaddy(t, e.block("stream_idle_timeout 200ms"))
		r := c.post(t, body)
		assert.Equal(t, http.StatusOK, r.StatusCode)
		require.Error(t, r.err)
		assert.Contains(t, string(r.body), "\n\ndata: {\"error\":{\"message\":\"the decode stage did not answer in time\"")
		assert.Equal(t, "nothing came for 200ms (stream_idle_timeout)", c.failure(t, r.id()).str("error"))
		require.Eventually(t, func() bool { return e.decode[0].InFlight() == 0 }, time.Second, time.Millisecond)
	})
	t.Run("only streams", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) { o.Delay = 300 * time.Millisecond })
		c := startCaddy(t, e.block("stream_start_timeout 100ms", "stream_idle_timeout 100ms"))
		assertAnswer(t, chat("", text("x")), c.post(t, chat("", text("x"))))
	})
	t.Run("every write counts", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) { o.ChunkDelay = 50 * time.Millisecond })
		c := startCaddy(t, e.block("stream_start_timeout 2s", "stream_idle_timeout 2s"))
		long := stream(chat("", text(strings.Repeat("long ", 40))))
		assertAnswer(t, long, c.post(t, long))
	})
}

// With encode_optional, a request whose media cannot be encoded goes on to its consumer, unless an
// encoder rejects it, or its media may be what makes engines fail.
func TestEncodersAreOptional(t *testing.T) {
	t.Parallel()
	cut := fault{Kind: fakevllm.CutBefore}
	for name, tc := range map[string]struct {
		encoders int
		dead     int
		fault    fault
		option   string
		code     any // of the error; nil: the request goes on
	}{
		"dead":                      {encoders: 2, dead: 2},
		"one dies, others are dead": {encoders: 3, dead: 2, fault: cut},
		"the only one dies":         {encoders: 1, fault: cut},
		"it fails":                  {encoders: 1, fault: fault{Kind: fakevllm.Status, Code: 500, Message: "out of memory"}},
		"it makes no sense":         {encoders: 1, fault: fault{Kind: fakevllm.Garbage}},
		"it hangs":                  {encoders: 1, fault: fault{Kind: fakevllm.Hang}, option: "encode_timeout 300ms"},
		"two die":                   {encoders: 2, fault: cut, code: "encode_failed"},
		"two of three die":          {encoders: 3, fault: cut, option: "retries 2", code: "encode_failed"},
		"no retries":                {encoders: 1, fault: cut, option: "retries 0", code: "encode_failed"},
		"dead, no retries":          {encoders: 1, dead: 1, option: "retries 0"},
		"it refuses":                {encoders: 2, fault: fault{Kind: fakevllm.Status, Code: 400, Message: "too large"}, code: 400.0},
		"it is busy":                {encoders: 1, fault: fault{Kind: fakevllm.Status, Code: 429, Message: "slow down"}, code: 429.0},
	} {
		for _, prefills := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s, %d prefills", name, prefills), func(t *testing.T) {
				t.Parallel()
				e := startEngines(t, tc.encoders, prefills, 1)
				c := startCaddy(t, e.block("encode_optional", "encode "+noKeepalive, "encode health_fails 1000", tc.option))
				setFault(tc.fault, e.encode...)
				for _, engine := range e.encode[:tc.dead] {
					engine.Kill()
				}
				r := c.post(t, chat("", image("AAAA")))
				consumer := e.of(consuming(prefills))[0]
				c.access(t, r.id())
				lines := c.failures(r.id())
				if tc.code != nil {
					assert.Equal(t, tc.code, r.apiError(t)["code"])
					assert.Empty(t, consumer.Requests())
					assert.Equal(t, "request failed", lines[len(lines)-1].str("msg"))
					return
				}
				assert.Contains(t, r.apiError(t)["message"], "multimodal embedding missing", "not the consumer's error")
				assert.NotEmpty(t, consumer.Requests())
				going := 0
				for _, line := range lines {
					if line.str("msg") == "going on without encoders" {
						going++
					}
				}
				assert.Equal(t, 1, going, "%v", lines)
			})
		}
	}
}

// A request with an item that crashes encoders is not passed on, also if another item of it
// failed because no encoder was left.
func TestPoisonIsNotOptional(t *testing.T) {
	t.Parallel()
	for range 5 {
		e := startEngines(t, 2, 0, 1)
		c := startCaddy(t, e.block("encode_optional", "encode health_fails 1000"))
		setFault(fault{Kind: fakevllm.Crash, Match: "POISON"}, e.all()...)
		c.post(t, chat("", image("AAAA"), image("POISON"), image("BBBB"), image("CCCC"), image("DDDD")))
		met := 0
		for _, engine := range e.all() {
			for _, r := range engine.Requests() {
				if strings.Contains(string(r.Body), "POISON") {
					met++
				}
			}
		}
		assert.LessOrEqual(t, met, 2)
		c.stop()
	}
}

// No engine gets an id twice, even if clients send the same id at the same time to several proxies.
func TestOneIDTwiceInFlight(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) { o.Delay = 20 * time.Millisecond })
	proxies := []*caddy{startCaddy(t, e.block()), startCaddy(t, e.block())}
	body := chat("", image("AAAA"))
	var wg sync.WaitGroup
	for n := range 16 {
		wg.Go(func() {
			r := proxies[n%2].post(t, body, "X-Request-Id: same")
			assert.Equal(t, "same", r.id())
			assert.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
		})
	}
	wg.Wait()
	e.assertContract(t)
	for _, engine := range []*fakevllm.Engine{e.prefill[0], e.decode[0]} {
		seen := make(map[string]bool)
		for _, r := range engine.Requests() {
			assert.Regexp(t, "^same-[0-9a-f]{12}$", r.ID)
			assert.NotContains(t, seen, r.ID)
			seen[r.ID] = true
		}
	}
}

// The options of reverse_proxy that users set in a pool apply to attempts.
func TestPoolOptions(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		fault   fault
		kill    bool
		options []string
		status  int
		decodes int
	}{
		"waiting ends with the time limit": {kill: true, options: []string{"encode lb_try_duration 1h", "encode_timeout 300ms", "encode health_fails 1000"}, status: 504},
		"own retries give up":              {fault: fault{Kind: fakevllm.Status, Code: 503}, options: []string{"retries 0", "decode lb_retries 3", "decode lb_retry_match `{rp.status_code} >= 500`"}, status: 503, decodes: 4},
		"own error":                        {fault: fault{Kind: fakevllm.Status, Code: 400}, options: []string{"decode @bad status 400", "decode handle_response @bad {\nerror 418\n}"}, status: 418, decodes: 1},
		"own answer":                       {fault: fault{Kind: fakevllm.Status, Code: 400}, options: []string{"decode @bad status 400", "decode handle_response @bad {\nrespond 410\n}"}, status: 410, decodes: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 0, 2)
			c := startCaddy(t, e.block(tc.options...))
			if tc.kill {
				e.encode[0].Kill()
			}
			setFault(tc.fault, e.decode...)
			r := c.post(t, chat("", image("AAAA")))
			assert.Equal(t, tc.status, r.StatusCode, "%s", r.body)
			_, _, decodes := e.requests()
			assert.Equal(t, tc.decodes, decodes)
		})
	}
}

// A client must be able to tell an incomplete answer from a complete one.
func TestAnswerThatBreaksOff(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	setFault(fault{Kind: fakevllm.CutMiddle}, e.decode...)
	for _, http2 := range []bool{false, true} {
		for _, body := range []string{chat("", image("AAAA")), stream(chat("", image("AAAA")))} {
			res, err := c.send(t.Context(), c.client(t, http2), http.MethodPost, chatPath, body)
			require.NoError(t, err)
			half, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			require.Error(t, err)
			assert.Equal(t, http.StatusOK, res.StatusCode)
			assert.NotEmpty(t, half)
			event := "\n\ndata: {\"error\":{\"message\":\"the decode stage gave no valid answer\",\"type\":\"server_error\",\"param\":null,\"code\":\"decode_failed\"}}\n\n"
			assert.Equal(t, strings.Contains(body, `"stream":true`), strings.HasSuffix(string(half), event), "%s", half)
			entry := c.access(t, res.Header.Get("X-Request-Id"))
			assert.Equal(t, "broke_off", entry.str("epd", "outcome"))
			assert.Positive(t, entry.at("epd", "duration"))
			assert.Len(t, c.failures(res.Header.Get("X-Request-Id")), 1)
		}
	}
	assert.Len(t, c.lines(), 4, "one line for each failure, and none of Caddy's own")
	c.assertNoLeaks(t)
}

// An error event of an engine in the middle of a stream reaches the client unchanged, but the request counts as failed.
func TestErrorWithinStream(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	body := stream(chat("", image("AAAA")))
	for status, want := range map[int]struct{ outcome, level string }{500: {"broke_off", "error"}, 400: {"rejected", "warn"}} {
		e.decode[0].SetFault(fault{Kind: fakevllm.ErrorWithin, Code: status, Message: "engine died"})
		r := c.post(t, body)
		require.Equal(t, http.StatusOK, r.StatusCode)
		require.NoError(t, r.err)
		assert.Contains(t, string(r.body), `"message":"engine died"`)
		assert.True(t, strings.HasSuffix(string(r.body), "}}\n\ndata: [DONE]\n\n"))
		assert.Equal(t, want.outcome, c.access(t, r.id()).str("epd", "outcome"))
		entry := c.entries(t, 1, func(e entry) bool { return e.str("request_id") == r.id() && e.str("msg") == "request failed" })[0]
		assert.Equal(t, want.level, entry.str("level"))
		assert.Equal(t, "decode#1", entry.str("upstream"))
		assert.EqualValues(t, status, entry["status"])
		assert.Equal(t, fmt.Sprintf("the stream has an error of status %d", status), entry.str("error"))
	}
}
