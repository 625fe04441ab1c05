package fakevllm

import (
	"encoding/json"
	"slices"
	"strconv"
)

const (
	vocabulary  = 151_936 // tokens of Qwen2.5-VL-3B
	maxLogprobs = 20      // vLLM's default
)

// verify checks what vLLM checks only when it hands the request to its engine.
func (x *exchange) verify() error {
	o := x.members
	if x.beams() {
		return nil
	}
	if err := o.verifyLogprobs(x.isChat()); err != nil {
		return err
	}
	if err := o.verifyTokens(); err != nil {
		return err
	}
	return o.verifyConstraint()
}

// verifyTokens checks that token ids are in the vocabulary.
func (o object) verifyTokens() error {
	for token := range o.biases() {
		if n, err := strconv.Atoi(token); err != nil || n < 0 || n >= vocabulary {
			return lateRefusal("token_id(s) [%s] in logit_bias contain out-of-vocab token ids. Vocabulary size: %d", token, vocabulary)
		}
	}
	if allowed, err := array(o["allowed_token_ids"]); err == nil && len(allowed) == 0 {
		return lateRefusal("allowed_token_ids is not None and empty!")
	}
	for _, name := range []string{"stop_token_ids", "allowed_token_ids"} {
		if tokens, _ := array(o[name]); slices.ContainsFunc(tokens, not(isToken)) {
			return lateRefusal("%s contains out-of-vocab token ids. Vocabulary size: %d", name, vocabulary)
		}
	}
	return nil
}

func isToken(raw json.RawMessage) bool {
	n, _ := number(raw)
	return 0 <= n && n < vocabulary
}

// verifyLogprobs limits the number of log probabilities; -1, which means all, is allowed.
func (o object) verifyLogprobs(isChat bool) error {
	for _, name := range logprobCounts(isChat) {
		if n := lax(o[name]); n > maxLogprobs || n == -1 {
			return lateRefusal("Requested %s of %d, which is greater than max allowed: %d", name, n, maxLogprobs)
		}
	}
	return nil
}
