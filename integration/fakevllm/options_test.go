package fakevllm

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

const (
	namedTool = `"tool_choice":{"type":"function","function":{"name":"f"}}`
	aTool     = `"tools":` + oneTool
)

// optionsTaken are members of requests that vLLM accepts, by path.
var optionsTaken = map[string][]string{
	chat: {
		`"max_tokens":"7"`, `"max_tokens":7.0`, `"max_tokens":true`, `"max_tokens":null`, `"max_tokens":" 1_0 "`,
		`"max_tokens":0,"max_completion_tokens":5`, `"max_completion_tokens":null`,
		`"min_tokens":16`, `"min_tokens":5,"max_tokens":5`,
		`"temperature":0`, `"temperature":"0.5"`, `"temperature":null`, `"temperature":2`,
		`"top_p":1`, `"top_p":1e-9`, `"top_k":-1`, `"min_p":1`, `"repetition_penalty":0.1`, `"presence_penalty":-2`,
		`"n":null`, `"n":"2"`, `"n":2,"temperature":0.1`, `"n":2,"temperature":0,"use_beam_search":true`, `"n":1,"temperature":0`,
		`"logprobs":true,"top_logprobs":20`, `"logprobs":1,"top_logprobs":1`, `"top_logprobs":0`, `"top_logprobs":null`, `"logprobs":"off"`,
		`"prompt_logprobs":0,"stream":true`, `"prompt_logprobs":null,"stream":true`, `"prompt_logprobs":20`,
		`"stream_options":{"include_usage":true},"stream":true`, `"stream_options":{}`, `"stream_options":null`,
		`"echo":"yes"`, `"stop":"."`, `"stop":["."]`, `"stop":null`, `"stop_token_ids":[1,"2"]`,
		`"tool_choice":"none"`, `"tool_choice":null`, `"tools":null`, aTool, aTool + `,"tool_choice":"auto"`, aTool + `,"tool_choice":"required"`, aTool + `,` + namedTool,
		`"logit_bias":{"0":1,"151935":-1}`, `"logit_bias":{}`, `"logit_bias":null`, `"allowed_token_ids":[0,151935]`, `"allowed_token_ids":null`,
		`"structured_outputs":{"regex":"[a-d]{5}"}`, `"structured_outputs":{"choice":["a","b"]}`, `"structured_outputs":{"json":"{\"type\":\"object\"}"}`, `"structured_outputs":null`,
		`"structured_outputs":{"json":{"type":["string","null"]}},"tool_choice":"none"`,
		`"response_format":{"type":"text"}`, `"response_format":{"type":"json_object"}`,
		`"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"type":{"type":"integer"}}}}}`,
		`"continue_final_message":true,"add_generation_prompt":false`,
		`"priority":0`, `"seed":-1`, `"truncate_prompt_tokens":5`, `"unknown":{"a":[1]}`,
	},
	completions: {
		`"max_tokens":null`, `"max_tokens":0,"echo":true`, `"max_completion_tokens":0`, `"min_tokens":16`, `"logprobs":20`, `"logprobs":0`, `"echo":null`,
		`"top_logprobs":3`, `"tool_choice":"required"`, `"tools":[]`, `"n":2,"use_beam_search":true,"temperature":0`, `"use_beam_search":"no","stream":true`,
	},
}

