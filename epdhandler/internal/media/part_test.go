package media

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

func chat(parts ...string) string {
	return `{"messages":[{"role":"user","content":[` + strings.Join(parts, ",") + `]}]}`
}

func TestItems(t *testing.T) {
	for part, kind := range map[string]string{
		`{"type":"image_url","image_url":{"url":"https://x/y.png","detail":"low"}}`:           "image_url",
		`{"image_url":"https://x/y.png"}`:                                                     "image_url",
		`{"image_url":{"url":"file:///x.png"}}`:                                               "image_url",
		`{"image_url":{"url":"https://x/y.png"},"type":"image_url"}`:                          "image_url",
		`{"type":"audio_url","audio_url":{"url":"https://x/y.wav"}}`:                          "audio_url",
		`{"audio_url":"https://x/y.wav"}`:                                                     "audio_url",
		`{"type":"input_image","image_url":"https://x/y.png","detail":"auto"}`:                "image_url",
		`{"type":"video_url","video_url":{"url":"https://x/y.mp4"}}`:                          "video_url",
		`{"video_url":"https://x/y.mp4"}`:                                                     "video_url",
		`{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"}}`:                 "input_audio",
		`{"input_audio":{"format":"wav","data":"AAAA"}}`:                                      "input_audio",
		`{"input_audio":{"format":null,"data":"AAAA"}}`:                                       "input_audio",
		`{"\u0074ype":"\u0069mage_url","\u0069mage_url":{"\u0075rl":"https://x"}}`:            "image_url",
		` { "type" : "image_url" , "image_url" : { "url" : "x" } } `:                          "image_url",
		`{"image_pil":null,"type":"video_url","video_url":{"url":"x"},"image_url":null}`:      "video_url",
		`{"cache_control":{},"type":"image_url","image_url":{"url":"x"},"text":"a","name":1}`: "image_url",
	} {
		t.Run(part, func(t *testing.T) {
			_, set, err := ParseChat([]byte(chat(`{"type":"text","text":"hi"}`, part, `"plain"`)), 1, false)
			require.NoError(t, err)
			require.Len(t, set.items, 1)
			assert.Equal(t, kind, set.items[0].Kind)
			assert.Len(t, set.body.Slice(set.items[0].Range), len(strings.TrimSpace(part)))
			assert.Equal(t, "messages[0].content[1]", set.items[0].Path())
		})
	}
}

func TestNoItems(t *testing.T) {
	for _, part := range []string{
		`{"type":"text","text":"image_url"}`,
		`{"type":"text","text":"x","image_url":null}`,
		`{"type":"file","file":{"file_data":"x"}}`,
		`{"image_url":null}`,
		`{"IMAGE_URL":"x"}`,
		`"https://x/y.png"`,
		`{}`, `null`, `[{"type":"image_url","image_url":"x"}]`,
	} {
		t.Run(part, func(t *testing.T) {
			_, set, err := ParseChat([]byte(chat(part)), 0, false)
			require.NoError(t, err)
			assert.Empty(t, set.items)
		})
	}
}

func TestItemsOfAllMessagesInOrder(t *testing.T) {
	_, set, err := ParseChat([]byte(`{"model":"m","messages":[
		{"role":"system","content":"text"},
		{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url","image_url":{"url":"1"}},{"image_url":"2"}]},
		{"content":[{"type":"video_url","video_url":{"url":"3"}}],"role":"tool"},
		"odd", {"role":"assistant","content":null}]}`), 3, false)
	require.NoError(t, err)
	var paths []string
	for _, i := range set.items {
		paths = append(paths, i.Path())
	}
	assert.Equal(t, []string{"messages[1].content[1]", "messages[1].content[2]", "messages[2].content[0]"}, paths)
}

