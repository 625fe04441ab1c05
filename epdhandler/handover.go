package epdhandler

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

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

// whyNoHandOver names the member of a request that keeps prefill from handing it over to
// decode, and is empty if there is none.
func whyNoHandOver(r *body.Body, chat bool) string {
	for _, w := range withoutHandOver {
		if w.holds(r, chat) {
			return w.field.String()
		}
	}
	return ""
}

// prefills reports whether the request has a prefill of its own.
func (x *exchange) prefills() bool { return x.h.prefill != nil && x.direct == "" }

// encodes reports whether encoders are of use to the request. Where decode computes the
// prompt in place of prefill, they are only if it gets the embeddings too. It does not get
// those that are pushed: that is to instances of prefill.
func (x *exchange) encodes() bool {
	return len(x.media.Items()) > 0 && (x.direct == "" || x.h.DecodeHasEmbeddings && x.h.consumers == nil)
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

// lasting is how long KV blocks may wait for decode. Prefill frees them when the lease is
// over, though decode still reads them then, and whatever is in them. Decode renews the
// lease, but has done so a sixth of it after it has got the request at the latest, and
// before that it has to be dialed and to load the media, for which there is another sixth.
func (h *Handler) lasting() time.Duration { return time.Duration(h.KVLease) * 2 / 3 }

var errStale = errors.New("the KV blocks became too old while the request waited for an instance (kv_lease)")

// guardBlocks has the age of the KV blocks that a call brings to decode looked at when it
// has a slot. If they are too old, the call gives the slot back and ends, and a prefill
// makes new ones. When those become too old as well, decode computes the prompt itself:
// a request that always comes after others would else never get to its end.
//
// A request with blocks may wait for as long as they last: a refusal would waste them.
func (x *exchange) guardBlocks(c *call, cancel func()) {
	if x.kv == nil {
		return
	}
	c.patience = x.h.lasting()
	c.ready = func() bool {
		if x.kv == nil || time.Since(x.made) < x.h.lasting() {
			return true
		}
		if x.remade {
			handOvers.WithLabelValues(handOverExpired).Inc()
			x.kv = nil
			c.body = x.decodeBody()
			return true
		}
		handOvers.WithLabelValues(handOverExpired).Inc()
		x.remade, c.stale = true, true
		cancel()
		return false
	}
}

// What becomes of hand-overs, in metrics.
const (
	handOverBlocks  = "blocks"  // prefill has handed blocks over
	handOverNone    = "none"    // it has answered without
	handOverExpired = "expired" // the blocks were too old when decode had room
	handOverSkipped = "skipped" // the request can have none
)

// noteHandOver notes whether an answer of an instance of prefill had KV blocks, and logs
// when that changes. Decode computes the prompt anew without them, so that nobody else
// would notice. A token that ended the answer says nothing of an instance: before 0.32,
// vLLM hands over only what ended by max_tokens.
func (p *pool) noteHandOver(address string, blocks bool, answer []byte) {
	h := historyOf(instance{p.stage, address})
	result := handOverBlocks
	if !blocks {
		result = handOverNone
	}
	handOvers.WithLabelValues(result).Inc()
	h.mu.Lock()
	if blocks {
		h.blocks++
	} else {
		h.none++
	}
	changed := h.withholds == blocks && (blocks || finishReason(answer) != "stop")
	if changed {
		h.withholds = !blocks
	}
	h.mu.Unlock()
	upstream := zap.String("upstream", p.name(address))
	switch {
	case changed && blocks:
		p.logger.Info("prefill hands KV blocks over again", upstream)
	case changed:
		p.logger.Warn("prefill hands no KV blocks over, so decode computes every prompt again; see its --kv-transfer-config", upstream)
	}
}

// finishReason is why an answer ended.
func finishReason(answer []byte) string {
	var a struct {
		Choices []struct {
			FinishReason string `json:"finish_reason"`
		}
	}
	if json.Unmarshal(answer, &a) != nil || len(a.Choices) == 0 {
		return ""
	}
	return a.Choices[0].FinishReason
}