// optionsRefused are those that vLLM rejects at once.
var optionsRefused = map[string][]string{
	chat: {
		`"max_tokens":0`, `"max_tokens":-1`, `"max_tokens":"many"`, `"max_tokens":1.5`, `"max_tokens":1e999`, `"max_tokens":[]`, `"max_tokens":{}`, `"max_tokens":""`,
		`"max_tokens":5,"max_completion_tokens":0`, `"max_completion_tokens":"x"`,
		`"min_tokens":null`, `"min_tokens":-1`, `"min_tokens":9,"max_tokens":5`, `"min_tokens":9,"max_completion_tokens":5`,
		`"temperature":-1`, `"temperature":2.1`, `"temperature":"hot"`, `"temperature":"nan"`, `"temperature":[]`,
		`"top_p":0`, `"top_p":2`, `"top_p":"x"`, `"top_k":-2`, `"top_k":1.5`, `"min_p":-0.1`, `"repetition_penalty":0`, `"presence_penalty":3`, `"frequency_penalty":"x"`,
		`"n":0`, `"n":-1`, `"n":20000`, `"n":"x"`, `"n":3,"temperature":0`, `"n":0,"use_beam_search":true`,
		`"top_logprobs":2`, `"top_logprobs":-1`, `"top_logprobs":"2","logprobs":true`, `"top_logprobs":-2,"logprobs":true`, `"top_logprobs":2,"logprobs":false`, `"logprobs":2`,
		`"prompt_logprobs":1,"stream":true`, `"prompt_logprobs":-1,"stream":true`, `"prompt_logprobs":-2`, `"prompt_logprobs":"1"`,
		`"stream_options":{"include_usage":true}`, `"stream_options":{"include_usage":true},"stream":false`, `"stream":"x"`, `"stream":2`,
		`"echo":null`, `"use_beam_search":null`, `"ignore_eos":"x"`, `"stop":1`, `"stop":[1]`, `"bad_words":null`, `"stop_token_ids":["x"]`,
		`"tools":[]`, `"tools":{}`, `"tools":[{}]`, `"tools":[{"function":{}}]`, `"tool_choice":"required"`, `"tool_choice":"auto"`, namedTool,
		aTool + `,"tool_choice":"some"`, aTool + `,"tool_choice":1`, aTool + `,"tool_choice":{"type":"function"}`, aTool + `,"tool_choice":{"function":{"name":""}}`,
		aTool + `,"tool_choice":{"type":"function","function":{"name":"other"}}`,
		`"logit_bias":{"a":1}`, `"logit_bias":{"1":"x"}`, `"logit_bias":[]`, `"allowed_token_ids":"x"`, `"allowed_token_ids":["x"]`,
		`"structured_outputs":{}`, `"structured_outputs":{"regex":"a","choice":["b"]}`, aTool + `,` + namedTool + `,"structured_outputs":{"regex":"a"}`,
		`"response_format":{"type":"json_schema"}`,
		`"continue_final_message":true,"add_generation_prompt":true`,
		`"priority":null`, `"seed":"x"`, `"truncate_prompt_tokens":"x"`,
	},
	completions: {
		`"n":null`, `"max_tokens":0`, `"min_tokens":17`, `"logprobs":-2`, `"logprobs":true,"prompt_logprobs":"x"`, `"logprobs":"1"`, `"use_beam_search":true,"stream":true`,
		`"prompt_logprobs":1,"stream":true`, `"n":3,"temperature":0`,
	},
}

// optionsRefusedLate are those that vLLM rejects after a stream has begun.
var optionsRefusedLate = map[string][]string{
	chat: {
		`"structured_outputs":{"regex":"[a-"}`, `"structured_outputs":{"choice":[]}`, `"structured_outputs":{"grammar":" "}`, `"structured_outputs":{"json":"{"}`,
		`"structured_outputs":{"json":{"type":"nothing"}}`,
		`"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"nothing"}}}`,
		`"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"type":"array","items":{"anyOf":[{"type":"nothing"}]}}}}}}`,
		`"logit_bias":{"151936":1}`, `"logit_bias":{"-1":1}`, `"allowed_token_ids":[]`, `"allowed_token_ids":[151936]`, `"stop_token_ids":[-1]`,
		`"logprobs":true,"top_logprobs":21`, `"logprobs":true,"top_logprobs":-1`,
	},
	completions: {`"logprobs":21`, `"logprobs":-1`, `"allowed_token_ids":[]`},
}

// Engines accept and reject options as vLLM does, with and without streaming.
func TestOptions(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	for _, test := range []struct {
		options         map[string][]string
		status, ofEvent int
	}{
		{optionsTaken, http.StatusOK, http.StatusOK},
		{optionsRefused, http.StatusBadRequest, http.StatusBadRequest},
		{optionsRefusedLate, http.StatusBadRequest, http.StatusOK},
	} {
		for path, list := range test.options {
			for _, members := range list {
				body := map[string]string{chat: textChat, completions: textPrompt}[path]
				body = strings.TrimSuffix(body, "}") + "," + members + "}"
				a := post(t, e, path, "r", body)
				assert.Equal(t, test.status, a.status, "%s %s: %s", path, members, a.body)
				if strings.Contains(members, "stream") || strings.Contains(members, "prompt_logprobs") || strings.Contains(members, "beam") {
					continue
				}
				a = post(t, e, path, "r", with(body, "stream", "true"))
				assert.Equal(t, test.ofEvent, a.status, "%s %s: %s", path, members, a.body)
			}
		}
	}
}

