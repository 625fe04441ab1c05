package fakevllm

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
)

// A form reports whether vLLM's request model accepts a value for a member.
type form func(json.RawMessage) bool

// forms are what vLLM's request models accept for the options of all requests.
var forms = map[string]form{
	"frequency_penalty":             orNull(isAnyNumber),
	"presence_penalty":              orNull(isAnyNumber),
	"repetition_penalty":            orNull(isAnyNumber),
	"length_penalty":                isAnyNumber,
	"temperature":                   orNull(isAnyNumber),
	"top_p":                         orNull(isAnyNumber),
	"top_k":                         orNull(isWhole),
	"min_p":                         orNull(isAnyNumber),
	"seed":                          orNull(isWhole),
	"priority":                      isWhole,
	"max_tokens":                    orNull(isWhole),
	"min_tokens":                    isWhole,
	"truncate_prompt_tokens":        orNull(isWhole),
	"prompt_logprobs":               orNull(isCount),
	"stream":                        orNull(isFlag),
	"use_beam_search":               isFlag,
	"ignore_eos":                    isFlag,
	"skip_special_tokens":           isFlag,
	"spaces_between_special_tokens": isFlag,
	"include_stop_str_in_output":    isFlag,
	"return_token_ids":              orNull(isFlag),
	"logit_bias":                    orNull(isBias),
	"allowed_token_ids":             orNull(isListOf(isWhole)),
	"stop_token_ids":                orNull(isListOf(isWhole)),
	"stop":                          orNull(isStop),
	"bad_words":                     isListOf(isString),
	"structured_outputs":            orNull(isObject),
	"response_format":               orNull(isObject),
	"stream_options":                orNull(isObject),
}

var chatForms = map[string]form{
	"n":                      orNull(isWhole),
	"max_completion_tokens":  orNull(isWhole),
	"logprobs":               orNull(isFlag),
	"top_logprobs":           orNull(isCount),
	"echo":                   isFlag,
	"add_generation_prompt":  isFlag,
	"continue_final_message": isFlag,
}

var completionForms = map[string]form{
	"n":        isWhole,
	"logprobs": orNull(isCount),
	"echo":     orNull(isFlag),
}

// checkForms checks the form of each option.
func (x *exchange) checkForms() error {
	own := completionForms
	if x.isChat() {
		own = chatForms
	}
	for _, list := range []map[string]form{forms, own} {
		for _, name := range slices.Sorted(maps.Keys(list)) {
			if raw, there := x.members[name]; there && !list[name](raw) {
				return badRequest("%s: not what vLLM takes: %s", name, shortened(raw))
			}
		}
	}
	return nil
}

func isAnyNumber(raw json.RawMessage) bool {
	_, ok := number(raw)
	return ok
}

func isWhole(raw json.RawMessage) bool {
	n, ok := number(raw)
	return ok && n == math.Trunc(n) && !math.IsInf(n, 0)
}

// isCount is for options that vLLM compares before pydantic validates them.
func isCount(raw json.RawMessage) bool {
	_, isString := stringOf(raw)
	return !isString && isWhole(raw)
}

func isFlag(raw json.RawMessage) bool {
	_, ok := flag(raw)
	return ok
}

func isString(raw json.RawMessage) bool {
	_, ok := stringOf(raw)
	return ok
}

func isObject(raw json.RawMessage) bool { return raw[0] == '{' }

func isListOf(element form) form {
	return func(raw json.RawMessage) bool {
		list, err := array(raw)
		return err == nil && !slices.ContainsFunc(list, not(element))
	}
}

func isStop(raw json.RawMessage) bool { return isString(raw) || isListOf(isString)(raw) }

func isBias(raw json.RawMessage) bool {
	bias, err := parseObject(raw)
	return err == nil && !slices.ContainsFunc(slices.Collect(maps.Values(bias)), not[json.RawMessage](isAnyNumber))
}

func orNull(f form) form {
	return func(raw json.RawMessage) bool { return string(raw) == "null" || f(raw) }
}
