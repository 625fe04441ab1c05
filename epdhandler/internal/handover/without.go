package handover

import (
	"bytes"
	"slices"
	"strconv"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// A prefill hands over the KV blocks of one prompt, once, to one reader. These members of
// a request make vLLM split it into several, or compute the prompt at decode whatever it is
// given. Such a request gets no prefill: decode does all of it. Sharing a hand-over would
// let it read blocks that are free or another prompt's; one for each part would need the
// parts to be requests of their own. Facts are those of vLLM 0.32.0, except where another
// release is named.
//
// vLLM reads numbers and booleans in several forms ("2" and 2.0 are 2, "no" is false). What
// is in none that certainly means "no" counts as "yes", which costs time and nothing else.
var withoutHandOver = []struct {
	field body.Field
	holds func(r *body.Body, chat bool) bool
}{
	// Each prompt is a request of its own in the engine. The answer of prefill has the
	// parameters of the first one only, and decode would apply them to all.
	{body.Prompt, func(r *body.Body, chat bool) bool { return !chat && body.IsSeveral(r.Value(body.Prompt)) }},

	// A prompt of embeddings has no tokens, and NixlConnector loads blocks by tokens. A list
	// of embeddings, or a prompt beside them, is several prompts.
	{body.PromptEmbeds, func(r *body.Body, chat bool) bool { return !chat && given(r.Value(body.PromptEmbeds)) }},

	// Each sample is a request of its own that reads the blocks. The first one to have read
	// them frees them.
	{body.N, func(r *body.Body, _ bool) bool { return !one(r.Value(body.N)) }},

	// The same, before V1 of the engine.
	{body.BestOf, func(r *body.Body, _ bool) bool { return !one(r.Value(body.BestOf)) }},

	// Each step of each beam is a request of its own, none of which has transfer parameters.
	{body.UseBeamSearch, func(r *body.Body, _ bool) bool { return !no(r.Value(body.UseBeamSearch)) }},

	// They come with computing the prompt, so decode ignores the blocks and computes it
	// again. Older releases read the blocks and fail.
	{body.PromptLogprobs, func(r *body.Body, _ bool) bool { return given(r.Value(body.PromptLogprobs)) }},

	// In a chat it means prompt_logprobs = top_logprobs, which is 0 if it is not there and
	// still given; in a completion prompt_logprobs = logprobs. Without these an echo of a
	// completion is text only, and can have a hand-over.
	{body.Echo, func(r *body.Body, chat bool) bool {
		return !no(r.Value(body.Echo)) && (chat || given(r.Value(body.Logprobs)))
	}},

	// How much of the prompt is left may depend on max_tokens, which is another at prefill:
	// before 0.32 always with -1. Blocks of another prompt would be read.
	{body.TruncatePromptTokens, func(r *body.Body, _ bool) bool { return given(r.Value(body.TruncatePromptTokens)) }},
}

// Prevents names the member of a request that keeps prefill from handing it over to
// decode, and is empty if there is none.
func Prevents(r *body.Body, chat bool) string {
	for _, w := range withoutHandOver {
		if w.holds(r, chat) {
			return w.field.String()
		}
	}
	return ""
}

// given reports whether a member is there and not null.
func given(value []byte) bool { return value != nil && !body.IsNull(value) }

// one reports whether a number is 1, which is what it is by default.
func one(value []byte) bool {
	if !given(value) {
		return true
	}
	if len(value) > maxNumber {
		return false
	}
	n, err := strconv.ParseFloat(string(bytes.Trim(value, `"`)), 64)
	return err == nil && n == 1
}

// maxNumber is the longest form of a number that is read.
const maxNumber = 100

// no reports whether a boolean is false, which is what it is by default.
func no(value []byte) bool {
	if !given(value) {
		return true
	}
	word := bytes.ToLower(bytes.Trim(value[:min(len(value), maxNumber)], `"`))
	return slices.Contains([]string{"false", "0", "0.0", "no", "off", "f", "n"}, string(word))
}
