package body

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func chat(parts ...string) string {
	return `{"messages":[{"role":"user","content":[` + strings.Join(parts, ",") + `]}]}`
}

func TestItems(t *testing.T) {
	for _, part := range []string{
		`{"type":"image_url","image_url":{"url":"https://x/y.png","detail":"low"}}`,
		`{"type":"image_url","image_url":"data:image/png;base64,AAAA"}`,
		`{"image_url":"https://x/y.png"}`,
		`{"image_url":{"url":"file:///x.png"}}`,
		`{"image_url":{"url":"https://x/y.png"},"type":"image_url"}`,
		`{"type":null,"image_url":"https://x/y.png"}`,
		`{"type":"audio_url","audio_url":{"url":"https://x/y.wav"}}`,
		`{"audio_url":"https://x/y.wav"}`,
		`{"type":"input_image","image_url":"https://x/y.png"}`,
		`{"type":"video_url","video_url":{"url":"https://x/y.mp4"}}`,
		`{"video_url":"https://x/y.mp4"}`,
		`{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}`,
		`{"input_audio":{"format":"wav","data":"AAAA"}}`,
		`{"\u0074ype":"\u0069mage_url","\u0069mage_url":{"\u0075rl":"https://x"}}`,
		` { "type" : "image_url" , "image_url" : { "url" : "" } } `,
	} {
		t.Run(part, func(t *testing.T) {
			b, err := ParseChat([]byte(chat(`{"type":"text","text":"hi"}`, part, `"plain"`)), 1, false)
			require.NoError(t, err)
			require.Len(t, b.Items, 1)
			assert.Equal(t, strings.TrimSpace(part), string(b.Slice(b.Items[0].Range)))
			assert.Equal(t, "messages[0].content[1]", b.Items[0].Path())
		})
	}
}

func TestNoItems(t *testing.T) {
	for _, part := range []string{
		`{"type":"text","text":"image_url"}`,
		`{"type":"text","text":"x","image_url":"https://x"}`,
		`{"type":"image_embeds","image_embeds":{"a":"AAAA"},"uuid":"u"}`,
		`{"image_embeds":"AAAA"}`,
		`{"type":"audio_embeds","audio_embeds":"AAAA"}`,
		`{"type":"video_embeds","video_embeds":"AAAA"}`,
		`{"type":5,"image_url":"x"}`,
		`{"image_url":null}`,
		`{"IMAGE_URL":"x"}`,
		`"https://x/y.png"`,
		`{}`, `null`, `[{"type":"image_url","image_url":"x"}]`,
	} {
		t.Run(part, func(t *testing.T) {
			b, err := ParseChat([]byte(chat(part)), 0, false)
			require.NoError(t, err)
			assert.Empty(t, b.Items)
		})
	}
}

func TestItemsOfAllMessagesInOrder(t *testing.T) {
	b, err := ParseChat([]byte(`{"model":"m","messages":[
		{"role":"system","content":"text"},
		{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":"1"},{"image_url":"2"}]},
		{"content":[{"type":"video_url","video_url":"3"}],"role":"tool"},
		"odd", {"role":"assistant","content":null}]}`), 3, false)
	require.NoError(t, err)
	var paths []string
	for _, i := range b.Items {
		paths = append(paths, i.Path())
	}
	assert.Equal(t, []string{"messages[1].content[1]", "messages[1].content[2]", "messages[2].content[0]"}, paths)
}

