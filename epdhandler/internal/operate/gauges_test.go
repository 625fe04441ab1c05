package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
)

// provisioning is held while a pool is provisioned, in which Caddy writes to variables of its own.
var provisioning sync.Mutex

// newPool provisions a pool of reverse_proxy with this configuration.
func newPool(t *testing.T, p *process.Process, stage, config string, settings ...dispatch.Settings) *engine.Pool {
	t.Helper()
	provisioning.Lock()
	defer provisioning.Unlock()
	ctx, err := caddy.ProvisionContext(new(caddy.Config))
	require.NoError(t, err)
	ctx, cancel := caddy.NewContext(ctx)
	t.Cleanup(cancel)
	handler := new(reverseproxy.Handler)
	require.NoError(t, json.Unmarshal([]byte(config), handler))
	s := dispatch.Settings{}
	if len(settings) > 0 {
		s = settings[0]
	}
	s.Stage = stage
	pool, err := engine.NewPool(ctx, p.Instances, s, handler)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, pool.Cleanup()) })
	return pool
}

// upstreams is the configuration of a pool without health checks.
func upstreams(addresses ...string) string {
	var list []map[string]string
	for _, a := range addresses {
		list = append(list, map[string]string{"dial": a})
	}
	text, _ := json.Marshal(list)
	return fmt.Sprintf(`{"upstreams":%s,"health_checks":{"active":{}}}`, text)
}

// fakeEngine starts a server and returns its address.
func fakeEngine(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// occupy takes a slot at an instance of the pool.
func occupy(t *testing.T, p *engine.Pool, turn *dispatch.Turn) {
	t.Helper()
	_, slot, err := p.Choose(t.Context(), p.Upstreams(), &dispatch.Ask{Turn: turn, Policy: func(fit reverseproxy.UpstreamPool) *reverseproxy.Upstream { return fit[0] }})
	require.NoError(t, err)
	t.Cleanup(slot.Release)
}

// values returns what a process shows, by metric and labels.
func values(t *testing.T, p *process.Process) map[string]float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(Gauges{p}))
	assert.ErrorAs(t, registry.Register(Gauges{p}), new(prometheus.AlreadyRegisteredError), "of another handler")
	families, err := registry.Gather()
	require.NoError(t, err)
	got := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			got[name] = m.GetGauge().GetValue()
		}
	}
	return got
}

func TestGauges(t *testing.T) {
	t.Parallel()
	p := process.New()
	assert.Equal(t, map[string]float64{
		"caddy_epd_stage_requests_in_flight encode": 0, "caddy_epd_stage_requests_in_flight prefill": 0, "caddy_epd_stage_requests_in_flight decode": 0,
		"caddy_epd_stage_requests_waiting encode": 0, "caddy_epd_stage_requests_waiting prefill": 0, "caddy_epd_stage_requests_waiting decode": 0,
		"caddy_epd_body_bytes_held": 0, "caddy_epd_body_bytes_limit": 0,
	}, values(t, p))

	limited := dispatch.Settings{Limit: 1, QueueSize: 4, QueueTime: time.Minute, RetryBudget: 20}
	first := &process.Site{Encode: newPool(t, p, "encode", upstreams("e:1")), Decode: newPool(t, p, "decode", upstreams("d:1"), limited), MaxMemory: 300}
	second := &process.Site{Encode: newPool(t, p, "encode", upstreams("e:1")), Decode: newPool(t, p, "decode", upstreams("d:1", "d:2"), limited), MaxMemory: 200}
	second.Gate = dispatch.NewGate(second.Decode.Dispatcher, 0)
	gone := newPool(t, p, "prefill", upstreams("p:1")) // whose requests go on
	for _, s := range []*process.Site{first, second} {
		p.Enlist(s)
	}
	for _, pool := range []*engine.Pool{first.Decode, gone} {
		occupy(t, pool, new(dispatch.Turn))
	}
	second.Decode.Budget.Charge(time.Now())
	got := values(t, p)
	assert.InDelta(t, 9, got["caddy_epd_retry_budget_tokens decode"], 0.5, "of the pool with the fewest")
	delete(got, "caddy_epd_retry_budget_tokens decode")
	assert.Equal(t, map[string]float64{
		"caddy_epd_stage_requests_in_flight encode": 0, "caddy_epd_stage_requests_in_flight prefill": 1, "caddy_epd_stage_requests_in_flight decode": 1,
		"caddy_epd_stage_requests_waiting encode": 0, "caddy_epd_stage_requests_waiting prefill": 0, "caddy_epd_stage_requests_waiting decode": 0,
		"caddy_epd_queue_size decode":                      8,
		"caddy_epd_upstream_requests_in_flight encode e:1": 0, "caddy_epd_upstream_ejected encode e:1": 0,
		"caddy_epd_upstream_requests_in_flight prefill p:1": 1, "caddy_epd_upstream_ejected prefill p:1": 0,
		"caddy_epd_upstream_requests_in_flight decode d:1": 1, "caddy_epd_upstream_ejected decode d:1": 0,
		"caddy_epd_upstream_requests_in_flight decode d:2": 0, "caddy_epd_upstream_ejected decode d:2": 0,
		"caddy_epd_body_bytes_held": 0, "caddy_epd_body_bytes_limit": 200,
	}, got)
}

// What health checks say is there only where there are some.
func TestGaugesOfHealth(t *testing.T) {
	t.Parallel()
	p := process.New()
	up, down := fakeEngine(t, func(http.ResponseWriter, *http.Request) {}), "127.0.0.1:1"
	checked := fmt.Sprintf(`{"upstreams":[{"dial":"%s"},{"dial":"%s"}],"health_checks":{"active":{"interval":"10ms","fails":1}}}`, up, down)
	p.Enlist(&process.Site{Encode: newPool(t, p, "encode", checked), Decode: newPool(t, p, "decode", upstreams(up))})
	require.Eventually(t, func() bool { return values(t, p)["caddy_epd_upstream_healthy encode "+down] == 0 }, 10*time.Second, 10*time.Millisecond)
	got := values(t, p)
	assert.Equal(t, 1.0, got["caddy_epd_upstream_healthy encode "+up])
	assert.NotContains(t, got, "caddy_epd_upstream_healthy decode "+up)
	assert.Equal(t, engine.Degraded, StatusOf(context.Background(), p).Handlers[0].Pools[0].Health)
}
