// Package handover is the contract by which prefill hands KV blocks over to decode: what prefill is
// asked, what its answer says, what decode is told, and which requests cannot have it. It knows
// nothing of pools, nor of what is done when a request fails.
package handover

import (
	"bytes"
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
	// Request returns the request that has a prompt prefilled, with what goes along of the
	// embeddings, and what reads its answer. It makes a new one each time: what an engine may
	// have seen must not be sent to another.
	Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader)
}

// A Reader reads the answer of the instance at an address to what it was sent at this time.
type Reader func(ctx context.Context, answer []byte, address string, sent time.Time) (Blocks, error)

// NIXL is the connector whose prefill answers with kv_transfer_params for decode: NixlConnector,
// and others that do so.
type NIXL struct{}

// stub tells a prefill engine that another one will decode, and to keep the KV blocks for it.
const stub = `{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}`

// Request implements Connector.
func (NIXL) Request(prompt *body.Body, embeddings body.Edit) (*body.Segments, Reader) {
	return request(prompt, body.Set(body.KVTransferParams, stub), embeddings), readNIXL
}

func readNIXL(_ context.Context, answer []byte, _ string, _ time.Time) (Blocks, error) {
	made := time.Now()
	params, cached, err := transferParams(answer)
	return Blocks{params, made, cached}, err
}

// Probe returns a request for a completion of a prompt that hands its blocks over. [Answers] tells
// whether the answer does.
func Probe(model, prompt string) []byte {
	text, _ := json.Marshal(map[string]any{ // strings and numbers
		"model": model, "prompt": prompt, "max_tokens": 1, "ignore_eos": true, "stream": false,
		body.KVTransferParams.String(): json.RawMessage(stub),
	})
	return text
}

// Answers reports whether an answer of prefill has KV blocks for decode.
func Answers(answer []byte) bool {
	params, _, err := transferParams(answer)
	return err == nil && params != nil
}

// request is the client's body for a prefill engine: the whole prompt, one token, no stream,
// and what the connectors want.
func request(b *body.Body, connectors ...body.Edit) *body.Segments {
	edits := append([]body.Edit{
		body.Set(body.Stream, "false"),
		body.Remove(body.StreamOptions),
		body.Remove(body.MinTokens), // vLLM refuses a request that must have more tokens than it may have
		body.Set(body.MaxTokens, "1"),
	}, connectors...)
	for _, f := range []body.Field{body.MaxCompletionTokens, body.N} {
		if b.Has(f) {
			edits = append(edits, body.Set(f, "1"))
		}
	}
	// a call of a tool does not fit in one token, and vLLM fails instead of stopping
	if v := b.Value(body.ToolChoice); body.IsObject(v) || body.IsString(v, "required") {
		edits = append(edits, body.Set(body.ToolChoice, `"none"`))
	}
	return b.Rewrite(edits...)
}

// transferParams returns the kv_transfer_params of a prefill's answer, nil if
// there are none, and how many tokens of the prompt it had cached, -1 if it does not say.
func transferParams(answer []byte) (params []byte, cached int, err error) {
	b, err := body.Parse(answer)
	if err != nil {
		return nil, -1, err
	}
	params = b.Value(body.KVTransferParams)
	switch {
	case params == nil || body.IsNull(params):
		return nil, -1, nil
	case !body.IsObject(params):
		return nil, -1, errors.New("kv_transfer_params is no object")
	case len(bytes.TrimSpace(params[1:len(params)-1])) == 0:
		return nil, -1, nil
	}
	return params, cachedTokens(b, params), nil
}

// cachedTokens returns how many tokens of the prompt prefill had cached, -1 if it does not say.
func cachedTokens(answer *body.Body, kv []byte) int {
	var usage struct {
		Details struct {
			Cached *int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
	var params struct {
		Cached *int `json:"remote_prefill_cached_tokens"` // from vLLM 0.32 on
	}
	if json.Unmarshal(answer.Value(body.Usage), &usage) == nil && usage.Details.Cached != nil {
		return *usage.Details.Cached
	}
	if json.Unmarshal(kv, &params) == nil && params.Cached != nil {
		return *params.Cached
	}
	return -1
}

// EndedByStop reports whether the token that an answer has is the last one for another reason than
// that it may have no more. Before 0.32, vLLM hands over only what ends by max_tokens.
func EndedByStop(answer []byte) bool { return finishReason(answer) == "stop" }

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
