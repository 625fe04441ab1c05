package body

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRewrite(t *testing.T) {
	for name, tc := range map[string]struct {
		in    string
		edits []Edit
		want  string
	}{
		"nothing":               {` { "model" : 1 , "x":2 } `, nil, `{ "model" : 1 , "x":2 }`},
		"empty, nothing":        {`{ }`, nil, `{}`},
		"empty, set":            {`{ }`, []Edit{Set(Stream, "false"), Set(MaxTokens, "1")}, `{"stream":false,"max_tokens":1}`},
		"set what is there":     {`{"a":1, "stream" : true ,"b":2}`, []Edit{Set(Stream, "false")}, `{"a":1, "stream" : false ,"b":2}`},
		"set what is not":       {`{"a":1 }`, []Edit{Set(Stream, []byte("false"))}, `{"a":1 ,"stream":false}`},
		"remove the only one":   {`{"stream":1}`, []Edit{Remove(Stream)}, `{}`},
		"remove what is not":    {`{"a":1}`, []Edit{Remove(Stream)}, `{"a":1}`},
		"remove the first":      {`{"stream":1 , "a":1}`, []Edit{Remove(Stream)}, `{ "a":1}`},
		"remove the last":       {`{"a":1, "stream":1}`, []Edit{Remove(Stream)}, `{"a":1}`},
		"remove in the middle":  {`{"a":1,"stream":1,"b":2}`, []Edit{Remove(Stream)}, `{"a":1,"b":2}`},
		"remove neighbours":     {`{"a":1,"stream":1,"model":2,"b":2}`, []Edit{Remove(Stream), Remove(Model)}, `{"a":1,"b":2}`},
		"remove the last two":   {`{"a":1,"stream":1,"model":2}`, []Edit{Remove(Model), Remove(Stream)}, `{"a":1}`},
		"remove all":            {`{"stream":1,"model":2}`, []Edit{Remove(Model), Remove(Stream)}, `{}`},
		"remove all, add":       {`{"stream":1,"model":2}`, []Edit{Remove(Model), Remove(Stream), Set(MaxTokens, "1")}, `{"max_tokens":1}`},
		"remove last, add":      {`{"a":1,"stream":1}`, []Edit{Remove(Stream), Set(MaxTokens, "1")}, `{"a":1,"max_tokens":1}`},
		"set beside removed":    {`{"stream":1,"model":2,"max_tokens":3}`, []Edit{Set(Model, "0"), Remove(Stream), Remove(MaxTokens)}, `{"model":0}`},
		"two set":               {`{"stream":1,"model":2}`, []Edit{Set(Model, "0"), Set(Stream, "0")}, `{"stream":0,"model":0}`},
		"escaped name":          {`{"str\u0065am":1,"a":1}`, []Edit{Remove(Stream)}, `{"a":1}`},
		"only at the top level": {`{"a":{"stream":1},"stream":2}`, []Edit{Remove(Stream)}, `{"a":{"stream":1}}`},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Parse([]byte(tc.in))
			require.NoError(t, err)
			got := b.Rewrite(tc.edits...)
			assert.Equal(t, tc.want, string(got.Bytes()))
			assert.EqualValues(t, len(tc.want), got.Len())
		})
	}
}

func TestSegments(t *testing.T) {
	big := strings.Repeat("0123456789", smallBody/10)
	for name, parts := range map[string][]string{
		"none":    {},
		"empties": {"", "", ""},
		"small":   {"a", "", "bc"},
		"large":   {"a", big, "", "b", big, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var in [][]byte
			for _, p := range parts {
				in = append(in, []byte(p))
			}
			s := Join(in...)
			want := []byte(strings.Join(parts, ""))
			assert.EqualValues(t, len(want), s.Len())
			assert.Equal(t, want, append([]byte{}, s.Bytes()...))
			for range 2 { // it can be read again
				require.NoError(t, iotest.TestReader(s.Reader(), want))
			}
			half := s.Reader()
			_, _ = io.CopyN(io.Discard, half, s.Len()/2)
			whole, err := io.ReadAll(s.Reader())
			require.NoError(t, err)
			assert.True(t, bytes.Equal(want, whole), "readers disturb each other")
		})
	}
}

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
		require.Contains(t, e.Message, "given twice", "refused %q", in)
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
		require.NoError(t, json.Unmarshal(in, &want))
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

// FuzzChat holds what is left out of a chat body, and its media items, against the
// same done with maps.
func FuzzChat(f *testing.F) {
	f.Add([]byte(chat(`{"type":"image_url","image_url":{"url":"x"},"uuid":"u"}`, `{"uuid":"u","type":"text","text":"x"}`, `"plain"`, `7`)))
	f.Add([]byte(`{"messages":[{"content":[{"a":1,"uuid":"u"},{"uuid":null}]},{"content":"x"},null]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		b, err := ParseChat(in, 10, false)
		if err != nil {
			return
		}
		var want map[string]any
		require.NoError(t, json.Unmarshal(in, &want))
		for _, m := range want["messages"].([]any) {
			message, _ := m.(map[string]any)
			parts, _ := message["content"].([]any)
			for _, p := range parts {
				if part, ok := p.(map[string]any); ok {
					delete(part, "uuid")
				}
			}
		}
		var got map[string]any
		out := b.Rewrite().Bytes()
		require.NoError(t, json.Unmarshal(out, &got), "%s", out)
		require.Equal(t, want, got)
		for _, item := range b.Items {
			var part map[string]any
			require.NoError(t, json.Unmarshal(Join(b.Pieces(item.Range)...).Bytes(), &part))
			require.Equal(t, want["messages"].([]any)[item.Message].(map[string]any)["content"].([]any)[item.Part], any(part))
		}
	})
}
