package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// When a client leaves, everything that runs for it ends within a second.
func TestClientGoesAway(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		role   fakevllm.Role
		slow   func(*fakevllm.Options)
		stage  string
		status float64
	}{
		"in encode":                {fakevllm.Encode, func(o *fakevllm.Options) { o.Delay = time.Hour }, "before", 499},
		"in prefill":               {fakevllm.Prefill, func(o *fakevllm.Options) { o.Delay = time.Hour }, "before", 499},
		"in decode, before a byte": {fakevllm.Decode, func(o *fakevllm.Options) { o.Delay = time.Hour }, "before", 499},
		"in decode, in the stream": {fakevllm.Decode, func(o *fakevllm.Options) { o.ChunkDelay = time.Hour }, "during", 200},
	} {
		for _, all := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, all options %v", name, all), func(t *testing.T) {
				t.Parallel()
				slow := func(o *fakevllm.Options) {
					if o.Role == tc.role {
						tc.slow(o)
					}
				}
				var (
					e       *engines
					options []string
				)
				if all {
					e, options = everything(t, 2, 1, 1, slow)
				} else {
					e = startEngines(t, 2, 1, 1, slow)
				}
				c := startCaddy(t, e.block(options...))
				for _, http2 := range []bool{false, true} {
					e.reset()
					ctx, cancel := context.WithCancel(t.Context())
					id := map[bool]string{true: "http2", false: "http1"}[http2]
					done, first := make(chan struct{}), make(chan struct{})
					go func() {
						defer close(done)
						res, err := c.send(ctx, c.client(t, http2), http.MethodPost, chatPath, stream(chat("", image("AAAA"), image("BBBB"))), "X-Request-Id: "+id)
						if err == nil {
							_, err = res.Body.Read(make([]byte, 1<<10))
							close(first)
							for err == nil {
								_, err = res.Body.Read(make([]byte, 1<<10))
							}
							_ = res.Body.Close()
						}
					}()
					at := map[fakevllm.Role]int{fakevllm.Encode: 2, fakevllm.Prefill: 1, fakevllm.Decode: 1}[tc.role]
					arrived := func() bool {
						encode, prefill, decode := e.requests()
						return map[fakevllm.Role]int{fakevllm.Encode: encode, fakevllm.Prefill: prefill, fakevllm.Decode: decode}[tc.role] == at
					}
					require.Eventually(t, arrived, 10*time.Second, time.Millisecond)
					if tc.stage == "during" {
						<-first
					}
					cancel()
					left := time.Now()
					require.Eventually(t, func() bool { return busy(e.all()...) == 0 }, 10*time.Second, time.Millisecond)
					<-done
					cancellations := 0
					for _, engine := range e.all() {
						for _, gone := range engine.Cancellations() {
							cancellations++
							assert.Equal(t, tc.stage, gone.Stage)
							assert.Less(t, gone.At.Sub(left), time.Second)
						}
					}
					assert.Equal(t, at, cancellations)
					access := c.access(t, id)
					assert.Equal(t, tc.status, access.at("status"))
					assert.Equal(t, "client_closed", access.str("epd", "outcome"))
					assert.Positive(t, access.at("epd", "duration"))
					assert.Empty(t, c.lines(), "logged as a failure")
				}
				assert.Equal(t, "healthy", object(t, c.do(t, http.MethodGet, "/health", "").body)["encode_cluster"])
				c.assertNoLeaks(t)
			})
		}
	}
}

// A client that closes the connection after the last event has been answered: the OpenAI SDK for
// Python does so, possibly before the end of the engine's answer.
func TestClientHangsUpAtTheEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ stream, outcome string }{
		"after the last event": {"data: {}\n\ndata: [DONE]\n\n", "ok"},
		"the same, with CRLF":  {"data: {}\r\n\r\ndata: [DONE]\r\n\r\n", "ok"},
		"before its end":       {"data: {}\n\ndata: [DONE]\n", "client_closed"},
		"after another event":  {"data: {}\n\n", "client_closed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			decode := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != chatPath {
					return // healthy
				}
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, tc.stream)
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
			}))
			t.Cleanup(decode.Close)
			e := startEngines(t, 1, 0, 0)
			c := startCaddy(t, strings.Replace(e.block(), "decode disable", "decode "+decode.Listener.Addr().String(), 1))
			for _, http2 := range []bool{false, true} {
				ctx, hangUp := context.WithCancel(t.Context())
				res, err := c.send(ctx, c.client(t, http2), http.MethodPost, chatPath, stream(chat("", text("x"))))
				require.NoError(t, err)
				_, err = io.ReadFull(res.Body, make([]byte, len(tc.stream)))
				require.NoError(t, err)
				hangUp()
				_ = res.Body.Close()
				access := c.access(t, res.Header.Get("X-Request-Id"))
				assert.Equal(t, tc.outcome, access.str("epd", "outcome"))
				assert.Empty(t, c.lines(), "logged as a failure")
			}
		})
	}
}
