package fakevllm

import (
	"encoding/json"
	"maps"
)

// parts are the sub-requests that vLLM makes of a request, in the order of their choices: one
// for each prompt of a completion, and for each of n samples. Each has its own KV blocks.
func parts(o object) []object {
	var all []object
	for _, prompt := range prompts(o["prompt"]) {
		part := maps.Clone(o)
		if prompt != nil {
			part["prompt"] = prompt
		}
		for range max(1, lax(o["n"])) {
			all = append(all, part)
		}
	}
	return all
}

// prompts are the prompts of a completion: a list of numbers is one prompt. There is at least one.
func prompts(raw json.RawMessage) []json.RawMessage {
	list, err := array(raw)
	if err != nil || len(list) == 0 || isNumber(list[0]) {
		return []json.RawMessage{raw}
	}
	return list
}

// scoresPrompt reports whether log probabilities of the prompt are wanted: only the engine that
// computes the prompt has them. In a chat, echo is enough, because top_logprobs is 0 by default.
func (x *exchange) scoresPrompt() bool {
	o := x.members
	echo := isTrue(o["echo"]) && (x.isChat() || o.has("logprobs"))
	return o.has("prompt_logprobs") || echo
}

// beams reports whether there is a beam search; its sub-requests have no transfer parameters.
func (x *exchange) beams() bool { return isTrue(x.members["use_beam_search"]) }

// handsOver reports whether prefill can hand the prompt over to decode.
func (x *exchange) handsOver() bool {
	o := x.members
	return len(parts(o)) == 1 && lax(o["best_of"]) <= 1 && !x.scoresPrompt() && !x.beams() &&
		!o.has("truncate_prompt_tokens") && !o.has("prompt_embeds")
}

// answers are the texts of the choices.
func (p prompt) answers(o object) (texts []string) {
	for _, part := range parts(o) {
		if own, err := readPrompt(part, false); err == nil && !o.has("messages") {
			p = own
		}
		texts = append(texts, p.answer(o))
	}
	return texts
}
