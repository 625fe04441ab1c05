package integration

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// startDecoders runs Caddy with these decode instances, in this order of preference, and
// an encoder that gets no requests.
func startDecoders(t *testing.T, options string, decode ...http.HandlerFunc) *caddy {
	t.Helper()
	e := startEngines(t, 1, 0, 0)
	pool := "decode"
	for _, h := range decode {
		server := httptest.NewServer(h)
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
		pool += " " + server.Listener.Addr().String()
	}
	return startCaddy(t, "encode "+e.encode[0].Addr()+"\n"+pool+" {\nlb_policy first\n}\n"+options)
}

// events answers with a stream of these events, each flushed separately, and then
// calls the function.
func events(then func(*http.Request), events ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		for _, e := range events {
			_, _ = io.WriteString(w, "data: "+e+"\n\n")
			_ = http.NewResponseController(w).Flush()
		}
		then(r)
	}
}

func end(*http.Request)    {}
func cut(*http.Request)    { panic(http.ErrAbortHandler) }
func hang(r *http.Request) { <-r.Context().Done() }

const (
	chatStream       = `{"model":"m","stream":true,"messages":[]}`
	completionStream = `{"model":"m","stream":true,"prompt":"a"}`

	roleEvent  = `{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}`
	tokenEvent = `{"choices":[{"index":0,"delta":{"content":"a"}}]}`
	errorEvent = `{"error": {"message": "too long", "type": "BadRequestError", "param": null, "code": 400}}`
)

// If the first event of a stream is an error, it becomes the status of the answer, and another
// instance is tried where it would be for a status.
func TestErrorAsFirstEvent(t *testing.T) {
	t.Parallel()
	const completion = `{"model":"fake","prompt":"Once upon a time","max_tokens":7}`
	for name, tc := range map[string]struct {
		code, status int
		outcome      string
		requests     int // at decode, of two
	}{
		"of the request": {400, 400, "rejected", 1},
		"busy":           {429, 429, "rejected", 2},
		"unknown":        {404, 404, "rejected", 1},
		"of the engine":  {500, 500, "failed", 2},
		"overloaded":     {503, 503, "failed", 2},
	} {
		for _, prefills := range []int{0, 2} {
			for path, body := range map[string]string{chatPath: chat("", image("AAAA")), "/v1/completions": completion} {
				t.Run(fmt.Sprintf("%s, %d prefills, %s", name, prefills, path), func(t *testing.T) {
					t.Parallel()
					e := startEngines(t, 1, prefills, 2)
					c := startCaddy(t, e.block("decode lb_policy first"))
					setFault(fault{Kind: fakevllm.ErrorFirst, Code: tc.code, Message: "too long", Spend: true}, e.decode...)
					for _, streamed := range []string{body, stream(body)} {
						e.reset()
						r := c.do(t, http.MethodPost, path, streamed)
						assert.Equal(t, tc.status, r.StatusCode)
						assert.Equal(t, "too long", r.apiError(t).str("message"))
						assert.Equal(t, tc.outcome, c.access(t, r.id()).str("epd", "outcome"))
						assert.Len(t, c.failures(r.id()), tc.requests)
						_, _, decodes := e.requests()
						assert.Equal(t, tc.requests, decodes)
					}
					if tc.requests == 2 {
						e.decode[1].SetFault(fault{})
						r := c.do(t, http.MethodPost, path, stream(body))
						assertAnswer(t, stream(body), r)
					}
				})
			}
		}
	}
}

// A stream that ends before its first content is retried. One that has sent an error event
// need not end properly, or soon.
func TestOpeningThatBreaksOff(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		first  http.HandlerFunc
		status int
		want   string
	}{
		"role, then cut":   {events(cut, roleEvent), 200, tokenEvent},
		"nothing, cut":     {events(cut, ""), 200, tokenEvent},
		"error, then cut":  {events(cut, errorEvent), 400, "too long"},
		"error, then hang": {events(hang, roleEvent, errorEvent), 400, "too long"},
		"error, then more": {events(end, errorEvent, tokenEvent), 400, "too long"},
		"503, then hang":   {events(hang, strings.Replace(errorEvent, "400", "503", 1)), 200, tokenEvent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startDecoders(t, "", tc.first, events(end, roleEvent, tokenEvent, "[DONE]"))
			for path, body := range map[string]string{chatPath: chatStream, "/v1/completions": completionStream} {
				r := c.do(t, http.MethodPost, path, body)
				assert.Equal(t, tc.status, r.StatusCode, "%s", r.body)
				assert.NoError(t, r.err)
				assert.Contains(t, string(r.body), tc.want)
			}
			c.assertNoLeaks(t)
		})
	}
}

