package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// operate sends a request to Caddy's admin endpoint.
func (c *caddy) operate(t *testing.T, method, path string, headers ...string) *reply {
	t.Helper()
	endpoint := &caddy{URL: "http://127.0.0.1"}
	return endpoint.doWith(t, c.adminClient(), method, path, "", headers...)
}

// said are the results for each instance: "<upstream> <status> <result>", by stage.
func said(t *testing.T, r *reply) map[string][]string {
	t.Helper()
	assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
	var stages map[string][]struct {
		Upstream string
		Status   int
		Result   string
	}
	require.NoError(t, json.Unmarshal(r.body, &stages), "%s", r.body)
	lines := make(map[string][]string)
	for stage, list := range stages {
		for _, s := range list {
			lines[stage] = append(lines[stage], fmt.Sprintf("%s %d %s", s.Upstream, s.Status, s.Result))
		}
	}
	return lines
}

func profiling(o *fakevllm.Options) { o.Profiling = true }

func TestProfile(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 1, profiling, func(o *fakevllm.Options) { o.APIKey = "secret" })
	c := startCaddy(t, e.block("profiling"))
	for _, path := range []string{"/start_profile", "/stop_profile"} {
		e.reset()
		body := `{"model":"fake","prompt":"` + strings.Repeat("x", 100<<10) + `"}` // as sent by vllm bench serve
		r := c.do(t, http.MethodPost, path, body, "Authorization: Bearer secret", "X-Request-Id: profile_1", "X-Data-Parallel-Rank: 1", "X-Forwarded-For: 6.6.6.6", "X-Other: y")
		assert.Equal(t, http.StatusOK, r.StatusCode)
		assert.Equal(t, "profile_1", r.id())
		assert.Equal(t, map[string][]string{
			"encode":  {"encode#1 200 ok", "encode#2 200 ok"},
			"prefill": {"prefill#1 200 ok"},
			"decode":  {"decode#1 200 ok"},
		}, said(t, r))
		for _, engine := range e.all() {
			require.Len(t, engine.Requests(), 1)
			got := engine.Requests()[0]
			assert.Equal(t, "POST "+path, got.Method+" "+got.Path)
			assert.Equal(t, "profile_1", got.ID)
			assert.Empty(t, got.Body)
			for _, name := range []string{"X-Other", "X-Data-Parallel-Rank", "X-Forwarded-For", "Idempotency-Key"} {
				assert.NotContains(t, got.Header, name)
			}
		}
		e.reset()
		assert.Equal(t, http.StatusOK, c.do(t, http.MethodPost, path, "", "Authorization: Bearer secret").StatusCode)

		r = c.do(t, http.MethodGet, path, "")
		assert.Equal(t, http.StatusMethodNotAllowed, r.StatusCode)
		assert.Equal(t, http.MethodPost, r.Header.Get("Allow"))
		assert.Equal(t, http.StatusUnsupportedMediaType, c.do(t, http.MethodPost, path, "x", "Content-Encoding: gzip").StatusCode)
	}
	// the access log has the outcome too
	assert.Equal(t, "ok", c.access(t, "profile_1").str("epd", "outcome"))
}

func TestProfileWhereSomeCannot(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 1, func(o *fakevllm.Options) { o.Profiling = o.Role == fakevllm.Decode })
	c := startCaddy(t, e.block("profiling"))
	e.encode[1].Close()

	r := c.do(t, http.MethodPost, "/start_profile", "{}", "X-Request-Id: some")
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Equal(t, map[string][]string{
		"encode":  {"encode#1 404 not available", "encode#2 0 no answer"},
		"prefill": {"prefill#1 404 not available"},
		"decode":  {"decode#1 200 ok"},
	}, said(t, r))
	assert.Len(t, c.entries(t, 3, func(entry entry) bool { return entry.str("msg") == "profiling failed" }), 3)
	for _, engine := range e.all() {
		assert.NotContains(t, string(r.body), engine.Addr())
	}

	r = c.operate(t, http.MethodPost, "/epd/start_profile")
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Equal(t, map[string][]string{
		"encode":  {e.encode[0].Addr() + " 404 not available", e.encode[1].Addr() + " 0 dial tcp " + e.encode[1].Addr() + ": connect: connection refused"},
		"prefill": {e.prefill[0].Addr() + " 404 not available"},
		"decode":  {e.decode[0].Addr() + " 200 ok"},
	}, said(t, r))

	// now no instance can profile
	e.decode[0].SetFault(fakevllm.Fault{Kind: fakevllm.Status, Code: 500, Message: "the disk is full"})
	r = c.do(t, http.MethodPost, "/stop_profile", "{}")
	assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
	failure := r.apiError(t)
	assert.Equal(t, "profiling_unavailable", failure["code"])
	assert.Equal(t, "no instance can profile: decode#1 the disk is full, encode#1 not available, encode#2 no answer, prefill#1 not available", failure["message"])
	r = c.operate(t, http.MethodPost, "/epd/stop_profile")
	assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
	assert.Equal(t, []string{e.decode[0].Addr() + " 500 the disk is full"}, said(t, r)["decode"])
}

