package integration

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// corsSite is the CORS configuration of the documentation, as directives for these engines.
func corsSite(t *testing.T, e *engines) string {
	t.Helper()
	for _, code := range caddyfiles(t) {
		if strings.Contains(code, "Access-Control-Allow-Origin") {
			code = strings.TrimSuffix(strings.TrimPrefix(code, "example.com {\n"), "}\n")
			require.Contains(t, code, "e1:8001")
			require.Contains(t, code, "pd1:8003")
			return strings.NewReplacer("e1:8001", e.encode[0].Addr(), "pd1:8003", e.decode[0].Addr()).Replace(code)
		}
	}
	require.Fail(t, "the documents say nothing of CORS")
	return ""
}

// With the documented configuration, pages of other sites may send requests, and every answer has
// exactly one CORS header: browsers reject answers with two, or with none.
func TestBrowsers(t *testing.T) {
	t.Parallel()
	const origin = "https://app.example.com"
	e := startEngines(t, 1, 0, 1)
	c := startSite(t, corsSite(t, e))
	body := chat("", text("x"), image("AAAA"))
	for _, http2 := range []bool{false, true} {
		client := c.client(t, http2)
		e.reset()
		r := c.doWith(t, client, http.MethodOptions, chatPath, "", "Origin: "+origin,
			"Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type,x-stainless-lang")
		assert.Equal(t, http.StatusNoContent, r.StatusCode)
		assert.Equal(t, []string{origin}, r.Header["Access-Control-Allow-Origin"])
		assert.Equal(t, []string{"authorization,content-type,x-stainless-lang"}, r.Header["Access-Control-Allow-Headers"])
		assert.Equal(t, []string{"GET, POST"}, r.Header["Access-Control-Allow-Methods"])
		e.assertRequests(t, 0, 0, 0)

		for name, tc := range map[string]struct {
			method, path, body string
			role               fakevllm.Role
			fault              fault
			status             int
		}{
			"answer":                    {body: body, status: 200},
			"stream":                    {body: stream(body), status: 200},
			"completion":                {path: "/v1/completions", body: `{"model":"fake","prompt":"Once"}`, status: 200},
			"models":                    {method: http.MethodGet, path: "/v1/models", status: 200},
			"health":                    {method: http.MethodGet, path: "/health", status: 200},
			"error of decode":           {body: body, role: fakevllm.Decode, fault: fault{Kind: fakevllm.Status, Code: 400}, status: 400},
			"error of a stream":         {body: stream(body), role: fakevllm.Decode, fault: fault{Kind: fakevllm.ErrorFirst, Code: 400}, status: 400},
			"error within a stream":     {body: stream(body), role: fakevllm.Decode, fault: fault{Kind: fakevllm.ErrorWithin}, status: 200},
			"error of an encoder":       {body: body, role: fakevllm.Encode, fault: fault{Kind: fakevllm.Status, Code: 422}, status: 422},
			"failure of an encoder":     {body: body, role: fakevllm.Encode, fault: fault{Kind: fakevllm.Garbage}, status: 502},
			"failure of decode":         {body: body, role: fakevllm.Decode, fault: fault{Kind: fakevllm.CutBefore}, status: 502},
			"no JSON":                   {body: "x", status: 400},
			"no such route":             {path: "/v1/embeddings", body: "{}", status: 404},
			"wrong method":              {method: http.MethodDelete, path: chatPath, status: 405},
			"OPTIONS, but no preflight": {method: http.MethodOptions, path: chatPath, status: 405},
		} {
			t.Run(name, func(t *testing.T) {
				setFault(tc.fault, e.of(tc.role)...)
				defer setFault(fault{}, e.all()...)
				method, path := http.MethodPost, chatPath
				if tc.method != "" {
					method = tc.method
				}
				if tc.path != "" {
					path = tc.path
				}
				r := c.doWith(t, client, method, path, tc.body, "Origin: "+origin)
				assert.Equal(t, tc.status, r.StatusCode, "%s", r.body)
				assert.Equal(t, []string{origin}, r.Header["Access-Control-Allow-Origin"])
				assert.NotEmpty(t, r.id())
			})
		}
	}
}
