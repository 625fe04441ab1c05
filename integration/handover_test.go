package integration

import (
	"bytes"
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

const completionsPath = "/v1/completions"

// What vLLM splits, or computes at decode whatever it is given, has no prefill; what only
// looks like it has one. The client gets all choices in either case.
func TestRequestsWithoutHandOver(t *testing.T) {
	t.Parallel()
	completion := func(members string) string { return `{"model":"fake",` + members + `}` }
	for name, tc := range map[string]struct {
		path, body string
		prefills   int
	}{
		"prompts":              {completionsPath, completion(`"prompt":["one","two"]`), 0},
		"prompts of tokens":    {completionsPath, completion(`"prompt":[[1,2],[3]]`), 0},
		"prompts, spaced":      {completionsPath, completion(`"prompt": [ "o,\"]ne" , "two" ]`), 0},
		"tokens":               {completionsPath, completion(`"prompt":[1,2,3]`), 1},
		"one prompt in a list": {completionsPath, completion(`"prompt":["one, two"]`), 1},
		"one list of tokens":   {completionsPath, completion(`"prompt":[[1,2]]`), 1},
		"embeddings too":       {completionsPath, completion(`"prompt":"a","prompt_embeds":"QUJD"`), 0},

		"n":             {chatPath, chat(`,"n":2`, text("x")), 0},
		"n, media":      {chatPath, chat(`,"n":2`, text("x"), image("AAAA")), 0},
		"n in a string": {chatPath, chat(`,"n":"2"`, text("x")), 0},
		"n with a dot":  {completionsPath, completion(`"prompt":"a","n":2.0`), 0},
		"n 1":           {chatPath, chat(`,"n":1`, text("x")), 1},
		"n 1, lax":      {chatPath, chat(`,"n":"1"`, text("x")), 1},
		"n null":        {chatPath, chat(`,"n":null`, text("x")), 1},
		"best_of":       {completionsPath, completion(`"prompt":"a","best_of":3`), 0},
		"beams":         {chatPath, chat(`,"use_beam_search":true`, text("x")), 0},
		"no beams":      {chatPath, chat(`,"use_beam_search":false`, text("x")), 1},

		"prompt_logprobs":        {chatPath, chat(`,"prompt_logprobs":0`, text("x"), image("AAAA")), 0},
		"prompt_logprobs null":   {chatPath, chat(`,"prompt_logprobs":null`, text("x")), 1},
		"echo of a chat":         {chatPath, chat(`,"echo":true`, text("x")), 0},
		"echo off":               {chatPath, chat(`,"echo":false,"logprobs":true`, text("x")), 1},
		"echo with logprobs":     {completionsPath, completion(`"prompt":"a","echo":"yes","logprobs":1`), 0},
		"echo without":           {completionsPath, completion(`"prompt":"a","echo":true,"logprobs":null`), 1},
		"truncate_prompt_tokens": {completionsPath, completion(`"prompt":"a","truncate_prompt_tokens":-1`), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := startEngines(t, 1, 1, 1, modern)
			c := startCaddy(t, e.block("references", "trust_clients")) // for prompt_embeds
			for _, body := range []string{tc.body, stream(tc.body)} {
				e.reset()
				r := c.do(t, http.MethodPost, tc.path, body, "X-Request-Id: mine")
				assertAnswer(t, body, r)
				e.assertContract(t)
				// what encoders deliver does not get to decode, so they are not asked
				e.assertRequests(t, 0, tc.prefills, 1)
				for _, engine := range e.prefill {
					for _, got := range engine.Requests() {
						assert.NotRegexp(t, `"n": ?[^1]`, string(got.Body))
					}
				}
				without := c.access(t, "mine").at("epd", "no_prefill")
				assert.Equal(t, tc.prefills == 0, without != nil, "no_prefill: %v", without)
				if tc.prefills == 0 {
					assert.NotContains(t, string(e.decode[0].Requests()[0].Body), "kv_transfer_params")
				}
			}
		})
	}
}

// Without a prefill pool decode computes every prompt anyway, and encoders are asked.
func TestSplitRequestsWithoutPrefillPool(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	body := chat(`,"n":2`, text("x"), image("AAAA"))
	assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
	e.assertRequests(t, 1, 0, 1)
	e.assertContract(t)
}

// min_tokens is for decode to judge, in whatever form it is written.
func TestPrefillGetsNoMinTokens(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	for _, value := range []string{`5`, `1`, `" 5 "`, `"\u0035"`, `null`, `5e0`} {
		e.reset()
		body := chat(fmt.Sprintf(`,"min_tokens":%s`, value), text("x"))
		assertAnswer(t, body, c.do(t, http.MethodPost, chatPath, body))
		e.assertContract(t)
		for engine, want := range map[*fakevllm.Engine]bool{e.prefill[0]: false, e.decode[0]: true} {
			assert.Equal(t, want, bytes.Contains(engine.Requests()[0].Body, []byte(`"min_tokens":`+value)), "%s at %s", value, engine.Name())
		}
	}
}