// The first content is sent without waiting for more, and the time limits of a stream do not
// change while events are held back.
func TestOpeningHoldsNoContent(t *testing.T) {
	t.Parallel()
	for name, event := range map[string]string{
		"content":           tokenEvent,
		"text":              `{"choices":[{"index":0,"text":"role"}]}`,
		"role with content": `{"choices":[{"delta":{"role":"assistant","content":"a"}}]}`,
		"call of a tool":    `{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"f"}}]}}]}`,
		"reasoning":         `{"choices":[{"delta":{"reasoning":"a"}}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startDecoders(t, "stream_idle_timeout 1h", events(hang, roleEvent, event))
			res, err := c.send(t.Context(), c.Client, http.MethodPost, chatPath, chatStream)
			require.NoError(t, err)
			defer res.Body.Close()
			got := make([]byte, len("data: \n\n")*2+len(roleEvent)+len(event))
			_, err = io.ReadFull(res.Body, got)
			require.NoError(t, err)
			assert.Equal(t, "data: "+roleEvent+"\n\ndata: "+event+"\n\n", string(got))
		})
	}
	t.Run("silence after the role", func(t *testing.T) {
		t.Parallel()
		c := startDecoders(t, "stream_idle_timeout 200ms", events(hang, roleEvent))
		r := c.post(t, chatStream)
		assert.Equal(t, http.StatusGatewayTimeout, r.StatusCode)
		assert.Equal(t, "nothing came for 200ms (stream_idle_timeout)", c.failure(t, r.id()).str("error"))
	})
	t.Run("comments for ever", func(t *testing.T) {
		t.Parallel()
		c := startDecoders(t, "stream_start_timeout 500ms", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for tick := time.NewTicker(10 * time.Millisecond); ; {
				select {
				case <-r.Context().Done():
					return
				case <-tick.C:
				}
				_, _ = io.WriteString(w, ": keep-alive\n\n")
				_ = http.NewResponseController(w).Flush()
			}
		})
		r := c.post(t, chatStream)
		assert.Equal(t, http.StatusGatewayTimeout, r.StatusCode)
		assert.Equal(t, "nothing came for 500ms (stream_start_timeout)", c.failure(t, r.id()).str("error"))
	})
}

// Streams are requested uncompressed, because their events could not be read otherwise. A
// compressed stream is an invalid answer.
func TestCompressedStreams(t *testing.T) {
	t.Parallel()
	var asked atomic.Pointer[[]string]
	compressed := func(w http.ResponseWriter, r *http.Request) {
		got := r.Header["Accept-Encoding"]
		asked.Store(&got)
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "text/event-stream")
		if body, _ := io.ReadAll(r.Body); !strings.Contains(string(body), `"stream":true`) {
			w.Header().Set("Content-Type", "application/json")
		}
		z := gzip.NewWriter(w)
		_, _ = io.WriteString(z, "data: "+errorEvent+"\n\n")
		_ = z.Close()
		_ = http.NewResponseController(w).Flush()
		if w.Header().Get("Content-Type") != "application/json" {
			hang(r)
		}
	}
	identity := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Encoding", "identity")
		events(end, roleEvent, tokenEvent, "[DONE]")(w, r)
	}

	c := startDecoders(t, "", compressed, compressed)
	r := c.post(t, chatStream, "Accept-Encoding: gzip, br")
	assert.Equal(t, []string{"identity"}, *asked.Load())
	assert.Equal(t, http.StatusBadGateway, r.StatusCode)
	assert.Equal(t, "decode_failed", r.apiError(t)["code"])
	assert.Contains(t, c.failure(t, r.id()).str("error"), "the stream is compressed")
	c.access(t, r.id())
	assert.Len(t, c.failures(r.id()), 2)

	r = c.post(t, strings.Replace(chatStream, "true", "false", 1), "Accept-Encoding: gzip, br")
	assert.Equal(t, []string{"gzip, br"}, *asked.Load())
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Equal(t, "gzip", r.Header.Get("Content-Encoding"), "other answers may be compressed")

	c = startDecoders(t, "", compressed, identity)
	r = c.post(t, chatStream, "Accept-Encoding: gzip")
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Contains(t, string(r.body), tokenEvent)

	c = startDecoders(t, "stream_keepalive 10ms", compressed)
	r = c.post(t, chatStream, "Accept-Encoding: gzip")
	assert.Contains(t, string(r.body), "the decode stage gave no valid answer")
}

// If an answer that is not a stream breaks off before its first byte, another instance
// is tried; if there is none, the client gets an error.
func TestAnswerThatBreaksOffBeforeItsFirstByte(t *testing.T) {
	t.Parallel()
	const whole = `{"model":"m","messages":[]}`
	header := func(status, length int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if length > 0 {
				w.Header().Set("Content-Length", fmt.Sprint(length))
			}
			w.WriteHeader(status)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}
	good := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{}`) }
	for _, status := range []int{200, 400, 500} {
		for _, length := range []int{0, 50} {
			c := startDecoders(t, "", header(status, length), good)
			r := c.post(t, whole)
			assert.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
			assert.Equal(t, `{}`, string(r.body))

			c = startDecoders(t, "", header(status, length))
			r = c.post(t, whole)
			assert.Equal(t, http.StatusBadGateway, r.StatusCode)
			assert.Equal(t, "decode_failed", r.apiError(t).str("code"))
		}
	}
	empty := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }
	assert.Equal(t, http.StatusNoContent, startDecoders(t, "", empty).post(t, whole).StatusCode)
}

// If a stream ends without its last event, it may have been cut.
func TestStreamWithoutFraming(t *testing.T) {
	t.Parallel()
	unframed := func(events ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"+strings.Join(events, ""))
		}
	}
	const token = "data: " + tokenEvent + "\n\n"
	c := startDecoders(t, "", unframed(token, "data: [DONE]\n\n"))
	r := c.post(t, chatStream)
	assert.Equal(t, token+"data: [DONE]\n\n", string(r.body))

	c = startDecoders(t, "", unframed(token, token[:len(token)/2]))
	res, err := c.send(t.Context(), c.client(t, true), http.MethodPost, chatPath, chatStream)
	require.NoError(t, err)
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	assert.Error(t, err)
	assert.Contains(t, string(got), `data: {"error"`)
}
