package fakevllm

import "encoding/json"

// checkOptions checks what vLLM's request models check before everything else.
func (x *exchange) checkOptions() error {
	if err := x.checkForms(); err != nil {
		return err
	}
	o := x.members
	if !falsy(o["stream_options"]) && !o.streams() {
		return badRequest("Stream options can only be defined when `stream=True`.")
	}
	if err := o.checkLogprobs(x.isChat()); err != nil {
		return err
	}
	if err := o.checkConstraints(); err != nil || !x.isChat() {
		return err
	}
	if !falsy(o["continue_final_message"]) && !falsy(o["add_generation_prompt"]) {
		return badRequest("Cannot set both `continue_final_message` and `add_generation_prompt` to True.")
	}
	return o.checkTools()
}

// streams reports whether stream is true for Python, before pydantic has read the member: "no" is true.
func (o object) streams() bool { return !falsy(o["stream"]) }

// checkLogprobs checks the numbers of log probabilities, where -1 means all.
func (o object) checkLogprobs(isChat bool) error {
	for _, name := range logprobCounts(isChat) {
		if n := lax(o[name]); n < -1 {
			return badRequest("`%s` must be a positive value or -1.", name)
		}
	}
	if lax(o["prompt_logprobs"]) != 0 && o.streams() {
		return badRequest("`prompt_logprobs` are not available when `stream=True`.")
	}
	if isChat && lax(o["top_logprobs"]) != 0 && falsy(o["logprobs"]) {
		return badRequest("when using `top_logprobs`, `logprobs` must be set to true.")
	}
	return nil
}

// logprobCounts are the options that set the number of log probabilities of a token. In a
// chat, logprobs is a boolean.
func logprobCounts(isChat bool) []string {
	if isChat {
		return []string{"prompt_logprobs", "top_logprobs"}
	}
	return []string{"prompt_logprobs", "logprobs"}
}

// shortened is the begin of a value, for error messages.
func shortened(raw json.RawMessage) []byte { return raw[:min(len(raw), 80)] }