func TestParseChatRefuses(t *testing.T) {
	item, text := `{"image_url":"x"}`, `{"type":"text","text":""}`
	const part, url = "messages[0].content[0]", "messages[0].content[0].image_url"
	for name, tc := range map[string]struct{ in, want, param string }{
		"no messages":               {`{"model":"m"}`, "'messages' is missing", "messages"},
		"messages null":             {`{"messages":null}`, "'messages' must be a list", "messages"},
		"messages an object":        {`{"messages":{}}`, "'messages' must be a list", "messages"},
		"value missing":             {chat(text, `{"type":"image_url"}`), "part 1 of message 0 has no image_url", "messages[0].content[1].image_url"},
		"value null":                {chat(`{"type":"image_url","image_url":null}`), "has no image_url", url},
		"value missing, Responses":  {chat(`{"type":"input_image","detail":"auto","file_id":"f"}`), "has no image_url", url},
		"only a uuid":               {chat(`{"type":"image_url","image_url":null,"uuid":"u"}`), "part 0 of message 0 is nothing but a uuid", part},
		"only a uuid, no type":      {chat(text, `{"image_url":null,"uu\u0069d":"u"}`), "part 1 of message 0 is nothing but a uuid", "messages[0].content[1]"},
		"only a uuid, beside text":  {chat(`{"type":"text","text":"x","video_url":null,"uuid":"u"}`), "nothing but a uuid", part},
		"two media":                 {chat(`{"type":"video_url","video_url":{"url":"x"},"image_url":"y"}`), "part 0 of message 0 has more than one media member", part},
		"two media, one unknown":    {chat(`{"image_url":"y","prompt_embeds":0}`), "has more than one media member", part},
		"other type":                {chat(`{"type":"image_url","video_url":{"url":"x"}}`), "has video_url, but its type is another", part + ".type"},
		"text and media":            {chat(`{"type":"text","text":"x","image_url":{"url":"x"}}`), "has image_url, but its type is another", part + ".type"},
		"type a number":             {chat(`{"type":5,"image_url":"x"}`), "has a type that is no string", part + ".type"},
		"type null":                 {chat(`{"type":null,"text":"x"}`), "has a type that is no string", part + ".type"},
		"thoughts of tensors":       {`{"messages":[{"role":"assistant","reasoning":{"type":"prompt_embeds","data":"AAAA"}}]}`, "the reasoning of message 0 must be a string", "messages[0].reasoning"},
		"old name of thoughts":      {`{"messages":[{},{"reasoning_content": ["x"]}]}`, "the reasoning_content of message 1 must be a string", "messages[1].reasoning_content"},
		"a long type":               {chat(`{"type":"` + strings.Repeat("x", 1000) + `","image_url":"x"}`), "its type is another", part + ".type"},
		"a string with a type":      {chat(`{"type":"image_url","image_url":"x"}`), `has image_url in no known form: it must be {"url": "…"}`, url},
		"Responses, an object":      {chat(`{"type":"input_image","image_url":{"url":"x"},"detail":"auto"}`), "it must be a string, and there must be detail", url},
		"Responses, no detail":      {chat(`{"type":"input_image","image_url":"x"}`), "it must be a string, and there must be detail", url},
		"value a number":            {chat(`{"type":"video_url","video_url":7}`), "no known form", part + ".video_url"},
		"value a list":              {chat(`{"audio_url":["x"]}`), "no known form", part + ".audio_url"},
		"no url":                    {chat(`{"type":"image_url","image_url":{"URL":"x"}}`), "has no media in image_url", url},
		"url null":                  {chat(`{"image_url":{"url":null}}`), "has no media in image_url", url},
		"url empty":                 {chat(`{"type":"image_url","image_url":{"url":""}}`), "has no media in image_url", url},
		"url a number":              {chat(`{"type":"image_url","image_url":{"url":1}}`), "no known form", url},
		"audio as a string":         {chat(`{"type":"input_audio","input_audio":"AAAA"}`), `it must be {"data": "…", "format": "…"}`, part + ".input_audio"},
		"audio without data":        {chat(`{"type":"input_audio","input_audio":{"url":"x"}}`), "has no media in input_audio", part + ".input_audio"},
		"audio format a number":     {chat(`{"input_audio":{"data":"x","format":1}}`), "no known form", part + ".input_audio"},
		"a PIL image":               {chat(`{"type":"image_pil","image_pil":"http://x"}`), "has image_pil, which JSON cannot carry", part + ".image_pil"},
		"a PIL image, no type":      {chat(`{"image_pil":"http://x"}`), "has image_pil", part + ".image_pil"},
		"ready embeddings":          {chat(`{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,8,8]}}`), "has image_embeds, which only trusted clients may send", part + ".image_embeds"},
		"audio embeddings, no type": {chat(`{"audio_embeds":"AAAA"}`), "has audio_embeds", part + ".audio_embeds"},
		"embeddings in text":        {chat(`{"type":"text","text":"x","video_embeds":"AAAA"}`), "has video_embeds", part + ".video_embeds"},
		"prompt embeddings":         {chat(`{"type":"prompt_embeds","data":"AAAA"}`), "has the type prompt_embeds, which only trusted", part + ".type"},
		"prompt embeddings, member": {chat(`{"prompt_embeds":1,"data":"AAAA"}`), "has prompt_embeds", part + ".prompt_embeds"},
		"too many items":            {chat(item, item, item), "more than 2 media items", "messages"},
		"duplicate in a message":    {`{"messages":[{"role":"user","content":[],"content":[]}]}`, "'content' at byte", ""},
		"duplicate in a part":       {chat(`{"type":"text","type":"image_url","image_url":"x"}`), "'type' at byte", ""},
		"duplicate, escaped name":   {chat(`{"image_url":"x","\u0069mage_url":"y"}`), "'image_url' at byte", ""},
		"duplicate in media object": {chat(`{"type":"image_url","image_url":{"url":"x","url":"y"}}`), "'url' at byte", ""},
		"duplicate in options":      {`{"messages":[],"mm_processor_kwargs":{"use_audio_in_video":false,"use_audio_in_video":true}}`, "'use_audio_in_video' at byte", ""},
		"duplicate in other ones":   {`{"messages":[],"media_io_kwargs":{"video":1,"video":2}}`, "'video' at byte", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := ParseChat([]byte(tc.in), 2, false)
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.Contains(t, e.Message, tc.want)
			assert.Equal(t, tc.param, e.Param)
		})
	}
}