func TestParseChatRefuses(t *testing.T) {
	item, text := `{"type":"image_url","image_url":"x"}`, `{"type":"text","text":""}`
	for name, tc := range map[string]struct{ in, want, param string }{
		"no messages":               {`{"model":"m"}`, "'messages' is missing", "messages"},
		"messages null":             {`{"messages":null}`, "'messages' must be a list", "messages"},
		"messages an object":        {`{"messages":{}}`, "'messages' must be a list", "messages"},
		"value missing":             {chat(`{"type":"text","text":""}`, `{"type":"image_url"}`), "image_url in part 1 of message 0 has no known form", "messages[0].content[1].image_url"},
		"value null":                {chat(`{"type":"image_url","image_url":null}`), "no known form", "messages[0].content[0].image_url"},
		"only a uuid":               {chat(`{"type":"image_url","image_url":null,"uuid":"u"}`), "part 0 of message 0 is nothing but a uuid", "messages[0].content[0]"},
		"only a uuid, embeddings":   {chat(`{"uuid":"u","type":"image_embeds","image_embeds":null}`), "nothing but a uuid", "messages[0].content[0]"},
		"only a uuid, no type":      {chat(text, `{"uu\u0069d":"u"}`), "part 1 of message 0 is nothing but a uuid", "messages[0].content[1]"},
		"value a number":            {chat(`{"type":"video_url","video_url":7}`), `video_url in part 0 of message 0 has no known form: it must be {"url": "…"} or a string`, "messages[0].content[0].video_url"},
		"value a list":              {chat(`{"audio_url":["x"]}`), "no known form", "messages[0].content[0].audio_url"},
		"no url":                    {chat(`{"type":"image_url","image_url":{"URL":"x"}}`), "no known form", "messages[0].content[0].image_url"},
		"url a number":              {chat(`{"type":"image_url","image_url":{"url":1}}`), "no known form", "messages[0].content[0].image_url"},
		"audio as a string":         {chat(`{"type":"input_audio","input_audio":"AAAA"}`), `it must be {"data": "…", "format": "…"}`, "messages[0].content[0].input_audio"},
		"audio without data":        {chat(`{"type":"input_audio","input_audio":{"url":"x"}}`), "no known form", "messages[0].content[0].input_audio"},
		"other key than type":       {chat(`{"type":"image_url","video_url":"x"}`), "image_url in part 0", "messages[0].content[0].image_url"},
		"too many uuids":            {chat(strings.Repeat(`{"text":"x","uuid":"u"},`, maxCuts) + `{"text":"x","uuid":"u"}`), "more than 10000 parts of the request have a uuid", "messages"},
		"too many items":            {chat(item, item, item), "more than 2 media items", "messages"},
		"duplicate in a message":    {`{"messages":[{"role":"user","content":[],"content":[]}]}`, "'content' at byte", ""},
		"duplicate in a part":       {chat(`{"type":"text","type":"image_url","image_url":"x"}`), "'type' at byte", ""},
		"duplicate, escaped name":   {chat(`{"image_url":"x","\u0069mage_url":"y"}`), "'image_url' at byte", ""},
		"duplicate in media object": {chat(`{"type":"image_url","image_url":{"url":"x","url":"y"}}`), "'url' at byte", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseChat([]byte(tc.in), 2, false)
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.Contains(t, e.Message, tc.want)
			assert.Equal(t, tc.param, e.Param)
		})
	}
}

func TestUUIDsAreLeftOut(t *testing.T) {
	for in, want := range map[string]string{
		`{"type":"image_url","image_url":"x"}`:                                  `{"type":"image_url","image_url":"x"}`,
		`{"type":"image_url","image_url":"x","uuid":"u"}`:                       `{"type":"image_url","image_url":"x"}`,
		`{"uuid":"u","type":"image_url","image_url":"x"}`:                       `{"type":"image_url","image_url":"x"}`,
		`{"type":"image_url" , "uuid" : "u" , "image_url":"x"}`:                 `{"type":"image_url" , "image_url":"x"}`,
		`{"type":"image_url","image_url":{"url":"x","uuid":"i"},"uu\u0069d":1}`: `{"type":"image_url","image_url":{"url":"x","uuid":"i"}}`,
		`{"type":"text","text":"x","uuid":null}`:                                `{"type":"text","text":"x"}`,
		`{"type":"text","text":"\"uuid\":\"u\""}`:                               `{"type":"text","text":"\"uuid\":\"u\""}`,
	} {
		t.Run(in, func(t *testing.T) {
			all := []byte(chat(in, `{"type":"text","text":"between"}`, in))
			b, err := ParseChat(all, 2, false)
			require.NoError(t, err)
			assert.Equal(t, chat(want, `{"type":"text","text":"between"}`, want), string(b.Rewrite().Bytes()))
			for _, item := range b.Items {
				assert.Equal(t, want, string(Join(b.AppendPieces(nil, item.Range)...).Bytes()))
			}

			b, err = ParseChat(all, 2, true)
			require.NoError(t, err)
			assert.Equal(t, string(all), string(b.Rewrite().Bytes()))
		})
	}
}

