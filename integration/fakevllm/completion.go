package fakevllm

import (
	"encoding/json"
	"time"
)

// completion is the JSON of an answer, or of a stream's chunk.
type completion struct {
	ID                string   `json:"id"`
	Object            string   `json:"object"`
	Created           int64    `json:"created"`
	Model             string   `json:"model"`
	SystemFingerprint string   `json:"system_fingerprint"` // the name of the engine
	Choices           []choice `json:"choices"`
	Usage             *usage   `json:"usage,omitempty"`
	KVTransferParams  any      `json:"kv_transfer_params,omitempty"`
	ECTransferParams  any      `json:"ec_transfer_params,omitempty"`
}

// choice has Message in a chat, Delta in a stream of a chat, otherwise Text.
type choice struct {
	Index        int      `json:"index"`
	Message      *message `json:"message,omitempty"`
	Delta        *message `json:"delta,omitempty"`
	Text         *string  `json:"text,omitempty"`
	FinishReason *string  `json:"finish_reason"`
}

type message struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

type usage struct {
	PromptTokens     int            `json:"prompt_tokens"`
	TotalTokens      int            `json:"total_tokens"`
	CompletionTokens int            `json:"completion_tokens"`
	PromptDetails    *promptDetails `json:"prompt_tokens_details,omitempty"`
}

type promptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

// completion is an answer that is not a stream.
func (x *exchange) completion(finish string, texts ...string) completion {
	c := x.envelope()
	c.Usage = x.usage(texts)
	c.KVTransferParams = json.RawMessage("null") // as in vLLM, where answers have the member and chunks do not
	c.Object = "text_completion"
	if x.isChat() {
		c.Object = "chat.completion"
	}
	for n := range texts {
		own := choice{Index: n, FinishReason: &finish}
		if x.isChat() {
			own.Message = &message{Role: "assistant", Content: &texts[n]}
		} else {
			own.Text = &texts[n]
		}
		c.Choices = append(c.Choices, own)
	}
	return c
}

// envelope returns the members that all answers and chunks of a request have in common.
func (x *exchange) envelope() completion {
	prefix := "cmpl-"
	if x.isChat() {
		prefix = "chatcmpl-"
	}
	return completion{
		ID:                prefix + x.id,
		Created:           time.Now().Unix(),
		Model:             x.engine.options.Model,
		SystemFingerprint: x.engine.Name(),
		Choices:           []choice{},
	}
}

// usage counts four bytes of the body as a token. All tokens of a prompt that was prefilled
// elsewhere, but one, count as cached.
func (x *exchange) usage(texts []string) *usage {
	prompt, completion := len(x.body)/4, 0
	for _, text := range texts {
		completion += len(tokens(text))
	}
	u := &usage{prompt, prompt + completion, completion, nil}
	if o := x.engine.options; o.PromptDetails {
		u.PromptDetails = &promptDetails{o.CachedTokens}
		if x.bringsKV() && o.Role == Decode {
			u.PromptDetails.CachedTokens = prompt - 1
		}
	}
	return u
}
