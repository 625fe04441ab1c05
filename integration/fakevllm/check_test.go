package fakevllm

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// exchangeRaw sends bytes and reads one answer.
func exchangeRaw(t *testing.T, e *Engine, request string) reply {
	t.Helper()
	c := dial(t, e)
	_, err := io.WriteString(c, request)
	require.NoError(t, err)
	return readReply(t, c)
}

func readReply(t *testing.T, c io.Reader) reply {
	t.Helper()
	reader := bufio.NewReader(c)
	response, err := http.ReadResponse(reader, nil)
	require.NoError(t, err)
	if response.StatusCode == http.StatusContinue {
		response, err = http.ReadResponse(reader, nil)
		require.NoError(t, err)
	}
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	return reply{status: response.StatusCode, header: response.Header, body: string(body)}
}

func TestFraming(t *testing.T) {
	tests := []struct {
		name    string
		headers []string
		body    string
		message string
	}{
		{"right", rawHeaders(len(textChat)), textChat, ""},
		{
			"charset",
			[]string{"Content-Type: application/json; charset=utf-8", "X-Request-Id: r", fmt.Sprintf("Content-Length: %d", len(textChat))},
			textChat, "",
		},
		{
			"chunked",
			[]string{"Content-Type: application/json", "X-Request-Id: r", "Transfer-Encoding: chunked"},
			fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(textChat), textChat), "the body must have a content-length",
		},
		{"no length", []string{"Content-Type: application/json", "X-Request-Id: r"}, "", "content-length is"},
		{"length too short", rawHeaders(len(textChat) - 1), textChat[:len(textChat)-1], "not JSON"},
		{"no content type", rawHeaders(len(textChat))[1:], textChat, "content-type"},
		{"other content type", append([]string{"Content-Type: text/plain"}, rawHeaders(len(textChat))[1:]...), textChat, "content-type"},
		{"two content types", append(rawHeaders(len(textChat)), "Content-Type: application/json"), textChat, "content-type"},
		{"two ids", append(rawHeaders(len(textChat)), "X-Request-Id: s"), textChat, "x-request-id: want one value"},
		{"empty id", append(rawHeaders(len(textChat))[:1], rawHeaders(len(textChat))[2], "X-Request-Id:"), textChat, "x-request-id: want one value"},
		{"no id", append(rawHeaders(len(textChat))[:1], rawHeaders(len(textChat))[2]), textChat, "x-request-id: want one value"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, Options{Role: Decode})
			a := exchangeRaw(t, e, raw(chat, test.headers, test.body))
			if test.message == "" {
				accepted(t, e, a)
				return
			}
			refused(t, e, a, http.StatusBadRequest, test.message)
		})
	}
}

// The client has died or miscounted: the body is shorter than its Content-Length.
func TestTruncatedBodyIsACancellation(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	c := dial(t, e)
	_, err := io.WriteString(c, raw(chat, rawHeaders(len(textChat)+1), textChat))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	a := readReply(t, c)
	assert.Equal(t, http.StatusBadRequest, a.status)
	assert.Contains(t, a.body, fmt.Sprintf("content-length is %d, the body ended after %d bytes", len(textChat)+1, len(textChat)))
	require.Len(t, e.Cancellations(), 1)
	assert.Equal(t, "before", e.Cancellations()[0].Stage)
	assert.Zero(t, e.InFlight())
}

func TestForbiddenHeaders(t *testing.T) {
	for _, header := range []string{
		"X-Data-Parallel-Rank: 0", "X-Prefiller-Host-Port: a:1", "X-Encoder-Hosts-Ports: a:1", "Epp-Profile: x",
		"Expect: 100-continue", "Content-Encoding: gzip", "Range: bytes=0-1", "TE: trailers", "Trailer: X", "Upgrade: websocket",
	} {
		t.Run(header, func(t *testing.T) {
			e := startAlone(t, Options{Role: Decode})
			a := exchangeRaw(t, e, raw(chat, append(rawHeaders(len(textChat)), header), textChat))
			refused(t, e, a, http.StatusBadRequest, "must not reach an engine")
		})
	}
	t.Run("others pass", func(t *testing.T) {
		e := startAlone(t, Options{Role: Decode})
		accepted(t, e, exchangeRaw(t, e, raw(chat, append(rawHeaders(len(textChat)), "X-Other: 1", "Accept: */*"), textChat)))
	})
}

