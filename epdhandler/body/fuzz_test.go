package body

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// FuzzParse holds the index against encoding/json: what it accepts is valid, and
// what it refuses is invalid or has a member twice.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, ` {"a":[1,2.5e-3,"\u00e9\ud83d\udc4b",{"b":null}],"model":"m","stream":true} `, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}", `[]`, `{"a":01}`,
		chat(`{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHH"}}`),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := Parse(in)
		in = bytes.TrimPrefix(in, []byte("\ufeff"))
		valid := json.Valid(in) && utf8.Valid(in)
		if err == nil {
			require.True(t, valid, "accepted %q", in)
			var members map[string]json.RawMessage
			require.NoError(t, json.Unmarshal(in, &members))
			for field := range numFields {
				assert.Equal(t, string(members[field.String()]), string(b.Value(field)))
			}
			return
		}
		var e *Error
		require.ErrorAs(t, err, &e)
		if !valid || !strings.HasPrefix(strings.TrimLeft(string(in), " \t\r\n"), "{") || strings.Contains(e.Message, "nested deeper") {
			return
		}
		require.Regexp(t, "given twice|more than 4300 digits", e.Message, "refused %q", in)
	})
}

// FuzzRewrite holds the edits against the same edits of a map.
func FuzzRewrite(f *testing.F) {
	f.Add([]byte(`{"a":1,"stream":true,"kv_transfer_params":{"x":1},"max_tokens":5}`), uint16(0b1010), uint16(0b0110))
	f.Add([]byte(`{"stream":true , "model": "m" }`), uint16(0xffff), uint16(0))
	f.Fuzz(func(t *testing.T, in []byte, sets, removes uint16) {
		b, err := Parse(in)
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(bytes.TrimPrefix(in, []byte("\ufeff")), &want))
		var edits []Edit
		for field := range numFields {
			switch {
			case sets&(1<<field) != 0:
				edits = append(edits, Set(field, `{"new":1}`))
				want[field.String()] = json.RawMessage(`{"new":1}`)
			case removes&(1<<field) != 0:
				edits = append(edits, Remove(field))
				delete(want, field.String())
			}
		}
		out := b.Rewrite(edits...).Bytes()
		var got map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(out, &got), "%s", out)
		require.Equal(t, want, got)
		_, err = Parse(out)
		require.NoError(t, err)
	})
}

// FuzzChat holds the media items of a chat body, and what is left out of it, against
// the same found in maps.
func FuzzChat(f *testing.F) {
	for _, s := range []string{
		chat(`{"type":"image_url","image_url":{"url":"x"},"uuid":"u"}`, `{"uuid":"u","type":"text","text":"x"}`, `"plain"`, `7`),
		chat(`{"audio_url":"x"}`, `{"type":"input_audio","input_audio":{"data":"x","format":"wav"}}`, `{"type":"video_url","video_url":null}`),
		chat(`{"type":"input_image","image_url":"x"}`, `{"type":null,"video_url":{"url":1},"image_url":[]}`),
		`{"messages":[{"content":[{"a":1,"uuid":"u"},{"uuid":null}]},{"content":"x"},null]}`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, keepUUIDs bool) {
		b, err := ParseChat(in, 10, keepUUIDs)
		var whole map[string]any
		if _, notJSON := Parse(in); notJSON != nil {
			require.Error(t, err)
			return
		}
		require.NoError(t, json.Unmarshal(bytes.TrimPrefix(in, []byte("\ufeff")), &whole))
		messages, isList := whole["messages"].([]any)
		var items []any
		bad := !isList
		for _, m := range messages {
			message, _ := m.(map[string]any)
			parts, _ := message["content"].([]any)
			for _, p := range parts {
				part, ok := p.(map[string]any)
				if !ok {
					continue
				}
				item, fit := isItem(part, keepUUIDs)
				bad = bad || !fit
				if !keepUUIDs {
					delete(part, "uuid")
				}
				if item {
					items = append(items, part)
				}
			}
		}
		if err != nil {
			require.True(t, bad || len(items) > 10 || strings.Contains(err.Error(), "given twice") || strings.Contains(err.Error(), "more than 1000 members"), "refused %q: %v", in, err)
			return
		}
		require.False(t, bad, "accepted %q", in)

		var got map[string]any
		require.NoError(t, json.Unmarshal(b.Rewrite().Bytes(), &got))
		require.Equal(t, whole, got)
		require.Len(t, b.Items, len(items))
		for i, item := range b.Items {
			var part map[string]any
			require.NoError(t, json.Unmarshal(Join(b.AppendPieces(nil, item.Range)...).Bytes(), &part))
			require.Equal(t, items[i], any(part))
			require.Equal(t, items[i], messages[item.Message].(map[string]any)["content"].([]any)[item.Part])
		}
	})
}

// isItem tells whether a content part is a media item, and whether it may be there.
func isItem(part map[string]any, keepUUIDs bool) (item, fit bool) {
	content := false
	for name, v := range part {
		content = content || v != nil && name != "type" && name != "uuid"
	}
	hasUUID := part["uuid"] != nil
	if hasUUID && !content {
		return false, keepUUIDs
	}
	key, _ := part["type"].(string)
	if key == "input_image" {
		key = "image_url"
	}
	keys := []string{"image_url", "audio_url", "input_audio", "video_url"}
	if !slices.Contains(keys, key) {
		if part["type"] != nil && (!hasUUID || !keepUUIDs) {
			return false, true
		}
		first := slices.IndexFunc(keys, func(k string) bool { return part[k] != nil })
		if first < 0 {
			return false, true
		}
		key = keys[first]
	}
	switch v := part[key].(type) {
	case string:
		return true, key != "input_audio"
	case map[string]any:
		payload := "url"
		if key == "input_audio" {
			payload = "data"
		}
		_, fit := v[payload].(string)
		return true, fit
	}
	return true, false
}
