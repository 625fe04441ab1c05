package integration

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// The access log has what happened to a request in each stage.
func TestAccessLog(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 1)
	c := startCaddy(t, e.block())
	r := c.post(t, stream(chat("", image("AAAA"), image("BBBB"), text("x"))))
	epd := entry(c.access(t, r.id()).at("epd").(map[string]any))
	assert.Equal(t, "ok", epd["outcome"])
	assert.EqualValues(t, 2, epd["media_items"])
	assert.Positive(t, epd["duration"])
	for stage, want := range map[string]struct {
		attempts int
		list     []*fakevllm.Engine
	}{"encode": {2, e.encode}, "prefill": {1, e.prefill}, "decode": {1, e.decode}} {
		upstreams := []any{}
		for i := range want.list {
			upstreams = append(upstreams, fmt.Sprintf("%s#%d", stage, i+1))
		}
		assert.ElementsMatch(t, upstreams, epd.at(stage, "upstreams"))
		assert.EqualValues(t, want.attempts, epd.at(stage, "attempts"))
		assert.Positive(t, epd.at(stage, "duration"))
		assert.Less(t, epd.at(stage, "duration"), epd["duration"])
	}

	r = c.post(t, chat("", text("x")))
	epd = entry(c.access(t, r.id()).at("epd").(map[string]any))
	assert.EqualValues(t, 0, epd["media_items"])
	assert.Equal(t, []string{"decode", "duration", "media_items", "outcome", "prefill", "request_id"}, names(epd), "stages that were not needed")
}

// Logs never contain media, prompts or credentials, whatever fails.
func TestLogsHoldNoSecrets(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 2)
	c := startCaddy(t, e.block())
	const secret = "SECRETSECRET"
	body := chat(`,"user":"`+secret+`"`, text(secret), image(secret))
	send := func(body string) {
		c.access(t, c.post(t, body, "Authorization: Bearer "+secret, "Cookie: a="+secret).id())
	}
	send(body)
	send(body + secret)
	send(`{"` + secret + `":1,"` + secret + `":2}`)
	send(chat("", `{"type":"image_url","image_url":["`+secret+`"]}`))
	for _, list := range [][]*fakevllm.Engine{e.encode, e.prefill, e.decode} {
		for _, f := range []fault{
			{Kind: fakevllm.Status, Code: 400, Message: "bad " + secret},
			{Kind: fakevllm.Status, Code: 503, Message: "bad " + secret},
			{Kind: fakevllm.CutBefore}, {Kind: fakevllm.Garbage}, {Kind: fakevllm.CutMiddle},
		} {
			if f.Kind == fakevllm.CutMiddle && list[0] == e.decode[0] {
				continue // TestAnswerThatBreaksOff
			}
			setFault(f, list...)
			send(body)
		}
		setFault(fault{}, list...)
	}
	assert.NotContains(t, c.log.text(), secret)
}

// Only the debug log has addresses of engines.
func TestLogsHoldNoAddresses(t *testing.T) {
	t.Parallel()
	for _, debug := range []bool{false, true} {
		e := startEngines(t, 2, 1, 1)
		block := e.block("encode health_interval 1h", "decode health_interval 50ms")
		c := startCaddyWith(t, map[bool]string{true: "debug"}[debug], block)
		body := stream(chat("", image("AAAA")))
		c.post(t, body)
		setFault(fault{Kind: fakevllm.CutMiddle}, e.decode...)
		c.post(t, body)
		setFault(fault{Kind: fakevllm.CutBefore}, e.prefill...)
		c.post(t, body)
		for _, engine := range e.encode {
			engine.Kill()
		}
		r := c.post(t, body)
		assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
		assert.NotContains(t, string(r.body), "127.0.0.1")
		line := c.failure(t, r.id())
		assert.Equal(t, debug, strings.Contains(line.str("error"), "127.0.0.1"), "%s", line)
		assert.Contains(t, line.str("error"), "connection refused")
		assert.Equal(t, debug, strings.Contains(line.str("upstream"), e.encode[0].Addr()) || strings.Contains(line.str("upstream"), e.encode[1].Addr()), "%s", line)
		c.access(t, r.id())
		e.decode[0].Kill()
		c.entries(t, 1, func(e entry) bool { return e.str("msg") == "instance is down" })
		if debug {
			continue
		}
		found, _ := c.log.find(func(entry entry) bool {
			for _, engine := range e.all() {
				_, port, _ := strings.Cut(engine.Addr(), ":")
				if strings.Contains(fmt.Sprint(entry), ":"+port) {
					// an entry of Caddy itself, which operators can exclude
					return !strings.HasPrefix(entry.str("logger"), "http.handlers.epd_proxy.health_checker")
				}
			}
			return false
		})
		assert.Empty(t, found)
	}
}