// A trusted client may name what the engines know.
func TestTrustedUUIDs(t *testing.T) {
	for _, part := range []string{`{"type":"image_embeds","image_embeds":null,"uuid":"u"}`, `{"type":"image_url","image_url":null,"uuid":"u"}`, `{"uuid":"u","type":"video_url"}`} {
		b, err := ParseChat([]byte(chat(part)), 0, true)
		require.NoError(t, err)
		assert.Empty(t, b.Items, "there is nothing to encode")
	}
}

// vLLM goes by the key, whatever the type, where there is a uuid.
func TestUUIDMakesAnItem(t *testing.T) {
	const part = `{"type":"text","text":"x","uuid":"u","image_url":"https://x"}`
	for trusted, items := range map[bool]int{true: 1, false: 0} {
		b, err := ParseChat([]byte(chat(part)), 1, trusted)
		require.NoError(t, err)
		assert.Len(t, b.Items, items)
	}
}

func TestURL(t *testing.T) {
	b, err := ParseChat([]byte(chat(
		`{"type":"image_url","image_url":{"detail":"low","\u0075rl":"https:\/\/x.example\u002fy"}}`,
		`{"video_url":"data:video/mp4;base64,AAAA"}`,
		`{"type":"input_audio","input_audio":{"format":"wav","data":"AAAA"}}`,
	)), 3, false)
	require.NoError(t, err)
	url, whole := b.URL(b.Items[0], 100)
	assert.Equal(t, "https://x.example/y", url)
	assert.True(t, whole)
	url, whole = b.URL(b.Items[1], 10)
	assert.Equal(t, "data:video", url)
	assert.False(t, whole)
	assert.Equal(t, []bool{false, false, true}, []bool{b.Items[0].Inline, b.Items[1].Inline, b.Items[2].Inline})
}

// A URL can be cut at any place but in an escape.
func TestURLIsCut(t *testing.T) {
	const raw, want = `ab\\\\\"\u0041\/ä\\u0041\n`, "ab\\\\\"A/ä\\u0041\n"
	b, err := ParseChat([]byte(chat(`{"image_url":"`+raw+`"}`)), 1, false)
	require.NoError(t, err)
	for max := range len(raw) + 2 {
		url, whole := b.URL(b.Items[0], max)
		assert.True(t, strings.HasPrefix(want, url), "%d: %q", max, url)
		assert.Equal(t, max >= len(raw), whole, max)
		assert.Equal(t, whole, url == want, max)
	}
}

// Equal media have equal contents, however they are written, and different ones do not.
func TestWriteContent(t *testing.T) {
	long := strings.Repeat("0123456789", maxPiece/5)
	content := func(part string) string {
		b, err := ParseChat([]byte(chat(part)), 1, false)
		require.NoError(t, err)
		var out strings.Builder
		b.WriteContent(&out, b.Items[0])
		return out.String()
	}
	same := content(`{"image_url":"a/b` + long + `"}`)
	assert.Equal(t, "image_url\x00a/b"+long, same)
	for _, part := range []string{
		`{"type":"image_url","image_url":{"url":"a\/b` + long + `"},"uuid":"u"}`,
		`{"image_url":{"detail":"low", "url":"\u0061/b` + strings.ReplaceAll(long, "7", `\u0037`) + `"}}`,
	} {
		assert.True(t, same == content(part), part[:40])
	}
	for _, part := range []string{`{"image_url":"a/c` + long + `"}`, `{"video_url":"a/b` + long + `"}`, `{"input_audio":{"data":"a/b` + long + `"}}`} {
		assert.False(t, same == content(part), part[:40])
	}
}
