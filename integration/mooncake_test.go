package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// withMooncake makes engines use MooncakeConnector for the hand-over.
func withMooncake(o *fakevllm.Options) { o.Mooncake = true }

// bootstraps is the option with the addresses of the bootstrap servers.
func (e *engines) bootstraps() string {
	block := "kv_bootstrap {\n"
	for _, engine := range e.prefill {
		block += engine.Addr() + " " + engine.Bootstrap() + "\n"
	}
	return block + "}"
}

// kvParams are the kv_transfer_params of each request that engines have got.
func kvParams(t *testing.T, list ...*fakevllm.Engine) (params []map[string]any) {
	t.Helper()
	for _, engine := range list {
		for _, r := range engine.Requests() {
			kv, _ := object(t, r.Body)["kv_transfer_params"].(map[string]any)
			params = append(params, kv)
		}
	}
	return params
}

// Options that could end prefill's single token in another way than by max_tokens are sent only to
// decode. Clients get prefill's number of cached tokens; their own transfer parameters are not passed on.
func TestMooncake(t *testing.T) {
	t.Parallel()
	members := `,"stop":["."],"stop_token_ids":[7],"ignore_eos":false,"kv_transfer_params":{"do_remote_prefill":true,"remote_bootstrap_addr":"http://evil:1"}`
	for _, change := range []func(*fakevllm.Options){func(*fakevllm.Options) {}, withHandles} {
		e := startEngines(t, 1, 2, 2, change, withMooncake, func(o *fakevllm.Options) { o.PromptDetails, o.CachedTokens = true, 7 })
		c := startCaddy(t, e.block(e.bootstraps()))
		for path, body := range map[string]string{
			chatPath:        chat(members, text("a question that is long enough"), image("AAAA")),
			completionsPath: `{"model":"fake","prompt":"a prompt that is long enough"` + members + `}`,
		} {
			for n, body := range []string{body, stream(body)} {
				e.reset()
				r := c.do(t, http.MethodPost, path, body)
				assertAnswer(t, body, r)
				e.assertContract(t)
				if n == 0 {
					assert.Equal(t, 7.0, cached(t, r.body))
				}
				asked, told := kvParams(t, e.prefill...), kvParams(t, e.decode...)
				require.Len(t, asked, 1)
				require.Len(t, told, 1)
				assert.Equal(t, asked[0]["transfer_id"], told[0]["transfer_id"])
				for _, engine := range e.decode {
					for _, r := range engine.Requests() {
						assert.Contains(t, string(r.Body), `"stop":["."],"stop_token_ids":[7],"ignore_eos":false`)
					}
				}
			}
		}
		c.metrics(t).has(t, map[string]float64{`prefill_handoffs_total{result="blocks"}`: 4, `prefill_handoffs_total{result="none"}`: 0})
		assert.Empty(t, c.lines())
		c.assertNoLeaks(t)
	}
}

// Each attempt of prefill has a new transfer id, which engines require, and decode gets the
// current engine id.
func TestMooncakeFailover(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		options       []string
		before, while func(t *testing.T, e *engines) // while decode has the request
		prefills      []int
		decodes       int
	}{
		"prefill fails": {
			before:   func(_ *testing.T, e *engines) { setFault(fault{Kind: fakevllm.Status, Code: 503}, e.prefill[0]) },
			prefills: []int{1, 1}, decodes: 1,
		},
		"prefill breaks off": {
			before:   func(_ *testing.T, e *engines) { setFault(fault{Kind: fakevllm.CutMiddle}, e.prefill[0]) },
			prefills: []int{1, 1}, decodes: 1,
		},
		"prefill restarts": {
			before:   func(t *testing.T, e *engines) { require.NoError(t, e.prefill[0].Restart()) },
			prefills: []int{1, 0}, decodes: 1,
		},
		"prefill dies with the blocks": {
			while:    func(_ *testing.T, e *engines) { e.prefill[0].Kill() },
			prefills: []int{1, 1}, decodes: 2,
		},
		"prefill restarts without the blocks": {
			while:    func(t *testing.T, e *engines) { require.NoError(t, e.prefill[0].Restart()) },
			prefills: []int{1, 1}, decodes: 2,
		},
		"decode fails": {
			before: func(_ *testing.T, e *engines) {
				setFault(fault{Kind: fakevllm.Status, Code: 503, Spend: true}, e.decode[0])
			},
			prefills: []int{2, 0}, decodes: 2,
		},
		"bootstrap down": {
			before:   func(_ *testing.T, e *engines) { e.prefill[0].KillBootstrap() },
			prefills: []int{1, 1}, decodes: 1,
		},
		"the pool's own retries": {
			options: []string{"retries 0", "prefill lb_retries 1", "prefill lb_retry_match `{rp.status_code} == 503`"},
			before: func(_ *testing.T, e *engines) {
				setFault(fault{Kind: fakevllm.Status, Code: 503, Times: 1}, e.prefill[0])
			},
			prefills: []int{2, 0}, decodes: 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 2, 2, withMooncake)
			c := startCaddy(t, e.block(append(tc.options, e.bootstraps(), "prefill lb_policy first", "decode lb_policy first")...))
			for n, body := range []string{chat("", text("first"), image("AAAA")), stream(chat("", text("second"), image("AAAA")))} {
				if n == 0 { // so that the proxy has cached an id
					assertAnswer(t, body, c.post(t, body))
					e.reset()
					continue
				}
				if tc.before != nil {
					tc.before(t, e)
				}
				answered := make(chan *reply, 1)
				if tc.while != nil {
					e.decode[0].SetFault(fault{Kind: fakevllm.Hang})
				}
				go func() { answered <- c.post(t, body) }()
				if tc.while != nil {
					require.Eventually(t, func() bool { return e.decode[0].InFlight() == 1 }, waitLong, tick)
					tc.while(t, e)
					e.decode[0].SetFault(fault{})
				}
				assertAnswer(t, body, <-answered)
				e.assertContract(t)
				assert.Equal(t, tc.prefills, []int{len(e.prefill[0].Requests()), len(e.prefill[1].Requests())})
				_, _, decodes := e.requests()
				assert.Equal(t, tc.decodes, decodes)
				ids := make(map[any]bool)
				for _, kv := range kvParams(t, e.prefill...) {
					ids[kv["transfer_id"]] = true
				}
				assert.Len(t, ids, tc.prefills[0]+tc.prefills[1], "transfer ids")
			}
			c.assertNoLeaks(t)
		})
	}
}