// Errors of the source of a dynamic pool do not show host names either.
func TestLogsHoldNoNamesOfSources(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, "encode "+e.encode[0].Addr()+"\ndecode {\ndynamic a gpu.engines.invalid 8000\n}")
	r := c.post(t, chat("", text("x")))
	assert.Equal(t, http.StatusServiceUnavailable, r.StatusCode)
	assert.NotEmpty(t, c.entries(t, 1, func(e entry) bool { return strings.HasPrefix(e.str("msg"), "failed getting dynamic upstreams") }))
	c.access(t, r.id())
	assert.NotContains(t, c.log.text(), "gpu.engines")
}

func TestHealth(t *testing.T) {
	t.Parallel()
	const fast = "health_interval 20ms"
	e := startEngines(t, 2, 2, 2)
	c := startCaddy(t, e.block("encode "+fast, "prefill "+fast, "decode "+fast))
	state := func() (int, map[string]any) {
		r := c.do(t, http.MethodGet, "/health", "")
		return r.StatusCode, object(t, r.body)
	}
	become := func(status int, encode, prefill, decode string) {
		t.Helper()
		assert.Eventually(t, func() bool {
			code, s := state()
			return code == status && s["proxy"] == "healthy" && s["encode_cluster"] == encode && s["prefill_cluster"] == prefill && s["decode_cluster"] == decode
		}, waitLong, tick)
	}
	become(200, "healthy", "healthy", "healthy")
	e.encode[0].Kill()
	become(200, "degraded", "healthy", "healthy")
	e.encode[1].Kill()
	become(503, "unhealthy", "healthy", "healthy")
	e.decode[0].Kill()
	become(503, "unhealthy", "healthy", "degraded")
	logged := func(msg, level string) {
		t.Helper()
		for _, upstream := range []string{"encode#1", "encode#2", "decode#1"} {
			assert.Len(t, c.entries(t, 1, func(e entry) bool {
				pool, _, _ := strings.Cut(upstream, "#")
				return e.str("msg") == msg && e.str("level") == level && e.str("upstream") == upstream && e.str("logger") == "http.handlers.epd_proxy."+pool
			}), 1)
		}
	}
	logged("instance is down", "warn")
	assert.NoError(t, e.encode[0].Restart())
	assert.NoError(t, e.encode[1].Restart())
	assert.NoError(t, e.decode[0].Restart())
	become(200, "healthy", "healthy", "healthy")
	logged("instance is up", "info")

	// it reports the last results and contacts nobody
	checks := e.encode[0].HealthChecks()
	assert.Eventually(t, func() bool { return e.encode[0].HealthChecks() > checks }, waitLong, tick)
	e.assertRequests(t, 0, 0, 0)
}

// The health check succeeds if only a pool that is not required is down.
func TestHealthWithoutEncoders(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	e.encode[0].Kill()
	c := startCaddy(t, e.block("encode_optional", "encode health_interval 20ms"))
	assert.Eventually(t, func() bool {
		r := c.do(t, http.MethodGet, "/health", "")
		return object(t, r.body)["encode_cluster"] == "unhealthy" && r.StatusCode == http.StatusOK
	}, waitLong, tick)
	assert.Equal(t, http.StatusOK, c.post(t, chat("", text("hello"))).StatusCode)
}

func TestHealthOfOtherPools(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, "encode {\ndynamic a localhost 1\n}\nprefill none\ndecode "+e.decode[0].Addr())
	r := c.do(t, http.MethodGet, "/health", "")
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Equal(t, map[string]any{"proxy": "healthy", "encode_cluster": "unknown", "prefill_cluster": "empty", "decode_cluster": "healthy"}, object(t, r.body))
	assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
}

// An instance that hangs, health checks included, gets no requests.
func TestUnhealthyInstancesAreNotChosen(t *testing.T) {
	// not in parallel: on a busy machine, checks this frequent time out
	const fast = "health_interval 200ms\nhealth_timeout 1s"
	e := startEngines(t, 2, 2, 2)
	c := startCaddy(t, e.block("encode "+fast, "prefill "+fast, "decode "+fast))
	for _, list := range [][]*fakevllm.Engine{e.encode, e.prefill, e.decode} {
		list[0].SetFault(fault{Kind: fakevllm.Hang})
	}
	assert.Eventually(t, func() bool {
		s := object(t, c.do(t, http.MethodGet, "/health", "").body)
		return s["encode_cluster"] == "degraded" && s["prefill_cluster"] == "degraded" && s["decode_cluster"] == "degraded"
	}, waitLong, tick)
	for range 4 {
		body := chat("", image("AAAA"), image("BBBB"))
		assertAnswer(t, body, c.post(t, body))
	}
	for _, list := range [][]*fakevllm.Engine{e.encode, e.prefill, e.decode} {
		assert.Empty(t, list[0].Requests())
	}
}
