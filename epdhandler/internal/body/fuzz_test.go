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

// edited are names, and the bits of FuzzRewrite that stand for them.
var edited = []string{
	"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos",
	"tool_choice", MMProcessorKwargs, MediaIOKwargs, "priority", "session_id", VLLMXArgs, "prompt", "prompt_embeds", "n", "best_of",
	"use_beam_search", "prompt_logprobs", "echo", "logprobs", "truncate_prompt_tokens", "chat_template", "chat_template_kwargs",
	KVTransferParams, ECTransferParams, "usage",
}

// FuzzParse holds the index against encoding/json: what it accepts is valid, and
// what it refuses is invalid or has a member twice.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, ` {"a":[1,2.5e-3,"\u00e9\ud83d\udc4b",{"b":null}],"model":"m","stream":true} `, `{"a":1,"a":2}`, "{\"a\":\"\xff\"}", `[]`, `{"a":01}`,
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAABBBBCCCCDDDDEEEEFFFFGGGGHHHH"}}]}]}`,
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
			for _, name := range edited {
				assert.Equal(t, string(members[name]), string(b.Value(name)))
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
		for bit, name := range edited {
			switch {
			case sets&(1<<bit) != 0:
				edits = append(edits, Set(name, `{"new":1}`))
				want[name] = json.RawMessage(`{"new":1}`)
			case removes&(1<<bit) != 0:
				edits = append(edits, Remove(name))
				delete(want, name)
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
