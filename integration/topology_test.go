package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// typical are requests of all kinds, with their numbers of media items.
var typical = map[string]struct {
	path, body string
	items      int
}{
	"text":         {chatPath, `{"model":"fake","messages":[{"role":"user","content":"What is EPD?"}]}`, 0},
	"completion":   {"/v1/completions", `{"model":"fake","prompt":"Once upon a time","max_tokens":7}`, 0},
	"one image":    {chatPath, chat("", text("What is this?"), image("AAAA")), 1},
	"short form":   {chatPath, chat("", `{"image_url":"https://example.com/x.png"}`), 1},
	"input image":  {chatPath, chat("", `{"type":"input_image","image_url":"data:image/png;base64,AAAA","detail":"auto"}`), 1},
	"every kind":   {chatPath, chat("", image("AAAA"), `{"type":"audio_url","audio_url":{"url":"data:audio/wav;base64,BBBB"}}`, `{"type":"input_audio","input_audio":{"data":"CCCC","format":"wav"}}`, `{"type":"video_url","video_url":{"url":"file:///media/x.mp4"}}`, text("Compare.")), 4},
	"five images":  {chatPath, chat("", image("AAAA"), text("a"), image("BBBB"), image("CCCC"), text("b"), image("DDDD"), image("AAAA")), 5},
	"no type":      {chatPath, chat("", `{"image_url":{"url":"https://example.com/x.png"},"video_url":null}`, `{"input_audio":{"data":"CCCC"}}`), 2},
	"no types":     {chatPath, chat("", `{"input_audio":{"data":"CCCC","format":"flac"}}`, `{"cache_control":{},"image_url":{"url":"https://example.com/x.png"}}`, text("x")), 2},
	"options":      {chatPath, chat(`,"mm_processor_kwargs":{"num_crops": 4},"media_io_kwargs":{"video":{"num_frames":8}},"priority":2,"session_id":"s"`, image("AAAA")), 1},
	"many turns":   {chatPath, `{"model":"fake","messages":[{"role":"system","content":"Be brief."},{"role":"user","content":[` + image("AAAA") + `]},{"role":"assistant","content":"A cat."},{"role":"user","content":[` + text("And this?") + `,` + image("BBBB") + `]}]}`, 2},
	"max tokens":   {chatPath, chat(`,"max_tokens":100,"max_completion_tokens":50,"min_tokens":10`, image("AAAA")), 1},
	"tool, auto":   {chatPath, chat(`,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto"`, image("AAAA")), 1},
	"tool, forced": {chatPath, chat(`,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":{"type":"function","function":{"name":"f"}}`, image("AAAA")), 1},
	"tool, needed": {chatPath, chat(`,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"`, text("x")), 0},
	"json schema":  {chatPath, chat(`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}}`, image("AAAA")), 1},
	"multibyte":    {chatPath, chat(`,"user":"Jürgen 🙂"`, text("größe 你好 👋🏽 \u2028"), image("AAAA")), 1},
}

// stream returns the request with "stream": true.
func stream(body string) string {
	return body[:len(body)-1] + `,"stream":true,"stream_options":{"include_usage":true}}`
}

func TestTopologies(t *testing.T) {
	t.Parallel()
	for _, n := range [][3]int{{1, 0, 1}, {1, 1, 1}, {2, 0, 2}, {2, 2, 2}} {
		name := fmt.Sprintf("%de%dp%dd", n[0], n[1], n[2])
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, n[0], n[1], n[2])
			c := startCaddy(t, e.block())
			for _, http2 := range []bool{false, true} {
				client := c.client(t, http2)
				for kind, request := range typical {
					for _, streamed := range []bool{false, true} {
						t.Run(fmt.Sprintf("%s, http2 %v, stream %v", kind, http2, streamed), func(t *testing.T) {
							e.reset()
							body := request.body
							if streamed {
								body = stream(body)
							}
							r := c.doWith(t, client, http.MethodPost, request.path, body, "X-Request-Id: my.request_7")
							assertAnswer(t, body, r)
							assert.Equal(t, "my.request_7", r.id())
							assert.Equal(t, map[bool]int{true: 2, false: 1}[http2], r.ProtoMajor)
							e.assertRequests(t, request.items, min(n[1], 1), 1)
							e.assertContract(t)
						})
					}
				}
			}
			assert.Empty(t, c.failures("my.request_7"))
		})
	}
}

