package fakevllm

import (
	"bufio"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// longText has characters of all lengths.
var longText = strings.Repeat("a ß 你 👋🏽 ", 100)

func TestAnswer(t *testing.T) {
	body := `{
		"messages": [
			{"role":"system","content":"one"},
			{"role":"user","content":[
				{"type":"video_url","video_url":{"url":"https://a/v.mp4"}},
				{"type":"text","text":"two"},
				{"type":"input_audio","input_audio":{"data":"AA","format":"wav"}},
				{"type":"audio_embeds","audio_embeds":"AA"}
			]}
		],
		"tools": [{},{}],
		"user": "züli",
		"kv_transfer_params": {"x":1}
	}`
	want := "größe 你好 👋🏽 one two" +
		" video:" + digest("video", "https://a/v.mp4", "nullnull")[:8] +
		" audio:" + digest("audio", "data:audio/wav;base64,AA", "nullnull")[:8] +
		" audio:" + digest("audio", `"AA"`, "nullnull")[:8] +
		" tools:2 user:züli"
	assert.Equal(t, want, answerTo(t, body))
	assert.Equal(t, "größe 你好 👋🏽 a\ngröße 你好 👋🏽 b", answerTo(t, `{"prompt":["a","b"],"tools":[]}`))
	assert.Equal(t, "größe 你好 👋🏽 1 2", answerTo(t, `{"prompt":[[1, 2]]}`))
	assert.Equal(t, "größe 你好 👋🏽 1 2", answerTo(t, `{"prompt":[1, 2],"n":"1"}`))
	assert.Equal(t, strings.Repeat("größe 你好 👋🏽 a\n", 2)+"größe 你好 👋🏽 a", answerTo(t, `{"prompt":["a"],"n":3.0}`))
}

func TestAnswerKeysItems(t *testing.T) {
	answer := func(part, options string) string {
		return answerTo(t, `{"messages":[{"role":"user","content":[`+part+`]}]`+options+`}`)
	}
	image := answer(`{"type":"image_url","image_url":{"url":"u"}}`, "")
	assert.Equal(t, image, answer(`{"type":"input_image","image_url":"u","detail":"low"}`, ""))
	assert.Equal(t, image, answer(`{"image_url":"u"}`, ""))
	assert.Equal(t, image, answer(`{"image_url":{"url":"u","detail":"low"},"uuid":"x"}`, ""))
	assert.NotEqual(t, image, answer(`{"image_url":"v"}`, ""))
	assert.NotEqual(t, image, answer(`{"image_url":"u"}`, `,"media_io_kwargs":{"image":{}}`))
	assert.NotEqual(t,
		answer(`{"input_audio":{"data":"u","format":"wav"}}`, ""),
		answer(`{"input_audio":{"data":"u","format":"mp3"}}`, ""))
	assert.Equal(t, // the same as vLLM's output
		answer(`{"input_audio":{"data":"u","format":"wav"}}`, ""),
		answer(`{"audio_url":"data:audio/wav;base64,u"}`, ""))
}

func TestAnswerToNonsense(t *testing.T) {
	for _, body := range []string{`[]`, `{`, `{}`, `{"messages":[{}]}`} {
		_, err := Answer([]byte(body))
		assert.ErrorContains(t, err, "answer to a body: ")
	}
}

func TestRoundTrip(t *testing.T) {
	tests := []struct{ name, path, body string }{
		{"chat", chat, textChat},
		{"completion", completions, textPrompt},
		{"long", completions, `{"prompt":"` + longText + `"}`},
		{"markup and separators", chat, `{"messages":[{"role":"user","content":"<a&b> \u2028 \n\n data: [DONE] \" \\ \u0000"}]}`},
		{"options", chat, with(with(textChat, "user", `"u"`), "tools", oneTool)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, Options{Role: Decode})
			whole := post(t, e, test.path, "r", test.body)
			assert.Equal(t, answerTo(t, test.body), textOf(t, whole, false))
			assert.Contains(t, whole.body, "größe 你好 👋🏽", "raw UTF-8")
			assert.Contains(t, whole.body, `"usage":{`)

			stream := post(t, e, test.path, "r", with(test.body, "stream", "true"))
			assert.Equal(t, answerTo(t, test.body), textOf(t, stream, true))
			assert.Equal(t, "text/event-stream; charset=utf-8", stream.header.Get("Content-Type"))
			assert.Empty(t, stream.header.Get("Content-Length"))
			assert.Contains(t, stream.body, "你", "raw UTF-8")
			assert.Contains(t, stream.body, `"finish_reason":"stop"`)
			assert.NotContains(t, stream.body, `"usage"`)
			assert.NotContains(t, stream.body, `"kv_transfer_params"`)
		})
	}
}

