package epdhandler

import (
	"bytes"
	"net/http"
	"slices"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
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
	sound := x.body.Option(body.MMProcessorKwargs, soundOption)
	switch {
	case sound != nil && !slices.Contains([]string{"true", "false", "null"}, string(sound)):
		return wrong("mm_processor_kwargs."+soundOption, "%s must be true, false or null", soundOption)
	case x.h.consumers != nil && x.body.Option(body.ECTransferParams, "ec_items") != nil && x.h.TrustClients:
		return wrong("ec_transfer_params.ec_items", "ec_items cannot be sent to a proxy that makes its own (ec_consumers)")
	case x.h.TrustClients:
		return nil
	case x.namesMedia():
		return wrong("mm_processor_kwargs", "mm_processor_kwargs may hold numbers, booleans and objects of those: text, and options that name media or files, are for trusted clients only")
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

// fetching are options that engines take for media, or hand on to what loads the model's files.
var fetching = []string{
	"text", "image", "images", "audio", "audios", "video", "videos",
	"cache_dir", "code_revision", "force_download", "local_files_only", "proxies", "resume_download",
	"revision", "subfolder", "token", "trust_remote_code", "use_auth_token",
}

// namesMedia reports whether mm_processor_kwargs could make an engine fetch anything. vLLM hands
// them to a processor of Hugging Face's, which takes any text that it finds among media for a URL or
// a file. Engines since 0.31 refuse all of them, unless they are told to trust them.
func (x *exchange) namesMedia() bool {
	return slices.ContainsFunc(x.body.Options(body.MMProcessorKwargs), func(e body.Entry) bool {
		return body.HoldsText(e.Value) || bytes.HasPrefix(e.Name, []byte(`"_`)) ||
			slices.ContainsFunc(fetching, func(name string) bool { return body.IsString(e.Name, name) })
	})
}
