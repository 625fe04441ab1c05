package epdhandler

import (
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// An instance of prefill is in the log when it begins to hand nothing over, and when it
// hands over again; not for an answer that has ended by itself.
func TestNoteHandOver(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	p := &pool{stage: "prefill", handler: new(reverseproxy.Handler), logger: zap.New(core)}
	length, stop := []byte(`{"choices":[{"finish_reason":"length"}]}`), []byte(`{"choices":[{"finish_reason":"stop"}]}`)
	for n, tc := range []struct {
		address string
		blocks  bool
		answer  []byte
		lines   int
	}{
		{"note:1", true, length, 0},
		{"note:1", false, stop, 0},
		{"note:1", false, length, 1},
		{"note:1", false, length, 1},
		{"note:1", false, []byte(`{}`), 1},
		{"note:2", false, length, 2},
		{"note:2", true, stop, 3},
		{"note:2", true, length, 3},
		{"note:1", true, length, 4},
	} {
		p.noteHandOver(tc.address, tc.blocks, tc.answer)
		assert.Equal(t, tc.lines, logs.Len(), n)
	}
	h := historyOf(instance{"prefill", "note:1"})
	assert.Equal(t, []int{2, 4}, []int{h.blocks, h.none})
}

// What vLLM reads as "one", or as "no", has a hand-over; what it reads otherwise has none,
// in whatever form it is written.
func TestWhyNoHandOver(t *testing.T) {
	for members, want := range map[string]string{
		`"prompt":"a"`:                "",
		`"prompt":[]`:                 "",
		`"prompt":["a"]`:              "",
		`"prompt":["a","b"]`:          "prompt",
		`"prompt":["a" , [1]]`:        "prompt",
		`"prompt":[ [1,2] ]`:          "",
		`"prompt":[[1,2],[]]`:         "prompt",
		`"prompt":[1,2,3]`:            "",
		`"prompt":[-1,"a"]`:           "", // for decode to refuse
		`"prompt_embeds":"QUJD"`:      "prompt_embeds",
		`"prompt_embeds":null`:        "",
		`"n":1`:                       "",
		`"n":1.0`:                     "",
		`"n":"1"`:                     "",
		`"n":null`:                    "",
		`"n":2`:                       "n",
		`"n":2.0`:                     "n",
		`"n":"2"`:                     "n",
		`"n":" 2 "`:                   "n",
		`"n":"\u0032"`:                "n",
		`"n":"1_0"`:                   "n",
		`"n":0`:                       "n",
		`"n":[]`:                      "n",
		`"best_of":1`:                 "",
		`"best_of":2`:                 "best_of",
		`"use_beam_search":"off"`:     "",
		`"use_beam_search":"No"`:      "",
		`"use_beam_search":0.0`:       "",
		`"use_beam_search":1`:         "use_beam_search",
		`"use_beam_search":"true"`:    "use_beam_search",
		`"use_beam_search":{}`:        "use_beam_search",
		`"prompt_logprobs":0`:         "prompt_logprobs",
		`"prompt_logprobs":"1"`:       "prompt_logprobs",
		`"prompt_logprobs":false`:     "prompt_logprobs", // which is 0
		`"echo":"f","logprobs":1`:     "",
		`"truncate_prompt_tokens":-1`: "truncate_prompt_tokens",
	} {
		r, err := body.Parse([]byte("{" + members + "}"))
		require.NoError(t, err)
		assert.Equal(t, want, whyNoHandOver(r, false), members)
	}
	for members, want := range map[string][2]string{ // of a completion, of a chat
		`"echo":true`:                    {"", "echo"},
		`"echo":1,"logprobs":0`:          {"echo", "echo"},
		`"echo":true,"logprobs":null`:    {"", "echo"},
		`"prompt":["a","b"]`:             {"prompt", ""},
		`"echo":false,"logprobs":true`:   {"", ""},
		`"echo":null,"top_logprobs":"1"`: {"", ""},
	} {
		r, err := body.Parse([]byte("{" + members + "}"))
		require.NoError(t, err)
		assert.Equal(t, want, [2]string{whyNoHandOver(r, false), whyNoHandOver(r, true)}, members)
	}
}
