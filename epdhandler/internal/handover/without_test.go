package handover

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// What vLLM reads as "one", or as "no", has a hand-over; what it reads otherwise has none,
// in whatever form it is written.
func TestPrevents(t *testing.T) {
	t.Parallel()
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
		assert.Equal(t, want, Prevents(r, false), members)
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
		assert.Equal(t, want, [2]string{Prevents(r, false), Prevents(r, true)}, members)
	}
}
