package integration

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// Headers that describe the client reach all engines; headers that control engines or the
// connection reach none.
func TestHeaders(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) { o.APIKey = "secret" })
	c := startCaddy(t, e.block())
	body := chat("", text("x"), image("AAAA"))
	r := c.doWith(t, c.client(t, false), http.MethodPost, chatPath+"?query=1", body,
		"Authorization: Bearer secret", "X-Custom: one", "X-Custom: two", "Accept: text/x", "Accept-Language: de", "User-Agent: test", "Traceparent: 00-1",
		"X-Data-Parallel-Rank: 1", "X-Prefiller-Host-Port: evil:1", "X-Encoder-Hosts-Ports: evil:1", "EPP-Profile: decode",
		"Connection: X-Listed, close", "X-Listed: x", "Keep-Alive: 5", "Te: trailers", "Trailer: X-T", "Upgrade: websocket", "Expect: 100-continue",
		"Range: bytes=0-1", "If-None-Match: x", "If-Match: x", "If-Modified-Since: x", "If-Unmodified-Since: x", "If-Range: x",
		"Content-Md5: x", "Digest: x", "Content-Digest: x", "Repr-Digest: x", "Incremental: ?1", "Accept-Encoding: br, gzip", "Http2-Settings: x",
		"Content-Range: x", "Content-Language: x", "X-Data-Parallel-Host-Port: x", "X-Kv-Cache-Source-Host-Port: x", "X-Llm-D-Prefiller-Host-Port: x",
		"X-Forwarded-For: 6.6.6.6", "X-Forwarded-Host: evil", "Idempotency-Key: x", "X-Idempotency-Key: x",
		"X-Vllm-Priority: -1", "X-Dp-Rank: 1", "X-Prefill-Dp-Rank: 1", "X-Worker-Instance-Id: 1", "X-Prefill-Instance-Id: 1", "X-Dynamo-Dp-Rank: 1", "X-Smg-Target-Worker: 1",
		"X-Gateway-Destination-Endpoint: evil:1")
	assertAnswer(t, body, r)
	for _, engine := range e.all() {
		require.Len(t, engine.Requests(), 1)
		got := engine.Requests()[0].Header
		assert.Equal(t, "Bearer secret", got.Get("Authorization"))
		assert.Equal(t, []string{"one", "two"}, got["X-Custom"])
		assert.Equal(t, "127.0.0.1", got.Get("X-Forwarded-For"))
		assert.NotEqual(t, "evil", got.Get("X-Forwarded-Host"))
		assert.Equal(t, "application/json", got.Get("Content-Type"))
		for _, name := range []string{"X-Data-Parallel-Rank", "X-Prefiller-Host-Port", "X-Encoder-Hosts-Ports", "Epp-Profile", "Connection", "X-Listed", "Keep-Alive", "Te", "Trailer",
			"Upgrade", "Expect", "Range", "If-None-Match", "If-Match", "If-Modified-Since", "If-Unmodified-Since", "If-Range", "Content-Md5", "Digest", "Content-Digest", "Repr-Digest",
			"Content-Range", "Content-Language", "X-Data-Parallel-Host-Port", "X-Kv-Cache-Source-Host-Port", "X-Llm-D-Prefiller-Host-Port",
			"Idempotency-Key", "X-Idempotency-Key", "X-Vllm-Priority", "X-Dp-Rank", "X-Prefill-Dp-Rank", "X-Worker-Instance-Id", "X-Prefill-Instance-Id",
			"X-Dynamo-Dp-Rank", "X-Smg-Target-Worker", "X-Gateway-Destination-Endpoint",
			"Incremental", "Http2-Settings", "Transfer-Encoding", "Content-Encoding"} {
			assert.Empty(t, got[name], "%s at %s", name, engine.Name())
		}
		want := "gzip" // set by the transport
		if engine == e.decode[0] {
			want = "br, gzip"
		}
		assert.Equal(t, want, got.Get("Accept-Encoding"))
		assert.Equal(t, chatPath, engine.Requests()[0].Path)
	}
	e.assertContract(t)
}

func TestMissingKeyIsTheEnginesToRefuse(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) { o.APIKey = "secret" })
	c := startCaddy(t, e.block())
	for _, body := range []string{chat("", image("AAAA")), chat("", text("x"))} {
		r := c.post(t, body)
		assert.Equal(t, http.StatusUnauthorized, r.StatusCode)
		assert.Equal(t, "Unauthorized", r.apiError(t)["message"])
	}
	r := c.do(t, http.MethodGet, "/v1/models", "")
	assert.Equal(t, http.StatusUnauthorized, r.StatusCode)
}

