package epdhandler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// kvStub tells a prefill engine that another one will decode, and to keep the KV
// blocks for it.
const kvStub = `{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}`

// prefill has the prompt prefilled, if there is a pool for it, with one attempt.
func (x *exchange) prefill() (f *failure) {
	if !x.prefills() || x.prefilled {
		return nil
	}
	ctx, leave := x.enter(&x.report.prefill, x.prefilling)
	defer func() { leave(f) }()
	ctx, clock, cancel := stream.Watch(ctx, stream.Limit{Option: "prefill_timeout", Time: time.Duration(x.h.PrefillTimeout)}, stream.Limit{})
	defer cancel()
	c := &call{
		method: http.MethodPost,
		path:   x.r.URL.Path,
		id:     x.attemptID(x.prefilling),
		idHead: x.engineID + "-",
		clock:  clock,
	}
	c.spends, c.alone = x.embeddings.Handles != nil || x.consumer != nil, x.alone
	handles := x.carry(body.ECTransferParams, x.embeddings.Handles)
	understand := transferParams // in the answer
	if x.h.bootstraps == nil {
		c.body = prefillBody(x.forConsumers(), body.Set(body.KVTransferParams, kvStub), handles)
	} else {
		understand = x.mooncake(ctx, c, handles)
	}
	x.pin(c, x.h.prefill)
	a, f := x.ask(ctx, x.prefilling, c)
	if c.lost {
		return x.lostOnTheWay(c)
	}
	if f == nil {
		f = x.takeOver(ctx, c, a.Body.Bytes(), understand)
	}
	if f != nil {
		x.settle(x.prefilling, f)
	}
	return f
}

// understanding finds kv_transfer_params for decode in an answer of prefill, nil if there are
// none, and how many tokens of the prompt it had cached, -1 if it does not say.
type understanding func(answer []byte) (params []byte, cached int, err error)

// takeOver keeps what prefill hands over to decode.
func (x *exchange) takeOver(ctx context.Context, c *call, text []byte, understand understanding) *failure {
	made := time.Now()
	kv, cached, err := understand(text)
	switch {
	case err != nil && ctx.Err() != nil:
		return judge(ctx, "prefill", c, new(stream.Answer), err)
	case err != nil:
		return brokenAnswer("prefill", c, err)
	}
	x.h.prefill.noteHandOver(c.upstream(), kv != nil, text)
	x.prefilling.succeeds()
	x.prefilled, x.kv, x.made, x.cached = true, kv, made, cached
	return nil
}

// attemptID is the x-request-id of an attempt: the client's, unless an engine may
// know it already.
func (x *exchange) attemptID(a *attempts) string {
	if a.reached == 0 {
		return x.engineID
	}
	return x.engineID + "-" + hex6()
}

// prefillBody is the client's body for a prefill engine: the whole prompt, one
// token, no stream, and what the connectors want.
func prefillBody(b *body.Body, connectors ...body.Edit) *body.Segments {
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

// carry sets a field to what an engine gave for it. The client's own value would
// make an engine read from any host.
func (x *exchange) carry(f body.Field, params []byte) body.Edit {
	if params == nil && x.h.TrustClients && x.body.Has(f) {
		return body.Set(f, x.body.Value(f))
	}
	if params == nil {
		return body.Remove(f)
	}
	return body.Set(f, params)
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
