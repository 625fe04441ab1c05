package body

import (
	"bytes"
	"encoding/json"
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
	f.Add([]byte(`{"a":1,"stream":true,"kv_transfer_params":{"x":1},"max_tokens":5}`), uint32(0b1010), uint32(0b0110))
	f.Add([]byte(`{"stream":true , "model": "m" }`), uint32(1<<20-1), uint32(0))
	f.Fuzz(func(t *testing.T, in []byte, sets, removes uint32) {
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
// the same found in maps. What vLLM reads of a part is in TestOracle.
func FuzzChat(f *testing.F) {
	for _, s := range []string{
		chat(`{"type":"image_url","image_url":{"url":"x"},"uuid":"u"}`, `{"uuid":"u","type":"text","text":"x"}`, `"plain"`, `7`),
		chat(`{"audio_url":"x","image_pil":null}`, `{"type":"input_audio","input_audio":{"data":"x","format":"wav"}}`, `{"type":"video_url","video_url":null,"uuid":"u"}`),
		chat(`{"type":"input_image","image_url":"x","detail":"low"}`, `{"type":null,"video_url":{"url":1},"image_url":[]}`),
		`{"messages":[{"content":[{"a":1,"uuid":"u"},{"uuid":null}]},{"content":"x"},null]}`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, in []byte, trusted bool) {
		var whole map[string]any
		if _, notJSON := Parse(in); notJSON != nil {
			_, err := ParseChat(in, 10, trusted)
			require.Error(t, err)
			return
		}
		require.NoError(t, json.Unmarshal(bytes.TrimPrefix(in, []byte("\ufeff")), &whole))
		b, err := ParseChat(in, 10, trusted)
		if err != nil {
			return
		}
		messages, isList := whole["messages"].([]any)
		require.True(t, isList)
		items := 0
		for _, m := range messages {
			message, _ := m.(map[string]any)
			parts, _ := message["content"].([]any)
			for _, p := range parts {
				if part, ok := p.(map[string]any); ok {
					items += len(mediaOf(part))
					blank(part, trusted)
				}
			}
		}
		var got map[string]any
		require.NoError(t, json.Unmarshal(b.Rewrite().Bytes(), &got))
		require.Equal(t, whole, got)
		if !trusted { // else they may be ready, or named
			require.Len(t, b.Items, items)
		}
		for _, item := range b.Items {
			part := messages[item.Message].(map[string]any)["content"].([]any)[item.Part]
			require.Equal(t, []string{item.Kind}, mediaOf(part.(map[string]any)))
			var same map[string]any
			require.NoError(t, json.Unmarshal(Join(b.AppendPieces(nil, item.Range)...).Bytes(), &same))
			require.Equal(t, part, any(same))
		}
	})
}

// mediaOf are the members of a part that carry media.
func mediaOf(part map[string]any) (kinds []string) {
	for name, v := range part {
		if kind, _ := carrier(name); kind != "" && v != nil {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// blank takes out of a part what engines may not get.
func blank(part map[string]any, trusted bool) {
	if trusted && part["uuid"] != nil && len(mediaOf(part)) == 0 {
		return // the engines have the media
	}
	for name, v := range part {
		kind, _ := carrier(name)
		if kind != "" && v == nil || name == "uuid" && !trusted {
			delete(part, name)
		}
	}
}
