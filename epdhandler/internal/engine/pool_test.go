package engine

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
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// provisioning is held while a pool is provisioned, in which Caddy writes to variables of its own.
var provisioning sync.Mutex

// newPool provisions a pool of reverse_proxy with this configuration.
func newPool(t *testing.T, stage, config string) (*Pool, error) {
	t.Helper()
	provisioning.Lock()
	defer provisioning.Unlock()
	ctx, err := caddy.ProvisionContext(new(caddy.Config))
	require.NoError(t, err)
	ctx, cancel := caddy.NewContext(ctx)
	t.Cleanup(cancel)
	handler := new(reverseproxy.Handler)
	require.NoError(t, json.Unmarshal([]byte(config), handler))
	p, err := NewPool(ctx, dispatch.NewInstances(telemetry.NewMetrics()), dispatch.Settings{Stage: stage}, handler)
	if err == nil {
		t.Cleanup(func() { assert.NoError(t, p.Cleanup()) })
	}
	return p, err
}

// fakeEngine starts a server and returns its address.
func fakeEngine(t *testing.T, answer http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// one is the configuration of a pool without health checks.
func one(address string) string {
	return fmt.Sprintf(`{"upstreams":[{"dial":"%s"}],"health_checks":{"active":{}}}`, address)
}

// newClient returns a client that has sent a request with this header.
func newClient(header http.Header) *Client {
	r := httptest.NewRequest(http.MethodPost, "/v1/chat/completions?q=1", nil)
	r.Header = header
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), httptest.NewRecorder(), new(caddyhttp.Server))
	return NewClient(r, "test", false)
}

type noClock struct{}

func (noClock) Pause()         {}
func (noClock) Resume()        {}
func (noClock) Expired() error { return context.DeadlineExceeded }

// send sends a call to the pool, and returns what came of it and the answer.
func send(t *testing.T, p *Pool, client *Client, c Call) (*Attempt, *httptest.ResponseRecorder) {
	t.Helper()
	c.Method, c.Path, c.ID, c.Clock = http.MethodPost, "/v1/chat/completions", "test-1", noClock{}
	a, w := p.NewAttempt(client, c), httptest.NewRecorder()
	a.Send(t.Context(), w)
	a.Judge(t.Context(), w.Code, nil)
	a.End()
	return a, w
}

// A pool has health checks that suit vLLM, unless they are configured or off, and keeps idle
// connections shorter than vLLM does.
func TestPoolDefaults(t *testing.T) {
	t.Parallel()
	p, err := newPool(t, "encode", `{"upstreams":[{"dial":"localhost:1"}]}`)
	require.NoError(t, err)
	active := p.Handler.HealthChecks.Active
	assert.Equal(t, "/health", active.URI)
	assert.Equal(t, []any{caddy.Duration(5 * time.Second), caddy.Duration(5 * time.Second), 3, 1}, []any{active.Interval, active.Timeout, active.Fails, active.Passes})
	assert.True(t, p.Checked())
	transport := p.Handler.Transport.(replayTransport).Transport
	assert.Equal(t, 2500*time.Millisecond, transport.IdleConnTimeout)
	assert.Equal(t, 1024, transport.MaxIdleConnsPerHost)

	p, err = newPool(t, "encode", `{"upstreams":[{"dial":"localhost:1"}],"health_checks":{"active":{}},
		"transport":{"protocol":"http","keep_alive":{"idle_timeout":"1s","max_idle_conns_per_host":7}}}`)
	require.NoError(t, err)
	assert.False(t, p.Checked())
	assert.Equal(t, Unknown, p.Health())
	transport = p.Handler.Transport.(replayTransport).Transport
	assert.Equal(t, time.Second, transport.IdleConnTimeout)
	assert.Equal(t, 7, transport.MaxIdleConnsPerHost)
}

func TestPoolRefuses(t *testing.T) {
	t.Parallel()
	for config, want := range map[string]string{
		`{"load_balancing":{"selection_policy":{"policy":"best"}}}`: "provisioning decode pool: loading load balancing policy: ",
		`{"dynamic_upstreams":{"source":"rumour"}}`:                 "provisioning decode pool: loading upstream source module: ",
		`{"circuit_breaker":{"type":"none"}}`:                       "provisioning decode pool: loading circuit breaker: ",
		`{"transport":{"protocol":"carrier_pigeon"}}`:               "provisioning decode pool: loading transport: ",
		`{"trusted_proxies":["nonsense"]}`:                          "provisioning decode pool: ",
	} {
		_, err := newPool(t, "decode", config)
		assert.ErrorContains(t, err, want)
	}
}

// Whatever the policy, an instance that a request has tried is not chosen again, and all others
// are.
func TestEveryPolicyFindsTheOthers(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{
		`{"policy":"round_robin"}`, `{"policy":"random"}`, `{"policy":"first"}`, `{"policy":"least_conn"}`, `{"policy":"random_choose"}`,
		`{"policy":"ip_hash"}`, `{"policy":"uri_hash"}`, `{"policy":"header","field":"X-Key"}`, `{"policy":"cookie"}`,
		`{"policy":"weighted_round_robin","weights":[5,1,3,2]}`,
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			p, err := newPool(t, "encode", fmt.Sprintf(`{"upstreams":[{"dial":"a:1"},{"dial":"b:1"},{"dial":"c:1"},{"dial":"d:1"}],
				"load_balancing":{"selection_policy":%s},"health_checks":{"active":{}}}`, policy))
			require.NoError(t, err)
			client := newClient(http.Header{"X-Key": {"k"}})
			for range 100 {
				var tried []string
				for range 4 {
					assert.True(t, p.Others(tried))
					r := p.NewAttempt(client, Call{Method: http.MethodPost, Path: "/", Skip: tried}).Reserve(t.Context())
					require.NotNil(t, r)
					assert.NotContains(t, tried, r.Address)
					tried = append(tried, r.Address)
					r.Release()
				}
				assert.False(t, p.Others(tried))
				assert.Nil(t, p.NewAttempt(client, Call{Method: http.MethodPost, Path: "/", Skip: tried}).Reserve(t.Context()))
			}
		})
	}
}