// A page of another site can make a browser send a request without a body, but that neither
// starts nor stops profiles.
func TestProfileIsForNoOtherSite(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, profiling)
	c := startCaddy(t, e.block("profiling"))
	port := c.URL[len("https://localhost:"):]
	for name, tc := range map[string]struct {
		headers []string
		status  int
	}{
		"none":            {nil, 200},
		"its own":         {[]string{"Origin: " + c.URL}, 200},
		"in capitals":     {[]string{"Origin: HTTPS://LocalHost:" + port}, 200},
		"another site":    {[]string{"Origin: https://evil.example"}, 403},
		"another port":    {[]string{"Origin: https://localhost:" + port + "1"}, 403},
		"no port":         {[]string{"Origin: https://localhost"}, 403},
		"another scheme":  {[]string{"Origin: http://localhost:" + port}, 403},
		"a path":          {[]string{"Origin: " + c.URL + "/"}, 403},
		"a hidden one":    {[]string{"Origin: null"}, 403},
		"empty":           {[]string{"Origin: "}, 403},
		"a site below":    {[]string{"Origin: https://localhost.evil.example:" + port}, 403},
		"two, one is his": {[]string{"Origin: " + c.URL, "Origin: https://evil.example"}, 403},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			for _, path := range []string{"/start_profile", "/stop_profile"} {
				r := c.do(t, http.MethodPost, path, "", tc.headers...)
				assert.Equal(t, tc.status, r.StatusCode)
				if tc.status == http.StatusForbidden {
					assert.Equal(t, "origin_not_allowed", r.apiError(t)["code"])
				}
			}
			want := map[int]int{200: 2, 403: 0}[tc.status]
			e.assertRequests(t, want, 0, want)
		})
	}
}

// Without the option, only the admin endpoint has these routes.
func TestProfileIsForOperators(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, profiling, func(o *fakevllm.Options) { o.APIKey = "secret" })
	c := startCaddy(t, e.block())
	for _, path := range []string{"/start_profile", "/stop_profile", "/epd/start_profile", "/epd/stop_profile"} {
		r := c.do(t, http.MethodPost, path, "{}", "Authorization: Bearer secret")
		assert.Equal(t, http.StatusNotFound, r.StatusCode)
		assert.Equal(t, "not_found", r.apiError(t)["code"])
	}
	e.assertRequests(t, 0, 0, 0)

	for _, path := range []string{"/start_profile", "/stop_profile"} {
		r := c.operate(t, http.MethodPost, "/epd"+path, "Authorization: Bearer secret", "X-Other: y")
		assert.Equal(t, http.StatusOK, r.StatusCode)
		assert.Equal(t, map[string][]string{"encode": {e.encode[0].Addr() + " 200 ok"}, "decode": {e.decode[0].Addr() + " 200 ok"}}, said(t, r))
		got := e.decode[0].Requests()[len(e.decode[0].Requests())-1]
		assert.Equal(t, path, got.Path)
		assert.Empty(t, got.Body)
		assert.NotContains(t, got.Header, "X-Other")

		r = c.operate(t, http.MethodGet, "/epd"+path)
		assert.Equal(t, http.StatusMethodNotAllowed, r.StatusCode)
		assert.Equal(t, http.MethodPost, r.Header.Get("Allow"))
		assert.JSONEq(t, `{"error":"use POST here"}`, string(r.body))
	}
	e.assertRequests(t, 2, 0, 2)
}

func TestProfileOfDynamicPools(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, profiling)
	_, port, err := net.SplitHostPort(e.encode[0].Addr())
	require.NoError(t, err)
	c := startCaddy(t, fmt.Sprintf("profiling\nencode {\ndynamic a 127.0.0.1 %s\n}\nprefill {\ndynamic a nowhere.invalid 80\n}\ndecode %s", port, e.decode[0].Addr()))

	r := c.operate(t, http.MethodPost, "/epd/start_profile")
	assert.Equal(t, http.StatusOK, r.StatusCode)
	lines := said(t, r)
	assert.Equal(t, []string{e.encode[0].Addr() + " 200 ok"}, lines["encode"])
	require.Len(t, lines["prefill"], 1)
	assert.Contains(t, lines["prefill"][0], "lookup nowhere.invalid")

	lines = said(t, c.do(t, http.MethodPost, "/start_profile", ""))
	require.Len(t, lines["encode"], 1)
	assert.Regexp(t, `^encode#[0-9a-f]{6} 200 ok$`, lines["encode"][0])
	assert.Equal(t, []string{" 0 no answer"}, lines["prefill"])
}

func TestProfileEndsWithItsClient(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, profiling)
	c := startCaddy(t, e.block("profiling"))
	e.decode[0].SetFault(fakevllm.Fault{Kind: fakevllm.Hang})
	ctx, leave := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, err := c.send(ctx, c.Client, http.MethodPost, "/stop_profile", "{}", "X-Request-Id: gone")
		assert.ErrorIs(t, err, context.Canceled)
	}()
	require.Eventually(t, func() bool { return e.decode[0].InFlight() == 1 }, 10*time.Second, 5*time.Millisecond)
	leave()
	<-done
	assert.Equal(t, "client_closed", c.access(t, "gone").str("epd", "outcome"))
	require.Eventually(t, func() bool { return e.decode[0].InFlight() == 0 }, 10*time.Second, 5*time.Millisecond)
}
