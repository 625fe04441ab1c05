package engine

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "%s %s%s %s%s", r.Method, r.Host, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Idempotency-Key"))
}

// targetsOf provisions a pool without health checks and returns its targets.
func targetsOf(t *testing.T, config string) []Target {
	t.Helper()
	p, err := newPool(t, "encode", `{`+config+`,"health_checks":{"active":{}}}`)
	require.NoError(t, err)
	return Targets(t.Context(), p)
}

// A question is sent as the pool's block says.
func TestAsk(t *testing.T) {
	plain := fakeEngine(t, echo)
	secure := httptest.NewTLSServer(http.HandlerFunc(echo))
	t.Cleanup(secure.Close)
	socket := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	local := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(echo)}}
	local.Start()
	t.Cleanup(local.Close)
	_, port, err := net.SplitHostPort(plain)
	require.NoError(t, err)
	t.Setenv("EPD_TEST_ENGINE", plain)

	for name, tc := range map[string]struct{ pool, host, path, authorization string }{
		"plain":       {`"upstreams":[{"dial":"` + plain + `"}]`, plain, "/x", "client's"},
		"TLS":         {`"upstreams":[{"dial":"` + secure.Listener.Addr().String() + `"}],"transport":{"protocol":"http","tls":{"insecure_skip_verify":true}}`, secure.Listener.Addr().String(), "/x", "client's"},
		"unix":        {`"upstreams":[{"dial":"unix/` + socket + `"}]`, "localhost", "/x", "client's"},
		"placeholder": {`"upstreams":[{"dial":"{env.EPD_TEST_ENGINE}"}]`, plain, "/x", "client's"},
		"dynamic":     {`"dynamic_upstreams":{"source":"a","name":"127.0.0.1","port":"` + port + `"}`, plain, "/x", "client's"},
		"header_up":   {`"upstreams":[{"dial":"` + plain + `"}],"headers":{"request":{"set":{"Authorization":["pool's {http.reverse_proxy.upstream.port}"]}}}`, plain, "/x", "pool's " + port},
		"rewrite":     {`"upstreams":[{"dial":"` + plain + `"}],"rewrite":{"uri":"/base{http.request.uri}"}`, plain, "/base/x", "client's"},
	} {
		t.Run(name, func(t *testing.T) {
			all := targetsOf(t, tc.pool)
			require.Len(t, all, 1)
			q := Question{Method: http.MethodPost, Path: "/x", Header: http.Header{"Authorization": {"client's"}}, Timeout: time.Minute}
			for range 2 { // the second time on an idle connection
				r := all[0].Ask(t.Context(), q)
				require.NoError(t, r.Err)
				assert.Equal(t, http.StatusOK, r.Status)
				assert.Equal(t, fmt.Sprintf("POST %s%s %s", tc.host, tc.path, tc.authorization), string(r.Body))
			}
			assert.Equal(t, http.Header{"Authorization": {"client's"}}, q.Header)
		})
	}
}

func TestAskIsBounded(t *testing.T) {
	t.Parallel()
	large := fakeEngine(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxReply+1)) })
	silent := fakeEngine(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	half := fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	all := targetsOf(t, `"upstreams":[{"dial":"`+large+`"},{"dial":"`+silent+`"},{"dial":"`+half+`"}]`)

	r := all[0].Ask(t.Context(), Question{Method: http.MethodGet, Path: "/", Timeout: time.Minute})
	require.NoError(t, r.Err)
	assert.Len(t, r.Body, maxReply)
	for _, slow := range all[1:] {
		r := slow.Ask(t.Context(), Question{Method: http.MethodGet, Path: "/", Timeout: 100 * time.Millisecond})
		assert.ErrorIs(t, r.Err, context.DeadlineExceeded)
	}
}

// Targets are each instance once, and the configured ones where a source knows none.
func TestTargets(t *testing.T) {
	t.Parallel()
	const off, nowhere = `,"health_checks":{"active":{}}}`, `"dynamic_upstreams":{"source":"a","name":"nowhere.invalid","port":"1"}`
	var pools []*Pool
	for _, p := range []struct{ stage, config string }{
		{"encode", `{"upstreams":[{"dial":"localhost:1"},{"dial":"localhost:2"},{"dial":"localhost:1"}]` + off},
		{"prefill", `{` + nowhere + off},
		{"decode", `{` + nowhere + `,"upstreams":[{"dial":"localhost:1"}]` + off},
	} {
		pool, err := newPool(t, p.stage, p.config)
		require.NoError(t, err)
		pools = append(pools, pool)
	}

	var got []string
	for _, target := range Targets(t.Context(), append(pools, pools[0])...) {
		got = append(got, target.Pool.Stage+" "+target.Address())
		assert.Equal(t, target.Address() == "", target.err != nil)
		if target.err != nil {
			assert.Equal(t, target.err, target.Ask(t.Context(), Question{}).Err)
			assert.Empty(t, target.Place())
		}
	}
	assert.Equal(t, []string{"encode localhost:1", "encode localhost:2", "prefill ", "decode localhost:1"}, got)
}

// contextOf keeps the context of the requests that reverse_proxy gives to its transport.
type contextOf struct{ ctx context.Context }

// RoundTrip implements http.RoundTripper.
func (c *contextOf) RoundTrip(r *http.Request) (*http.Response, error) {
	c.ctx = r.Context()
	return nil, context.Canceled
}

// Caddy does not export the names of what its transport finds in a request's context. If this
// fails after an update of Caddy, look at question.go: questions would not reach their instances.
func TestNamesThatCaddyDoesNotExport(t *testing.T) {
	t.Parallel()
	p, err := newPool(t, "encode", one("a:1"))
	require.NoError(t, err)
	question, err := Targets(t.Context(), p)[0].request(t.Context(), Question{Method: http.MethodGet, Path: "/"})
	require.NoError(t, err)
	kept := new(contextOf)
	p.Handler.Transport = kept
	send(t, p, newClient(http.Header{}), Call{})
	require.NotNil(t, kept.ctx)
	for who, ctx := range map[string]context.Context{"question": question.Context(), "reverse_proxy": kept.ctx} {
		to, ok := reverseproxy.GetDialInfo(ctx)
		assert.True(t, ok, who)
		assert.Equal(t, "a:1", to.Address, who)
	}
	vars := question.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	require.Len(t, vars, 1)
	for name, value := range vars {
		assert.IsType(t, value, caddyhttp.GetVar(kept.ctx, name), name)
	}
}