func TestHTTP3(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots, ServerName: "localhost"}}
	t.Cleanup(func() { _ = tr.Close() })
	for _, body := range []string{typical["every kind"].body, stream(typical["every kind"].body)} {
		r := c.doWith(t, &http.Client{Transport: tr}, http.MethodPost, chatPath, body)
		assert.Equal(t, 3, r.ProtoMajor)
		assertAnswer(t, body, r)
	}
	e.assertContract(t)
}

// When a stream breaks off, the client always gets the event with the reason, over HTTP/3 too:
// a reset of the stream would drop the event there. Other answers that break off are errors.
func TestErrorEventsOverHTTP3(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) {
		if o.Role == fakevllm.Encode {
			o.Delay = 50 * time.Millisecond
		}
	})
	c := startCaddy(t, e.block("stream_keepalive 10ms"))
	tr := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots, ServerName: "localhost"}}
	t.Cleanup(func() { _ = tr.Close() })
	client := &http.Client{Transport: tr}
	for name, tc := range map[string]struct {
		body  string
		fault fault
		event string
	}{
		"after some tokens":   {stream(chat("", text("x"))), fault{Kind: fakevllm.CutMiddle}, "the decode stage gave no valid answer"},
		"after some comments": {stream(chat("", image("AAAA"))), fault{Kind: fakevllm.Status, Code: 422, Message: "too long"}, "too long"},
	} {
		setFault(tc.fault, e.decode...)
		for range 40 {
			r := c.doWith(t, client, http.MethodPost, chatPath, tc.body)
			require.Equal(t, 3, r.ProtoMajor)
			require.Equal(t, http.StatusOK, r.StatusCode)
			require.NoError(t, r.err, name)
			require.Contains(t, string(r.body), `data: {"error":{"message":"`+tc.event, name)
			require.NotContains(t, string(r.body), "[DONE]", name)
		}
	}
	setFault(fault{Kind: fakevllm.CutMiddle}, e.decode...)
	res, err := c.send(t.Context(), client, http.MethodPost, chatPath, chat("", text("x")), "X-Request-Id: half")
	if err == nil { // otherwise not even the headers have arrived
		_, err = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
	}
	assert.Error(t, err)
	assert.Equal(t, "broke_off", c.access(t, "half").str("epd", "outcome"))
}

// In every pool, round robin continues across requests.
func TestRoundRobinGoesOnAcrossRequests(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 3, 2, 2)
	c := startCaddy(t, e.block())
	for range 6 {
		body := chat("", image("AAAA"), image("BBBB"))
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
	}
	for _, list := range [][]*fakevllm.Engine{e.encode, e.prefill, e.decode} {
		for _, engine := range list {
			want := map[int]int{3: 4, 2: 3}[len(list)]
			assert.Len(t, engine.Requests(), want, engine.Name())
		}
	}
}

// Bytes reach the client when the engine sends them. Here the engine sends no more after the
// first ones.
func TestStreamIsFlushedEventByEvent(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1, func(o *fakevllm.Options) { o.ChunkDelay = time.Hour })
	c := startCaddy(t, e.block())
	for _, http2 := range []bool{false, true} {
		res, err := c.send(t.Context(), c.client(t, http2), http.MethodPost, chatPath, stream(chat("", text("x"), image("AAAA"))))
		require.NoError(t, err)
		assert.Equal(t, "text/event-stream; charset=utf-8", res.Header.Get("Content-Type"))
		begin := make([]byte, len(`data: {"id"`)) // the engine's first write ends in the middle of an event
		_, err = io.ReadFull(res.Body, begin)
		require.NoError(t, err)
		assert.Equal(t, `data: {"id"`, string(begin))
		require.NoError(t, res.Body.Close())
	}
}
