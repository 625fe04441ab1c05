package integration

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// If everything fails, engines get few requests beyond those of clients, and the log says
// why there was no further attempt.
func TestNothingWorks(t *testing.T) {
	t.Parallel()
	const clients, each = 8, 60
	for _, role := range []fakevllm.Role{fakevllm.Encode, fakevllm.Prefill, fakevllm.Decode} {
		t.Run(string(role), func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 2, 2, 2)
			c := startCaddy(t, e.block())
			setFault(fault{Kind: fakevllm.Status, Code: 500, Message: "broken"}, e.of(role)...)
			began := time.Now()
			var wg sync.WaitGroup
			for range clients {
				wg.Go(func() {
					for range each {
						assert.Equal(t, http.StatusInternalServerError, c.post(t, chat("", image("AAAA"))).StatusCode)
					}
				})
			}
			wg.Wait()
			attempts := 0
			for _, engine := range e.of(role) {
				attempts += len(engine.Requests())
			}
			assert.LessOrEqual(t, float64(attempts), 1.2*clients*each+10+time.Since(began).Seconds()+clients)
			assert.Greater(t, attempts, clients*each)

			m := c.metrics(t)
			assert.Less(t, m[`caddy_epd_retry_budget_tokens{stage="`+string(role)+`"}`], 5.0)
			assert.EqualValues(t, 2*clients*each-attempts, m[`caddy_epd_retry_budget_exhausted_total{stage="`+string(role)+`"}`])
			spent, _ := c.log.find(func(e entry) bool { return e.str("retry_budget") == "spent" })
			require.Len(t, spent, 2*clients*each-attempts, "one line for each failed request")
			assert.Equal(t, "request failed", spent[0].str("msg"))
			assert.Len(t, c.lines(), attempts)
		})
	}
}

// An instance that fails all requests but no health checks makes no request fail, and soon
// gets none, also after a reload, until it works again.
func TestBlackHole(t *testing.T) {
	t.Parallel()
	broken := fault{Kind: fakevllm.Status, Code: 500, Message: "broken"}
	for name, tc := range map[string]struct {
		prefills int
		role     fakevllm.Role
		fault    fault
	}{
		"encode":                 {0, fakevllm.Encode, broken},
		"prefill":                {4, fakevllm.Prefill, broken},
		"decode":                 {0, fakevllm.Decode, broken},
		"decode after a prefill": {4, fakevllm.Decode, broken},
		"decode breaks":          {0, fakevllm.Decode, fault{Kind: fakevllm.CutBefore}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 4, tc.prefills, 4)
			stage := string(tc.role)
			block := e.block(stage + " lb_policy least_conn")
			c := startCaddy(t, block)
			hole := e.of(tc.role)[2]
			hole.SetFault(tc.fault)
			client := c.client(t, true)
			said := func(msg string) []entry {
				found, _ := c.log.find(func(e entry) bool { return e.str("msg") == msg })
				return found
			}
			for len(said("instance is ejected")) == 0 {
				c.crowd(t, client, 16, 4, mixed)
			}
			entry := said("instance is ejected")[0]
			assert.Equal(t, stage+"#3", entry.str("upstream"))
			m := c.metrics(t)
			m.has(t, map[string]float64{upstream("upstream_ejected", stage, hole): 1})
			assert.Positive(t, m["caddy_epd_"+upstream("upstream_ejections_total", stage, hole)])
			hole.Reset()
			since := time.Now()
			c.crowd(t, client, 8, 4, mixed)
			c.reload(t, block)
			c.crowd(t, client, 8, 4, mixed)
			assert.LessOrEqual(t, len(hole.Requests()), 2+int(time.Since(since)/(10*time.Second)), "the ejected instance gets requests")
			for _, p := range c.status(t).Handlers[0].Pools {
				for i, u := range p.Upstreams {
					assert.Equal(t, p.Stage == stage && i == 2, u.Ejected)
				}
			}

			hole.SetFault(fault{})
			require.Eventually(t, func() bool {
				c.crowd(t, client, 8, 1, mixed)
				return len(said("instance is no longer ejected")) > 0
			}, 2*time.Minute, 200*time.Millisecond, "the instance gets no requests after its recovery")
			c.metrics(t).has(t, map[string]float64{upstream("upstream_ejected", stage, hole): 0})
			e.assertContract(t)
		})
	}
}

// Requests that fail at all instances eject none, and nor does a prefill whose blocks are lost.
func TestNobodyIsEjectedForOthers(t *testing.T) {
	t.Parallel()
	t.Run("poison", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 4, 0, 4)
		c := startCaddy(t, e.block("retry_budget 0"))
		setFault(fault{Kind: fakevllm.Status, Code: 500, Message: "broken", Match: "POISON"}, e.all()...)
		for n := range 40 {
			c.post(t, chat("", image("POISON"), image("AAAA")))
			c.post(t, chat("", text("POISON")))
			body := mixed(n)
			assertAnswer(t, body, c.post(t, body))
		}
		assert.NotContains(t, c.log.text(), "instance is ejected")
	})
	t.Run("lost blocks", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 1, 2, 2)
		c := startCaddy(t, e.block("prefill lb_policy first", "decode lb_policy round_robin"))
		body := chat("", image("AAAA"))
		for range 8 {
			setFault(fault{Kind: fakevllm.Hang}, e.decode...)
			answered := make(chan *reply, 1)
			go func() { answered <- c.post(t, body) }()
			eventually(t, func() bool { return e.decode[0].InFlight()+e.decode[1].InFlight() == 1 })
			require.NoError(t, e.prefill[0].Restart())
			setFault(fault{}, e.decode...)
			assertAnswer(t, body, <-answered)
		}
		assert.NotContains(t, c.log.text(), "instance is ejected")
	})
	for _, role := range []fakevllm.Role{fakevllm.Decode, fakevllm.Encode} {
		t.Run("turned off, "+string(role), func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 4, 0, 4)
			c := startCaddy(t, e.block("max_ejected 0"))
			e.of(role)[1].SetFault(fault{Kind: fakevllm.Status, Code: 500, Message: "broken"})
			c.crowd(t, c.client(t, true), 8, 20, mixed)
			assert.NotContains(t, c.log.text(), "instance is ejected")
		})
	}
}