func TestStreamUsage(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	a := post(t, e, chat, "r", with(with(textChat, "stream", "true"), "stream_options", `{"include_usage":true}`))
	assert.Equal(t, answerTo(t, textChat), textOf(t, a, true))
	events := strings.Split(a.body, "\n\n")
	assert.Contains(t, events[len(events)-3], `"choices":[],"usage":{`)
}

func TestTextRefuses(t *testing.T) {
	chunk := `data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\n"
	tests := []struct {
		name, response string
		stream         bool
		message        string
	}{
		{"error", `{"error":{"message":"x"}}`, false, "want one choice"},
		{"no JSON", `<html>`, false, "invalid character"},
		{"no text", `{"choices":[{"message":{}}]}`, false, "choice without text"},
		{"no end", chunk, true, "no [DONE]"},
		{"bytes after the end", chunk + "data: [DONE]\n\n\n", true, "no [DONE]"},
		{"two ends", chunk + "data: [DONE]\n\ndata: [DONE]\n\n", true, "invalid character"},
		{"no event", "x\n\n" + "data: [DONE]\n\n", true, "not an event"},
		{"half an event", "data: {}\ndata: [DONE]\n\n", true, "not an event"},
		{"error in a stream", `data: {"error":{}}` + "\n\ndata: [DONE]\n\n", true, "want one choice"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := Text([]byte(test.response), test.stream)
			assert.ErrorContains(t, err, test.message)
		})
	}
}

// chunksOf reads a response and returns its chunks as the engine wrote them.
func chunksOf(t *testing.T, c io.Reader) []string {
	t.Helper()
	r := bufio.NewReader(c)
	for line := ""; line != "\r\n"; { // the headers
		var err error
		line, err = r.ReadString('\n')
		require.NoError(t, err)
	}
	var chunks []string
	for {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		size, err := strconv.ParseInt(strings.TrimSpace(line), 16, 32)
		require.NoError(t, err)
		chunk := make([]byte, size+2)
		_, err = io.ReadFull(r, chunk)
		require.NoError(t, err)
		if size == 0 {
			return chunks
		}
		chunks = append(chunks, string(chunk[:size]))
	}
}

func TestStreamIsCutAwkwardly(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	body := with(textChat, "stream", "true")
	c := dial(t, e)
	_, err := io.WriteString(c, raw(chat, rawHeaders(len(body)), body))
	require.NoError(t, err)
	chunks := chunksOf(t, c)

	var inCharacter, overBorder int
	for n, chunk := range chunks {
		last := n == len(chunks)-1
		assert.Equal(t, last, strings.HasSuffix(chunk, "\n\n"), "only the last ends with an event: %q", chunk)
		if r, _ := utf8.DecodeLastRuneInString(chunk); r == utf8.RuneError {
			inCharacter++
		}
		if strings.Contains(chunk, "\n\ndata: ") {
			overBorder++
		}
	}
	assert.Positive(t, inCharacter, "chunks that end within a character")
	assert.Positive(t, overBorder, "chunks with the border of two events")
	text, err := Text([]byte(strings.Join(chunks, "")), true)
	require.NoError(t, err)
	assert.Equal(t, answerTo(t, body), text)
}

func TestChunkDelay(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, ChunkDelay: time.Hour})
	response, err := client.Do(newRequest(t, e, chat, "r", with(textChat, "stream", "true")))
	require.NoError(t, err, "headers and the first piece come at once")
	defer func() { _ = response.Body.Close() }()
	assert.Equal(t, http.StatusOK, response.StatusCode)
	first := make([]byte, 6)
	_, err = io.ReadFull(response.Body, first)
	require.NoError(t, err)
	assert.Equal(t, "data: ", string(first))
}