func TestBodies(t *testing.T) {
	tests := []struct{ name, path, body, message string }{
		{"chat", chat, textChat, ""},
		{"completion", completions, textPrompt, ""},
		{"several prompts", completions, `{"prompt":["a","b"]}`, ""},
		{"token ids", completions, `{"prompt":[1,2]}`, ""},
		{"unknown members", chat, with(textChat, "x", `{"a":1,"a":2}`), ""},
		{"spacing", chat, " \n" + textChat + "\n ", ""},
		{"assistant without content", chat, `{"messages":[{"role":"assistant","tool_calls":[]},{"role":"assistant","content":null}]}`, ""},
		{"all sorts of text", chat, `{"messages":[{"role":"user","content":["a",{"type":"text","text":"b"},{"type":"input_text","text":"c"},{"type":"refusal","refusal":"d"}]}]}`, ""},
		{"empty", chat, ``, "not JSON"},
		{"not an object", chat, `[]`, "not a JSON object"},
		{"trailing bytes", chat, textChat + "x", "after top-level value"},
		{"two objects", chat, textChat + textChat, "after top-level value"},
		{"trailing comma", chat, `{"prompt":"a",}`, "not JSON"},
		{"missing comma", chat, `{"prompt":"a" "user":"b"}`, "not JSON"},
		{"missing colon", chat, `{"prompt" "a"}`, "not JSON"},
		{"bare value", chat, `{"prompt":a}`, "not JSON"},
		{"cut", chat, `{"prompt":"a"`, "not JSON"},
		{"duplicate member", chat, with(textChat, "messages", `[]`), `duplicate member "messages"`},
		{"escaped duplicate", chat, with(textChat, `m\u0065ssages`, `[]`), `duplicate member "messages"`},
		{"duplicate in a part", chat, `{"messages":[{"role":"user","content":[{"type":"text","text":"a","text":"b"}]}]}`, `messages[0]: content[0]: duplicate member "text"`},
		{"not UTF-8", chat, `{"prompt":"` + "\xff" + `"}`, "not UTF-8"},
		{"no messages", chat, `{}`, "messages is missing"},
		{"prompt for chat", chat, textPrompt, "messages is missing"},
		{"messages for completion", completions, textChat, "prompt is missing"},
		{"messages not a list", chat, `{"messages":{}}`, "messages: not a list"},
		{"message not an object", chat, `{"messages":[1]}`, "messages[0]: not a JSON object"},
		{"no role", chat, `{"messages":[{"content":"a"}]}`, "messages[0]: role must be a non-empty string"},
		{"other case", chat, `{"messages":[{"Role":"user","content":"a"}]}`, "messages[0]: role must be a non-empty string"},
		{"content not a list", chat, `{"messages":[{"role":"user","content":1}]}`, "content must be a string or a list"},
		{"text not a string", chat, `{"messages":[{"role":"user","content":[{"type":"text","text":1}]}]}`, "text must be a string"},
		{"part not an object", chat, `{"messages":[{"role":"user","content":[1]}]}`, "content[0]: not a JSON object"},
		{"part of unknown type", chat, `{"messages":[{"role":"user","content":[{"type":"hologram"}]}]}`, "unknown part type: hologram"},
		{"part without a type", chat, `{"messages":[{"role":"user","content":[{}]}]}`, "content part without a type"},
		{"type not a string", chat, `{"messages":[{"role":"user","content":[{"type":1}]}]}`, "invalid 'type' field"},
		{"media without URL", chat, `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}`, "image_url: url must be a string"},
		{"media without value", chat, `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, "image_url: not a JSON object"},
		{"audio without data", chat, `{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"format":"wav"}}]}]}`, "multi_modal_data['audio'] is empty"},
		{"audio in short form", chat, `{"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":"AA"}]}]}`, "input_audio: not a JSON object"},
		{"prompt of another type", completions, `{"prompt":1}`, "prompt: must be a string or a list"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, Options{Role: Decode})
			a := post(t, e, test.path, "r", test.body)
			if test.message == "" {
				accepted(t, e, a)
				assert.Equal(t, answerTo(t, test.body), textOf(t, a, false))
				return
			}
			refused(t, e, a, http.StatusBadRequest, test.message)
		})
	}
}
