package handover

import (
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Prevents returns the name of a member for which a request gets no prefill, empty if there is
// none. A prefill hands over the KV blocks of one prompt, once, to one reader. With these members
// vLLM splits the request into several, or computes the prompt at decode whatever it is given;
// sharing a hand-over would let it read blocks that are free or another prompt's. Facts are those
// of vLLM 0.32.0, except where another release is named.
//
// vLLM reads numbers and booleans in several forms ("2" and 2.0 are 2, "no" is false). What
// is in none that certainly means "no" counts as "yes", which costs time and nothing else.
func Prevents(r *body.Body, chat bool) string {
	given := func(name string) bool { return body.Given(r.Value(name)) }
	switch {
	// Each prompt is a request of its own in the engine. The answer of prefill has the
	// parameters of the first one only, and decode would apply them to all.
	case !chat && body.IsSeveral(r.Value("prompt")):
		return "prompt"

	// A prompt of embeddings has no tokens, and NixlConnector loads blocks by tokens. A list
	// of embeddings, or a prompt beside them, is several prompts.
	case !chat && given("prompt_embeds"):
		return "prompt_embeds"

	// Each sample is a request of its own that reads the blocks. The first one to have read
	// them frees them.
	case !one(r.Value("n")):
		return "n"

	// The same, before V1 of the engine.
	case !one(r.Value("best_of")):
		return "best_of"

	// Each step of each beam is a request of its own, none of which has transfer parameters.
	case !no(r.Value("use_beam_search")):
		return "use_beam_search"

	// Decode computes the prompt again for them. Older releases read the blocks and fail.
	case given("prompt_logprobs"):
		return "prompt_logprobs"

	// In a chat it means prompt_logprobs = top_logprobs, which is 0 if it is not there and still given;
	// in a completion prompt_logprobs = logprobs. Without these an echo of a completion is text only.
	case !no(r.Value("echo")) && (chat || given("logprobs")):
		return "echo"

	// How much of the prompt is left may depend on max_tokens, which is another at prefill:
	// before 0.32 always with -1. Blocks of another prompt would be read.
	case given("truncate_prompt_tokens"):
		return "truncate_prompt_tokens"
	}
	return ""
}

// one reports whether a number is 1, which it is by default.
func one(value []byte) bool {
	if !body.Given(value) {
		return true
	}
	n, err := strconv.ParseFloat(scalar(value), 64)
	return err == nil && n == 1
}

// no reports whether a boolean is false, which it is by default.
func no(value []byte) bool {
	return !body.Given(value) || slices.Contains([]string{"false", "0", "0.0", "no", "off", "f", "n"}, strings.ToLower(scalar(value)))
}

// scalar returns a value without its quotes, empty if it is too long for a number or boolean.
func scalar(value []byte) string {
	if len(value) > 100 {
		return ""
	}
	return strings.Trim(string(value), `"`)
}
