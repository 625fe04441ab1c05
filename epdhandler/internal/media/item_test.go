package media

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestURL(t *testing.T) {
	_, set, err := ParseChat([]byte(chat(
		`{"type":"image_url","image_url":{"detail":"low","\u0075rl":"https:\/\/x.example\u002fy"}}`,
		`{"video_url":"data:video/mp4;base64,AAAA"}`,
		`{"type":"input_audio","input_audio":{"format":"wav","data":"AAAA"}}`,
	)), 3, false)
	require.NoError(t, err)
	url, whole := set.url(set.items[0], 100)
	assert.Equal(t, "https://x.example/y", url)
	assert.True(t, whole)
	url, whole = set.url(set.items[1], 10)
	assert.Equal(t, "data:video", url)
	assert.False(t, whole)
	assert.Equal(t, []bool{false, false, true}, []bool{set.items[0].Kind == inputAudio, set.items[1].Kind == inputAudio, set.items[2].Kind == inputAudio})
}

// A URL can be cut at any place but in an escape.
func TestURLIsCut(t *testing.T) {
	const raw, want = `ab\\\\\"\u0041\/ä\\u0041\n`, "ab\\\\\"A/ä\\u0041\n"
	_, set, err := ParseChat([]byte(chat(`{"image_url":"`+raw+`"}`)), 1, false)
	require.NoError(t, err)
	for max := range len(raw) + 2 {
		url, whole := set.url(set.items[0], max)
		assert.True(t, strings.HasPrefix(want, url), "%d: %q", max, url)
		assert.Equal(t, max >= len(raw), whole, max)
		assert.Equal(t, whole, url == want, max)
	}
}

// Equal media write the same, however they are written, and different ones do not.
func TestWriteMedia(t *testing.T) {
	long := strings.Repeat("0123456789", 20_000) // is unescaped in several pieces
	written := func(part string) string {
		_, set, err := ParseChat([]byte(chat(part)), 1, false)
		require.NoError(t, err)
		var out strings.Builder
		set.writeMedia(&out, set.items[0])
		return out.String()
	}
	audio := func(data, format string) string {
		return `{"input_audio":{"data":"` + data + `","format":` + format + `}}`
	}
	others := make(map[string]bool)
	for _, same := range [][]string{
		{
			`{"image_url":"a/b` + long + `"}`,
			`{"type":"image_url","image_url":{"url":"a\/b` + long + `"},"uuid":"u"}`,
			`{"image_url":{"detail":"low", "url":"\u0061/b` + strings.ReplaceAll(long, "7", `\u0037`) + `"}}`,
		},
		{audio("AAAA", `"wav"`), `{"input_audio":{"format":"w\u0061v","x":1,"data":"\u0041AAA"},"type":"input_audio"}`},
		{audio("AAAA", `""`), `{"input_audio":{"data":"AAAA"}}`},
		{audio("AAAA", `null`), audio("AAAA", `"None"`)}, // which is how Python writes it
		{`{"image_url":"a/c` + long + `"}`},
		{`{"video_url":"a/b` + long + `"}`},
		{audio("AAAA", `"wav;base64,RVZJTA=="`)},
		{audio("AAA", `"wavA"`)},
		{audio("a/b"+long, `"wav"`)},
	} {
		for _, part := range same {
			assert.True(t, written(same[0]) == written(part), "%.60s", part)
		}
		assert.False(t, others[written(same[0])], "%.60s", same[0])
		others[written(same[0])] = true
	}
}

// An encode request has nothing but media, so its part must be one that vLLM takes alone.
func TestAppendAlone(t *testing.T) {
	for part, want := range map[string]string{
		`{"type":"image_url","image_url":{"url":"x"}}`:                                   `{"type":"image_url","image_url":{"url":"x"}}`,
		`{"foo":1,"image_url":{ "url":"x","detail":"low"},"type":"image_url"}`:           `{"foo":1,"image_url":{ "url":"x","detail":"low"},"type":"image_url"}`,
		`{"foo":1,"image_url":{ "url":"x","detail":"low"}}`:                              `{"type":"image_url","image_url":{"url":"x"}}`,
		`{"image_url":{"url":"x"}}`:                                                      `{"type":"image_url","image_url":{"url":"x"}}`,
		`{"video_url":"\u0041"}`:                                                         `{"type":"video_url","video_url":{"url":"\u0041"}}`,
		`{"type":"input_image","image_url":"x","detail":"auto"}`:                         `{"type":"image_url","image_url":{"url":"x"}}`,
		`{"audio_url":"x"}`:                                                              `{"type":"audio_url","audio_url":{"url":"x"}}`,
		`{"input_audio":{"format":"mp3","data":"x"}}`:                                    `{"type":"input_audio","input_audio":{"format":"mp3","data":"x"}}`,
		`{"type":"input_audio","input_audio":{"data":"x","format":"flac"},"foo":1}`:      `{"type":"audio_url","audio_url":{"url":"data:audio/flac;base64,x"}}`,
		`{"input_audio":{"data":"x"}}`:                                                   `{"type":"audio_url","audio_url":{"url":"data:audio/;base64,x"}}`,
		`{"input_audio":{"data":"x","format":null}}`:                                     `{"type":"audio_url","audio_url":{"url":"data:audio/None;base64,x"}}`,
		`{"input_audio":{"data":"x","format":"` + strings.Repeat("y", maxFormat) + `"}}`: `{"type":"input_audio","input_audio":{"data":"x","format":"` + strings.Repeat("y", maxFormat) + `"}}`,
	} {
		_, set, err := ParseChat([]byte(chat(part)), 1, false)
		require.NoError(t, err, part)
		assert.Equal(t, want, string(join(set.appendAlone(nil, set.items[0], nil))))
		assert.Equal(t, want[:len(want)-1]+`,"uuid":"u"}`, string(join(set.appendAlone(nil, set.items[0], []byte(`"u"`)))))
	}
}

// A reference keeps what else is in the part.
func TestReference(t *testing.T) {
	for part, want := range map[string]string{
		`{"type":"image_url","image_url":{"url":"x"}}`:                        `{"type":"image_embeds","image_embeds":7,"uuid":"u"}`,
		`{"image_url":"x"}`:                                                   `{"type":"image_embeds","image_embeds":7,"uuid":"u"}`,
		`{"image_url":"x","foo":1}`:                                           `{"type":"image_embeds","image_embeds":7,"foo":1,"uuid":"u"}`,
		`{"foo":1,"\u0069mage_url":{"url":"x"} , "type" : "image_url","b":2}`: `{"foo":1,"image_embeds":7 , "type" : "image_embeds","b":2,"uuid":"u"}`,
	} {
		_, set, err := ParseChat([]byte(chat(part)), 1, false)
		require.NoError(t, err, part)
		item := set.items[0]
		patched := set.body.Patched(append(item.refer([]byte(`"image_embeds":7`)), item.setUUID([]byte(`"u"`))))
		assert.Equal(t, want, string(join(patched.AppendPieces(nil, item.Range))))
	}
}
