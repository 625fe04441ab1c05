// Package handover is the contract by which prefill hands KV blocks over to decode: what prefill is
// asked, what its answer says, what decode is told, and which requests cannot have it. It knows
// nothing of pools, nor of what is done when a request fails.
package handover

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Blocks is what a prefill hands over to decode.
type Blocks struct {
	Params []byte    // kv_transfer_params for decode; nil: it handed nothing over
	Made   time.Time // when prefill answered
	Cached int       // tokens of the prompt that prefill had cached, -1 if it does not say
}

// A Connector is a way in which engines hand KV blocks over, as their --kv-transfer-config says.
type Connector interface {
	// Request returns the request that has a prompt prefilled, with what goes along of the embeddings,
	// and what reads its answer. Each is new: what an engine may have seen must not be sent to another.
	Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader)
}

// A Reader reads the answer of the instance at an address to what it was sent at this time.
type Reader func(ctx context.Context, answer []byte, address string, sent time.Time) (Blocks, error)

// NIXL is NixlConnector, and others whose prefill answers with kv_transfer_params for decode.
type NIXL struct{}

// stub tells a prefill engine that another one will decode, and to keep the KV blocks for it.
const stub = `{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}`

// Request implements Connector.
func (NIXL) Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader) {
	return request(prompt, body.Set(body.KVTransferParams, stub), embeddings), readNIXL
}

func readNIXL(_ context.Context, answer []byte, _ string, _ time.Time) (Blocks, error) {
	blocks := Blocks{Made: time.Now(), Cached: -1}
	b, err := body.Parse(answer)
	if err != nil {
		return blocks, err
	}
	params := b.Value(body.KVTransferParams)
	switch {
	case body.Given(params) && !body.IsObject(params):
		return blocks, errors.New("kv_transfer_params is no object")
	case len(b.Members(body.KVTransferParams)) > 0:
		blocks.Params, blocks.Cached = params, cachedTokens(b)
	}
	return blocks, nil
}

// Probe returns a request for a completion that hands blocks over. [Answers] tells if its answer does.
func Probe(model, prompt string) []byte {
	text, _ := json.Marshal(map[string]any{ // strings and numbers
		"model": model, "prompt": prompt, "max_tokens": 1, "ignore_eos": true, "stream": false,
		body.KVTransferParams: json.RawMessage(stub),
	})
	return text
}

// Answers reports whether an answer of prefill has KV blocks for decode.
func Answers(answer []byte) bool {
	blocks, _ := readNIXL(context.Background(), answer, "", time.Time{})
	return blocks.Params != nil
}

// request is the client's body for prefill: the whole prompt, one token, no stream, and more edits.
func request(b *body.Body, more ...body.Edit) *body.Segments {
	edits := append([]body.Edit{
		body.Set("stream", "false"),
		body.Remove("stream_options"),
		body.Remove("min_tokens"), // vLLM refuses a request that must have more tokens than it may have
		body.Set("max_tokens", "1"),
	}, more...)
	for _, name := range []string{"max_completion_tokens", "n"} {
		if b.Value(name) != nil {
			edits = append(edits, body.Set(name, "1"))
		}
	}
	// a call of a tool does not fit in one token, and vLLM fails instead of stopping
	if v := b.Value("tool_choice"); body.IsObject(v) || body.IsString(v, "required") {
		edits = append(edits, body.Set("tool_choice", `"none"`))
	}
	return b.Rewrite(edits...)
}

// cachedTokens returns how many tokens of the prompt prefill had cached, -1 if it does not say.
func cachedTokens(answer *body.Body) int {
	var usage struct {
		Details struct {
			Cached *int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
	if json.Unmarshal(answer.Value("usage"), &usage) == nil && usage.Details.Cached != nil {
		return *usage.Details.Cached
	}
	var cached *int // from vLLM 0.32 on
	if json.Unmarshal(answer.Members(body.KVTransferParams).Value("remote_prefill_cached_tokens"), &cached) == nil && cached != nil {
		return *cached
	}
	return -1
}

// FinishReason returns why an answer ended, empty if it does not say. Before 0.32, vLLM hands over
// only what ends by max_tokens: "length".
func FinishReason(answer []byte) string {
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
