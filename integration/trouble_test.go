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

// When everything fails, engines get little more than the requests of clients; the log says
// why there is no further attempt.
func TestNothingWorks(t *testing.T) {
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
			require.Len(t, spent, 2*clients*each-attempts, "one line for each, that of the request's failure")
			assert.Equal(t, "request failed", spent[0].str("msg"))
			assert.Len(t, c.lines(), attempts)
		})
	}
}
