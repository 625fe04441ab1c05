package epdhandler

import (
	"net/http"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

// transferFields are what tells engines where to get KV blocks and embeddings.
var transferFields = []string{body.KVTransferParams.String(), body.ECTransferParams.String()}

// checkOptions refuses what has no business in a client's request, or would be read
// differently here and there.
func (x *exchange) checkOptions() *apiError {
	wrong := func(param, format string, args ...any) *apiError {
		e := badRequest(http.StatusBadRequest, "invalid_body", format, args...)
		e.Param = param
		return e
	}
	if e := media.CheckOptions(x.body, x.h.TrustClients); e != nil {
		return mediaError(e)
	}
	switch {
	case x.h.consumers != nil && x.body.Option(body.ECTransferParams, "ec_items") != nil && x.h.TrustClients:
		return wrong("ec_transfer_params.ec_items", "ec_items cannot be sent to a proxy that makes its own (ec_consumers)")
	case x.h.TrustClients:
		return nil
	case !x.body.Has(body.Messages) && given(x.body.Value(body.PromptEmbeds)):
		return wrong("prompt_embeds", "prompt_embeds is for trusted clients only; send a prompt")
	}
	// vLLM looks here next for the transfer parameters that clients must not give
	for _, name := range transferFields {
		if x.body.Option(body.VLLMXArgs, name) != nil {
			return wrong("vllm_xargs", "vllm_xargs must not have kv_transfer_params or ec_transfer_params")
		}
	}
	return nil
}