// Without any bootstrap server the hand-over is impossible, and the prefill stage fails.
func TestMooncakeWithoutBootstrap(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 2, 1, withMooncake)
	c := startCaddy(t, e.block(e.bootstraps()))
	for _, engine := range e.prefill {
		engine.KillBootstrap()
	}
	r := c.post(t, chat("", text("x")))
	assert.Equal(t, http.StatusBadGateway, r.StatusCode)
	assert.Equal(t, "prefill_failed", r.apiError(t).str("code"))
	e.assertRequests(t, 0, 2, 0)
	line := c.failure(t, r.id())
	assert.Contains(t, line.str("error"), "the bootstrap server (kv_bootstrap): ")
	assert.Contains(t, line.str("error"), "connection refused")
	assert.NotContains(t, line.str("error"), "127.0.0.1")
	assert.NotContains(t, string(r.body), "127.0.0.1")
}

// Under load, and while prefill instances restart, no two requests share a transfer.
func TestMooncakeUnderLoad(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 2, 2, withMooncake)
	c := startCaddy(t, e.block(e.bootstraps(), "retries 3", "retry_budget 0"))
	client := c.client(t, true)
	c.crowdWith(t, 8, 20, func(n int) error {
		if n%53 == 52 {
			if err := e.prefill[n%2].Restart(); err != nil {
				return err
			}
		}
		body := chat("", text(fmt.Sprint("request ", n)), image(fmt.Sprintf("%08d", n)))
		if n%2 == 0 {
			body = stream(body)
		}
		return c.check(t, client, body)
	})
	seen := make(map[any]bool)
	for _, kv := range kvParams(t, e.prefill...) {
		id, _ := json.Marshal(kv["transfer_id"])
		assert.False(t, seen[string(id)], "%s twice", id)
		seen[string(id)] = true
	}
	for _, engine := range e.all() {
		for _, r := range engine.Refusals() {
			assert.False(t, strings.Contains(r.Message, "transfer_id"), r.Message)
		}
	}
	c.assertNoLeaks(t)
}

// epd-check checks bootstrap servers too, and leaves no unread blocks behind.
func TestCheckMooncake(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 2, 1, withMooncake)
	e.prefill[1].KillBootstrap()
	out, _, status := run(t, nil, "epd-check", "--config", site(t, e.block(e.bootstraps())))
	assert.Equal(t, 1, status)
	assert.Equal(t, 1, strings.Count(out, "bootstrap"), out)
	assert.Contains(t, out, "its bootstrap server, "+e.prefill[1].Bootstrap()+": connection refused")
	assert.Empty(t, kvParamsSent(e.prefill...))
}

// kvParamsSent are the requests with kv_transfer_params.
func kvParamsSent(list ...*fakevllm.Engine) (n []string) {
	for _, engine := range list {
		for _, r := range engine.Requests() {
			if strings.Contains(string(r.Body), "kv_transfer_params") {
				n = append(n, r.Path)
			}
		}
	}
	return n
}