// What engines must not take for anything is overwritten, with one comma.
func TestBlanks(t *testing.T) {
	for in, want := range map[string]string{
		`{"image_url":"x"}`:                                  `{"image_url":"x"}`,
		`{"type":"text","text":"x","uuid":"u"}`:              `{"type":"text","text":"x"}`,
		`{"uuid":"u","image_url":"x"}`:                       `{"image_url":"x"}`,
		`{"foo":null , "uuid" : "u" , "image_url":"x"}`:      `{"foo":null , "image_url":"x"}`,
		`{"image_url":{"url":"x","uuid":"i"},"uu\u0069d":1}`: `{"image_url":{"url":"x","uuid":"i"}}`,
		`{"type":"text","text":"x","uuid":null}`:             `{"type":"text","text":"x"}`,
		`{"type":"text","text":"\"uuid\":\"u\""}`:            `{"type":"text","text":"\"uuid\":\"u\""}`,
		`{"uuid":"u"}`: `{}`,
		`{"uuid":"u","image_pil":null,"image_url":"x","audio_embeds":null}`: `{"image_url":"x"}`,
		`{"uuid":"u","image_pil":null,"video_url":null,"image_url":"x"}`:    `{"image_url":"x"}`,
		`{"image_url":"x","uuid":"u","image_pil":null,"video_url":null}`:    `{"image_url":"x"}`,
		`{"image_pil":null,"image_url":"x","video_url":null,"foo":1}`:       `{"image_url":"x","foo":1}`,
		`{"type":"text","text":"x","image_url":null,"input_audio":null}`:    `{"type":"text","text":"x"}`,
		`{"video_url": null}`: `{}`,
		`{"type":"text","text":"a","metadata":{"uuid":1,"image_url":null}}`: `{"type":"text","text":"a","metadata":{"uuid":1,"image_url":null}}`,
	} {
		t.Run(in, func(t *testing.T) {
			between := `{"type":"text","text":"between"}`
			_, set, err := ParseChat([]byte(chat(in, between, in)), 2, false)
			require.NoError(t, err)
			got := string(set.body.Rewrite().Bytes())
			assert.JSONEq(t, chat(want, between, want), got)
			assert.Len(t, got, len(chat(in, between, in)), "nothing moves")
			for _, item := range set.items {
				assert.JSONEq(t, want, string(body.Join(set.body.AppendPieces(nil, item.Range)...).Bytes()))
			}
		})
	}
}

