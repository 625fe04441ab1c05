package fakevllm

import (
	"math"
	"strconv"
)

// spans are the ranges that vLLM's SamplingParams accepts.
var spans = []struct {
	name        string
	least, most float64
}{
	{"n", 1, 16384},
	{"presence_penalty", -2, 2},
	{"frequency_penalty", -2, 2},
	{"repetition_penalty", math.SmallestNonzeroFloat64, math.MaxFloat64},
	{"temperature", 0, 2},
	{"top_p", math.SmallestNonzeroFloat64, 1},
	{"top_k", -1, math.MaxFloat64},
	{"min_p", 0, 1},
	{"min_tokens", 0, math.MaxFloat64},
}

// greedy is the temperature below which vLLM does not sample.
const greedy = 1e-5

// checkSampling checks the options that vLLM checks after it has rendered the prompt.
func (x *exchange) checkSampling() error {
	o := x.members
	for _, s := range spans {
		if n, given := number(o[s.name]); given && !(s.least <= n && n <= s.most) && (s.name == "n" || !x.beams()) {
			return badRequest("%s must be in [%g, %g], got %s.", s.name, s.least, s.most, o[s.name])
		}
	}
	if x.beams() {
		if x.isChat() || !isTrue(o["stream"]) {
			return nil
		}
		return badRequest("Streaming is not currently supported with beam search")
	}
	if err := x.checkTokens(); err != nil {
		return err
	}
	for token := range o.biases() {
		if _, err := strconv.Atoi(token); err != nil {
			return badRequest("logit_bias contains key(s) that cannot be converted to integer token IDs: [%q]", token)
		}
	}
	if t, given := number(o["temperature"]); given && t < greedy && lax(o["n"]) > 1 {
		return badRequest("n must be 1 when using greedy sampling, got %s.", o["n"])
	}
	return nil
}

// checkTokens checks the minimum and maximum number of tokens of an answer. With echo, the
// maximum of a completion may be 0.
func (x *exchange) checkTokens() error {
	o, most := x.members, x.maxTokens()
	if most == 0 && !x.isChat() && isTrue(o["echo"]) {
		most = 1
	}
	if most < 1 {
		return badRequest("max_tokens must be at least 1, got %d.", most)
	}
	if least := lax(o["min_tokens"]); least > most {
		return badRequest("min_tokens must be less than or equal to max_tokens=%d, got %d.", most, least)
	}
	return nil
}

// maxTokens is the maximum number of tokens of an answer.
func (x *exchange) maxTokens() int {
	o, most := x.members, math.MaxInt
	if limit := x.engine.options.MaxModelLen; limit > 0 {
		most = limit - min(limit, x.length())
	}
	switch {
	case x.isChat() && o.has("max_completion_tokens"):
		return min(most, lax(o["max_completion_tokens"]))
	case o.has("max_tokens"):
		return min(most, lax(o["max_tokens"]))
	case !x.isChat():
		return min(most, 16)
	}
	return most
}

// biases are the entries of logit_bias.
func (o object) biases() object {
	biases, _ := parseObject(o["logit_bias"])
	return biases
}