func TestRequestIDs(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	body := chat("", image("AAAA"), image("BBBB"))
	const uuid = "^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
	for name, tc := range map[string]struct {
		headers []string
		want    string
	}{
		"taken over":        {[]string{"X-Request-Id: a.B_9-z"}, `^a\.B_9-z$`},
		"as long as may be": {[]string{"X-Request-Id: " + strings.Repeat("x", 128)}, "^x{128}$"},
		"none":              {nil, uuid},
		"empty":             {[]string{"X-Request-Id: "}, uuid},
		"too long":          {[]string{"X-Request-Id: " + strings.Repeat("x", 129)}, uuid},
		"colon":             {[]string{"X-Request-Id: a:0:abcdef"}, uuid},
		"space":             {[]string{"X-Request-Id: a b"}, uuid},
		"not ASCII":         {[]string{"X-Request-Id: ä"}, uuid},
		"two":               {[]string{"X-Request-Id: a", "X-Request-Id: b"}, uuid},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			r := c.post(t, body, tc.headers...)
			assertAnswer(t, body, r)
			require.Len(t, r.Header["X-Request-Id"], 1)
			assert.Regexp(t, tc.want, r.id())
			engineID := e.prefill[0].Requests()[0].ID
			assert.Regexp(t, "^"+regexp.QuoteMeta(r.id())+"-[0-9a-f]{12}$", engineID)
			assert.Equal(t, engineID, e.decode[0].Requests()[0].ID)
			items := make(map[string]bool)
			for _, request := range e.encode[0].Requests() {
				suffix, ok := strings.CutPrefix(request.ID, engineID+":")
				require.True(t, ok, request.ID)
				assert.Regexp(t, "^[01]:[0-9a-f]{6}$", suffix)
				item := image(map[string]string{"0": "AAAA", "1": "BBBB"}[suffix[:1]])
				assert.Contains(t, string(request.Body), item)
				items[suffix[:1]] = true
			}
			assert.Len(t, items, 2)
		})
	}
}

// Trusted clients may send what others may not.
func TestTrustedClients(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("trust_clients"))
	body := chat(`,"kv_transfer_params":{"remote_host":"theirs"},"ec_transfer_params":{"a":"theirs"}`, `{"type":"image_url","image_url":{"url":"data:x"},"uuid":"theirs"}`)
	_ = c.post(t, body)
	require.Len(t, e.encode[0].Requests(), 1)
	require.Len(t, e.decode[0].Requests(), 1)
	assert.Contains(t, string(e.encode[0].Requests()[0].Body), `{"type":"image_url","image_url":{"url":"data:x"},"uuid":"theirs"}`)
	assert.Equal(t, body, string(e.decode[0].Requests()[0].Body))
	_ = c.post(t, chat("", text("x")), "X-Data-Parallel-Rank: 1")
	assert.Equal(t, "1", e.decode[0].Requests()[1].Header.Get("X-Data-Parallel-Rank"))
}

// With these, a client could make an engine read from any host.
func TestClientsTransferParamsAreRemoved(t *testing.T) {
	t.Parallel()
	const evil = `,"kv_transfer_params":{"remote_host":"evil"},"ec_transfer_params":{"x":{"peer_host":"evil"}}`
	for _, prefills := range []int{0, 1} {
		e := startEngines(t, 1, prefills, 1)
		c := startCaddy(t, e.block())
		named := chat("", `{"uuid":"evil","type":"image_url","image_url":{"url":"data:x"}}`, `{"type":"text","text":"x","uuid":"evil"}`)
		require.Equal(t, http.StatusOK, c.post(t, named).StatusCode)
		for _, request := range []struct{ path, body string }{
			{chatPath, chat(evil, image("AAAA"))},
			{chatPath, chat(strings.ReplaceAll(evil, "_transfer", `_\u0074ransfer`), image("AAAA"))},
			{"/v1/completions", `{"prompt":"x"` + evil + `}`},
		} {
			r := c.do(t, http.MethodPost, request.path, request.body)
			require.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
		}
		for _, engine := range e.all() {
			for _, r := range engine.Requests() {
				assert.NotContains(t, string(r.Body), "evil")
			}
		}
		e.assertContract(t)
	}
}

// Placeholders and variables of the client's request work in the options of a
// pool, in all sub-requests at once.
func TestPlaceholdersInPools(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 1)
	const up = "header_up X-Seen \"{vars.tenant} {http.request.orig_uri} {remote_host} {tier} {http.request.uri.path} {bucket}\""
	c := startSite(t, `vars tenant acme
		map {query.tier} {tier} {
			gold first
			default last
		}
		map {http.request.uuid} {bucket} { # looking this up sets a variable
			default x
		}
		handle_path /prefix/* {
			epd_proxy {
				`+e.block("encode "+up, "prefill "+up, "decode "+up)+`
			}
		}`)
	body := chat("", image("AAAA"), image("BBBB"), image("CCCC"), image("DDDD"))
	for range 20 {
		assertAnswer(t, body, c.do(t, http.MethodPost, "/prefix"+chatPath+"?tier=gold", body))
	}
	for _, engine := range e.all() {
		for _, r := range engine.Requests() {
			assert.Equal(t, "acme /prefix"+chatPath+"?tier=gold 127.0.0.1 first "+chatPath+" x", r.Header.Get("X-Seen"))
		}
	}
}