// A late error is the first event of a stream, without a role before it.
func TestLateRefusalOfAStream(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	a := post(t, e, chat, "r", with(with(textChat, "stream", "true"), "allowed_token_ids", "[]"))
	assert.Equal(t, http.StatusOK, a.status)
	assert.Equal(t, `data: {"error":{"code":400,"message":"allowed_token_ids is not None and empty!","param":null,"type":"BadRequestError"}}`+
		"\n\ndata: [DONE]\n\n", a.body)
	assert.Len(t, e.Refusals(), 1)
}

// The rules apply to every role, to the requests that the proxy makes from a client's request.
func TestOptionsAtPrefillAndEncode(t *testing.T) {
	prefiller := startAlone(t, Options{Role: Prefill})
	refused(t, prefiller, post(t, prefiller, chat, "r", with(textPrefill, "temperature", "-1")), http.StatusBadRequest, "temperature")
	refused(t, prefiller, post(t, prefiller, chat, "r", with(textPrefill, "allowed_token_ids", "[]")), http.StatusBadRequest, "allowed_token_ids")
	refused(t, prefiller, post(t, prefiller, completions, "r", `{"prompt":[],"max_tokens":1,"stream":false,`+stub+`}`), http.StatusBadRequest, "at least one prompt")

	encoder := startAlone(t, Options{Role: Encode, MaxImages: 1, Modern: true})
	two := `{"messages":[{"role":"user","content":[{"image_url":"https://a/b.png"},{"image_url":"https://a/c.png"}]}],"max_tokens":1,"stream":false}`
	refused(t, encoder, post(t, encoder, chat, "r:0:abcdef", two), http.StatusBadRequest, "At most 1 image(s)")
	refused(t, encoder, post(t, encoder, chat, "r:0:abcdef", with(imageEncode, "priority", `"x"`)), http.StatusBadRequest, "priority")
}

func TestLimits(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, MaxImages: 2, MaxModelLen: 10, ECExample: true})
	images := func(n int) string {
		return `{"messages":[{"role":"user","content":[` + strings.Repeat(`{"image_url":"https://a/b.png"},`, n) + `"x"]}]}`
	}
	said := func(n int) string { return `{"messages":[{"role":"user","content":"` + strings.Repeat("x", n) + `"}]}` }
	for body, status := range map[string]int{
		said(9):                           http.StatusOK,
		said(10):                          http.StatusBadRequest, // no room for an answer
		said(11):                          http.StatusBadRequest,
		with(said(5), "max_tokens", "10"): http.StatusOK,
		with(said(5), "max_tokens", "11"): http.StatusBadRequest,
		with(said(5), "min_tokens", "5"):  http.StatusOK,
		with(said(5), "min_tokens", "6"):  http.StatusBadRequest,
		with(said(11), "truncate_prompt_tokens", "5"):  http.StatusOK,
		with(said(11), "truncate_prompt_tokens", "-1"): http.StatusOK,
		with(said(5), "truncate_prompt_tokens", "11"):  http.StatusBadRequest,
		images(2): http.StatusOK,
		images(3): http.StatusBadRequest,
		with(with(images(0), "max_tokens", "99"), "max_completion_tokens", "1"): http.StatusOK,
	} {
		a := post(t, e, chat, "r", body)
		assert.Equal(t, status, a.status, "%s: %s", body, a.body)
	}
	for body, status := range map[string]int{
		`{"prompt":"once"}`:                         http.StatusOK,
		`{"prompt":"once upon a time"}`:             http.StatusBadRequest,
		`{"prompt":[100000,2,3,4]}`:                 http.StatusOK,
		`{"prompt":[1,2,3,4,5,6,7,8,9,10,11]}`:      http.StatusBadRequest,
		`{"prompt":["once","upon","a","time"]}`:     http.StatusOK,
		`{"prompt":["once","once upon a time"]}`:    http.StatusBadRequest,
		`{"prompt":""}`:                             http.StatusBadRequest,
		`{"prompt":[]}`:                             http.StatusBadRequest,
		`{"prompt":[],"prompt_embeds":"AAAA"}`:      http.StatusOK,
		`{"prompt":"","stream":true}`:               http.StatusBadRequest,
		`{"prompt":"x","truncate_prompt_tokens":1}`: http.StatusOK,
	} {
		a := post(t, e, completions, "r", body)
		assert.Equal(t, status, a.status, "%s: %s", body, a.body)
	}
}
