package media

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

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
		if _, notJSON := body.Parse(in); notJSON != nil {
			_, _, err := ParseChat(in, 10, trusted)
			require.Error(t, err)
			return
		}
		require.NoError(t, json.Unmarshal(bytes.TrimPrefix(in, []byte("\ufeff")), &whole))
		_, set, err := ParseChat(in, 10, trusted)
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
		require.NoError(t, json.Unmarshal(set.body.Rewrite().Bytes(), &got))
		require.Equal(t, whole, got)
		if !trusted { // else they may be ready, or named
			require.Len(t, set.items, items)
		}
		for _, item := range set.items {
			part := messages[item.Message].(map[string]any)["content"].([]any)[item.Part]
			require.Equal(t, []string{item.Kind}, mediaOf(part.(map[string]any)))
			var same map[string]any
			require.NoError(t, json.Unmarshal(body.Join(set.body.AppendPieces(nil, item.Range)...).Bytes(), &same))
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

// FuzzReferences holds bodies with references against the same made with maps.
func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"messages":[{"content":[{"image_url":"a","uuid":"x"},{"type":"text"},{"uuid":"y","video_url":{"url":"b"}}]}]}`), uint8(0b01), false)
	f.Add([]byte(`{"stream":true,"messages":[{"content":[{"type":"audio_url","audio_url":"a"}]},{"content":[{"uuid":null,"image_url":"x"}]}],"kv_transfer_params":{}}`), uint8(0b11), true)
	f.Fuzz(func(t *testing.T, in []byte, told uint8, trusted bool) {
		if _, _, err := ParseChat(slices.Clone(in), 8, trusted); err != nil {
			return
		}
		p := planned(t, string(in), trusted)
		want := decoded(t, p.set.body.Rewrite().Bytes())
		references := make([]string, len(p.set.items))
		all := true
		for i, item := range p.set.items {
			if told&(1<<i) != 0 {
				references[i] = `"` + embeds(item.Modality()) + `":{"s":[1]}`
			}
			all = all && references[i] != ""
		}
		for i, item := range p.set.items {
			content := want["messages"].([]any)[item.Message].(map[string]any)["content"].([]any)
			part := maps.Clone(content[item.Part].(map[string]any))
			if kind := embeds(item.Modality()); all {
				delete(part, item.Kind)
				part["type"], part[kind] = kind, map[string]any{"s": []any{1.0}}
			}
			part["uuid"] = p.uuids[i]
			if item.UUID != "" { // the trusted client's own
				part["uuid"] = content[item.Part].(map[string]any)["uuid"]
			}
			content[item.Part] = part
		}
		got := decoded(t, p.referringTo(references).Body.Rewrite().Bytes())
		require.Equal(t, want, got)
		again, err := json.Marshal(got)
		require.NoError(t, err)
		_, _, err = ParseChat(again, 8, true)
		require.NoError(t, err)
	})
}

// decoded is a body as encoding/json reads it.
func decoded(t *testing.T, in []byte) (m map[string]any) {
	require.NoError(t, json.Unmarshal(in, &m), "%s", in)
	return m
}
