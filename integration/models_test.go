package integration

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

const modelList = `{"object":"list", "data":[{"id":"fake","object":"model"},{"id":"lora/a","object":"model","parent":"fake"},{"id":"gr\u00f6\u00dfe 7%?","object":"model"},{"object":"model"},7,null]}`

// lists answers every request with this list of models.
func lists(list string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Asked", r.Method+" "+r.RequestURI)
		_, _ = io.WriteString(w, list)
	}
}

// The list is decode's, unchanged, and so is each model in it.
func TestModels(t *testing.T) {
	t.Parallel()
	c := startDecoders(t, "", lists(modelList))
	for path, want := range map[string]string{
		"":                           modelList,
		"/fake":                      `{"id":"fake","object":"model"}`,
		"/lora/a":                    `{"id":"lora/a","object":"model","parent":"fake"}`,
		"/lora%2Fa":                  `{"id":"lora/a","object":"model","parent":"fake"}`,
		"/lora%2fa?x=y":              `{"id":"lora/a","object":"model","parent":"fake"}`,
		"/gr%C3%B6%C3%9Fe%207%25%3f": `{"id":"gr\u00f6\u00dfe 7%?","object":"model"}`,
		"/Fake":                      "",
		"/lora":                      "",
		"/lora/a/":                   "",
		"/fake%00":                   "",
		"/fake%0d%0aX-Evil:%20c":     "",
		"/../models/fake":            "",
	} {
		for _, http2 := range []bool{false, true} {
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				t.Run(fmt.Sprintf("%s %s, http2 %v", method, path, http2), func(t *testing.T) {
					r := c.doWith(t, c.client(t, http2), method, "/v1/models"+path, "")
					assert.NotEmpty(t, r.id())
					assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
					if want == "" {
						assert.Equal(t, http.StatusNotFound, r.StatusCode)
						assert.Equal(t, "rejected", c.access(t, r.id()).str("epd", "outcome"))
						if method == http.MethodGet {
							e := r.apiError(t)
							assert.Equal(t, "model_not_found", e["code"])
							assert.Equal(t, "model", e["param"])
							assert.NotContains(t, string(r.body), "fake")
						}
						return
					}
					assert.Equal(t, http.StatusOK, r.StatusCode)
					assert.Equal(t, "GET /v1/models", r.Header.Get("X-Asked"))
					assert.EqualValues(t, len(want), r.ContentLength)
					assert.Equal(t, map[string]string{http.MethodGet: want}[method], string(r.body))
					assert.Equal(t, "ok", c.access(t, r.id()).str("epd", "outcome"))
				})
			}
		}
	}
	r := c.do(t, http.MethodGet, "/v1/models/", "")
	assert.Equal(t, http.StatusNotFound, r.StatusCode)
	assert.Equal(t, "not_found", r.apiError(t)["code"])
	r = c.do(t, http.MethodPost, "/v1/models/fake", "{}")
	assert.Equal(t, http.StatusMethodNotAllowed, r.StatusCode)
	assert.Equal(t, "GET, HEAD", r.Header.Get("Allow"))
	metrics := c.admin(t, "/metrics")
	assert.Contains(t, metrics, `api="models"`)
	assert.NotContains(t, metrics, "lora", "the client has chosen a label")
	c.assertNoLeaks(t)
}

// If one instance does not list its models, the client does not notice.
func TestModelsFailover(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]http.HandlerFunc{
		"hangs": func(_ http.ResponseWriter, r *http.Request) { hang(r) },
		"hangs in its answer": func(w http.ResponseWriter, r *http.Request) {
			lists(modelList[:9])(w, r)
			_ = http.NewResponseController(w).Flush()
			hang(r)
		},
		"cut": func(_ http.ResponseWriter, r *http.Request) { cut(r) },
		"cut in two": func(w http.ResponseWriter, r *http.Request) {
			lists(modelList[:9])(w, r)
			_ = http.NewResponseController(w).Flush()
			cut(r)
		},
		"no JSON": lists("<html>"),
		"no list": lists(`{"object":"list"}`),
		"500":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"503":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startDecoders(t, "", first, lists(modelList))
			start := time.Now()
			r := c.do(t, http.MethodGet, "/v1/models", "")
			assert.Equal(t, http.StatusOK, r.StatusCode)
			assert.Equal(t, modelList, string(r.body))
			assert.Less(t, time.Since(start), waitLong)
		})
	}
	t.Run("all hang", func(t *testing.T) {
		t.Parallel()
		c := startDecoders(t, "retries 0", func(_ http.ResponseWriter, r *http.Request) { hang(r) })
		r := c.do(t, http.MethodGet, "/v1/models/fake", "")
		assert.Equal(t, http.StatusGatewayTimeout, r.StatusCode)
		assert.Equal(t, "decode_timeout", r.apiError(t)["code"])
		assert.Equal(t, "nothing came for 5s (GET /v1/models)", c.failure(t, r.id()).str("error"))
	})
	t.Run("a key is missing", func(t *testing.T) {
		t.Parallel()
		e := startEngines(t, 1, 0, 2, func(o *fakevllm.Options) { o.APIKey = "secret" })
		c := startCaddy(t, e.block())
		r := c.do(t, http.MethodGet, "/v1/models/fake", "")
		assert.Equal(t, http.StatusUnauthorized, r.StatusCode)
		assert.JSONEq(t, `{"error":"Unauthorized"}`, string(r.body))
		e.assertRequests(t, 0, 0, 1)
		assert.Equal(t, http.StatusOK, c.do(t, http.MethodGet, "/v1/models/fake", "", "Authorization: Bearer secret").StatusCode)
	})
}
