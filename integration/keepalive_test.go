package integration

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

const comment = ": keep-alive\n\n"

// withoutComments removes the comments at the begin of a stream.
func withoutComments(stream []byte) []byte {
	for bytes.HasPrefix(stream, []byte(comment)) {
		stream = stream[len(comment):]
	}
	return stream
}

// With stream_keep_alive, a client that waits for a stream gets comments, and then the
// stream, unchanged.
func TestStreamKeepalive(t *testing.T) {
	t.Parallel()
	for name, slow := range map[string]fakevllm.Role{"encode": fakevllm.Encode, "prefill": fakevllm.Prefill, "decode": fakevllm.Decode} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) {
				if o.Role == slow {
					o.Delay = 500 * time.Millisecond
				}
			})
			c := startCaddy(t, e.block("stream_keepalive 20ms"))
			body := stream(chat("", text("x"), image("AAAA")))
			for _, http2 := range []bool{true, false} {
				r := c.doWith(t, c.client(t, http2), http.MethodPost, chatPath, body, "Accept-Encoding: gzip", "X-Request-Id: mine")
				require.NoError(t, r.err)
				comments := bytes.Count(r.body, []byte(comment))
				assert.Greater(t, comments, 2)
				stream := bytes.TrimPrefix(r.body, bytes.Repeat([]byte(comment), comments))
				assert.NotContains(t, string(stream), comment, "a comment after decode has answered")
				assert.Equal(t, "text/event-stream", r.Header.Get("Content-Type"))
				assert.Equal(t, "no-cache", r.Header.Get("Cache-Control"))
				assert.Equal(t, []string{"mine"}, r.Header.Values("X-Request-Id"))
				r.body = stream
				assertAnswer(t, body, r)
			}
			r := c.post(t, chat(`,"stream":false`, text("x"), image("AAAA")))
			assert.NotContains(t, string(r.body), comment)
			assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
			e.assertContract(t)
		})
	}
}

// A failure after a comment is reported by an event; one before it by the status.
func TestFailureAfterKeepalive(t *testing.T) {
	t.Parallel()
	body := stream(chat("", text("x"), image("AAAA")))
	prefill := func(e *engines) []*fakevllm.Engine { return e.prefill }
	decode := func(e *engines) []*fakevllm.Engine { return e.decode }
	for name, tc := range map[string]struct {
		list    func(*engines) []*fakevllm.Engine
		fault   fault
		want    string
		outcome string
	}{
		"prefill":             {prefill, fault{Kind: fakevllm.Status, Code: 422, Message: "too long"}, `{"error":{"message":"too long",`, "rejected"},
		"decode":              {decode, fault{Kind: fakevllm.Status, Code: 500, Message: "oom"}, `{"error":{"message":"oom",`, "failed"},
		"decode, all of them": {decode, fault{Kind: fakevllm.Status, Code: 503, Message: "busy"}, `{"error":{"message":"busy",`, "failed"},
		"decode, first event": {decode, fault{Kind: fakevllm.ErrorFirst, Code: 400, Message: "too long"}, `{"error":{"message":"too long",`, "rejected"},
		"decode, no stream":   {decode, fault{Kind: fakevllm.Garbage}, `{"error":{"message":"the decode stage gave no valid answer",`, "failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 2, func(o *fakevllm.Options) {
				if o.Role == fakevllm.Encode {
					o.Delay = 300 * time.Millisecond
				}
			})
			c := startCaddy(t, e.block("stream_keepalive 20ms"))
			setFault(tc.fault, tc.list(e)...)
			r := c.post(t, body)
			assert.Equal(t, http.StatusOK, r.StatusCode)
			assert.Error(t, r.err, "the stream must not look complete")
			assert.Contains(t, string(r.body), comment+"data: "+tc.want)
			assert.True(t, bytes.HasSuffix(r.body, []byte("}}\n\n")), "%s", r.body)
			assert.Equal(t, tc.outcome, c.access(t, r.id()).str("epd", "outcome"))

			setFault(fault{Kind: fakevllm.Status, Code: 400, Message: "the image is bad"}, e.encode...)
			c.reload(t, e.block("stream_keepalive 1h"))
			r = c.post(t, body)
			assert.Equal(t, http.StatusBadRequest, r.StatusCode)
			assert.Equal(t, "the image is bad", r.apiError(t).str("message"))
		})
	}
}