// A trusted client may name what the engines know, and send what is ready for them.
func TestTrusted(t *testing.T) {
	for _, part := range []string{
		`{"type":"image_embeds","image_embeds":null,"uuid":"u"}`, `{"type":"image_url","image_url":null,"uuid":"u"}`,
		`{"type":"image_url","image_url":{"url":null},"uuid":"u"}`, `{"type":"image_url","image_url":{},"uuid":"u"}`,
		`{"video_url":{"url":""},"uuid":"u"}`, `{"input_audio":{"data":"","format":"wav"},"uuid":"u"}`,
		`{"uuid":"u","type":"video_url"}`, `{"type":"text","text":"x","image_url":null,"uuid":"u","video_url":null}`,
		`{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,8,8]},"uuid":"u"}`, `{"audio_embeds":"AAAA"}`,
		`{"type":"prompt_embeds","data":"AAAA"}`, `{"type":"text","text":"x","uuid":"u"}`,
	} {
		in := []byte(chat(part))
		_, set, err := ParseChat(slices.Clone(in), 0, true)
		require.NoError(t, err, part)
		assert.Empty(t, set.items, "there is nothing to encode: %s", part)
		assert.Equal(t, string(in), string(set.body.Rewrite().Bytes()))
	}
	for _, part := range []string{
		`{"type":"image_pil","image_pil":"http://x","uuid":"u"}`, `{"image_url":"x","image_embeds":"AAAA","uuid":"u"}`,
		`{"type":"text","text":"x","image_url":"x"}`, `{"type":"text","text":"x","image_url":"x","uuid":7}`, `{"type":"image_url","image_url":null}`,
	} {
		_, _, err := ParseChat([]byte(chat(part)), 1, true)
		assert.Error(t, err, part)
	}
}

// vLLM goes by the member, whatever the type, where there is a uuid. Only a trusted
// client's counts, and without one the type must fit.
func TestUUIDMakesAnItem(t *testing.T) {
	for part, kind := range map[string]string{
		`{"type":"text","text":"x","uuid":"u","image_url":"https://x"}`:           "image_url",
		`{"type":"image_url","uuid":"u","video_url":{"url":"https://x"}}`:         "video_url",
		`{"type":"file","image_pil":null,"audio_url":"https://x","uuid":"u"}`:     "audio_url",
		`{"type":"","uuid":"","input_audio":{"data":"AAAA"},"image_embeds":null}`: "input_audio",
	} {
		_, set, err := ParseChat([]byte(chat(part)), 1, true)
		require.NoError(t, err, part)
		require.Len(t, set.items, 1, part)
		assert.Equal(t, kind, set.items[0].Kind, part)

		_, _, err = ParseChat([]byte(chat(part)), 1, false)
		assert.Error(t, err, part)
	}
}

// Only the body itself may be large: what is counted when many bodies come is that.
func TestParsingTakesLittleMemory(t *testing.T) {
	const (
		size   = 1 << 20
		little = size / 4
	)
	fill := func(before, unit, after string) string {
		return before + strings.TrimSuffix(strings.Repeat(unit, (size-1000)/len(unit)), ",") + after
	}
	for name, in := range map[string]string{
		"parts":             fill(`{"messages":[{"content":[`, `{},`, `]}]}`),
		"parts of a type":   fill(`{"messages":[{"content":[`, `{"type":"x","x":{}},`, `]}]}`),
		"parts with a uuid": fill(`{"messages":[{"content":[`, `{"uuid":0,"a":0},`, `]}]}`),
		"messages":          fill(`{"messages":[`, `{"content":[]},`, `]}`),
		"a type":            fill(`{"messages":[{"content":[{"type":"`, `\u0000`, `"}]}]}`),
		"a URL":             fill(`{"messages":[{"content":[{"image_url":"`, `\n`, `"}]}]}`),
	} {
		t.Run(name, func(t *testing.T) {
			in := []byte(in)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, set, err := ParseChat(in, 128, false)
			require.NoError(t, err)
			for _, item := range set.items {
				set.url(item, 100)
			}
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(little))
		})
	}
}
