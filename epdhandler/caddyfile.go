package epdhandler

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/caddyfile"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("epd_proxy", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("epd_proxy", httpcaddyfile.Before, "reverse_proxy")
}

// options is the one table of what can stand in the directive's block.
func (h *Handler) options() caddyfile.Options {
	return caddyfile.Options{
		"encode":  caddyfile.Pool(&h.Encode),
		"prefill": caddyfile.OptionalPool(&h.Prefill),
		"decode":  caddyfile.Pool(&h.Decode),

		"retries":               caddyfile.OptionalInt(&h.Retries),
		"retry_budget":          caddyfile.OptionalInt(&h.RetryBudget),
		"max_ejected":           caddyfile.OptionalInt(&h.MaxEjected),
		"encode_concurrency":    caddyfile.Int(&h.EncodeConcurrency),
		"encode_optional":       caddyfile.Flag(&h.EncodeOptional),
		"encode_timeout":        caddyfile.Duration(&h.EncodeTimeout),
		"prefill_timeout":       caddyfile.Duration(&h.PrefillTimeout),
		"kv_lease":              caddyfile.Duration(&h.KVLease),
		"kv_bootstrap":          caddyfile.Map(&h.KVBootstrap, "p1:8002 http://p1:8998"),
		"stream_start_timeout":  caddyfile.Duration(&h.StreamStartTimeout),
		"stream_idle_timeout":   caddyfile.Duration(&h.StreamIdleTimeout),
		"stream_keepalive":      caddyfile.Duration(&h.StreamKeepalive),
		"encode_limit":          caddyfile.Int(&h.EncodeLimit),
		"prefill_limit":         caddyfile.Int(&h.PrefillLimit),
		"decode_limit":          caddyfile.Int(&h.DecodeLimit),
		"queue_size":            caddyfile.OptionalInt(&h.QueueSize),
		"queue_timeout":         caddyfile.Duration(&h.QueueTimeout),
		"encode_batch":          caddyfile.Int(&h.EncodeBatch),
		"references":            caddyfile.Flag(&h.References),
		"uuid_salt":             caddyfile.String(&h.UUIDSalt, "{http.auth.user.id}"),
		"ec_consumers":          caddyfile.Lists(&h.ECConsumers, "pd1:8003 tcp://pd1:14579"),
		"decode_has_embeddings": caddyfile.Flag(&h.DecodeHasEmbeddings),
		"trust_clients":         caddyfile.Flag(&h.TrustClients),
		"profiling":             caddyfile.Flag(&h.Profiling),
		"media_sources":         caddyfile.List(&h.MediaSources, "data: https://*.example.com", func(s string) error { _, err := media.ParseSource(s); return err }),
		"max_memory":            caddyfile.Size(&h.MaxMemory),
		"body_timeout":          caddyfile.Duration(&h.BodyTimeout),
		"max_body_size":         caddyfile.Size(&h.MaxBodySize),
		"max_media_items":       caddyfile.Int(&h.MaxMediaItems),
	}
}

// parseCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	epd_proxy [<matcher>] {
//		encode  <upstreams...> {
//			<options of reverse_proxy...>
//		}
//		prefill disable | <upstreams...> {
//			<options of reverse_proxy...>
//		}
//		decode  <upstreams...> {
//			<options of reverse_proxy...>
//		}
//
//		retries              <number>
//		retry_budget         <percent>
//		max_ejected          <percent>
//		encode_concurrency   <number>
//		encode_optional
//		encode_timeout       <duration>
//		prefill_timeout      <duration>
//		kv_lease             <duration>
//		kv_bootstrap {
//			<upstream> <http://host:port>
//		}
//		stream_start_timeout <duration>
//		stream_idle_timeout  <duration>
//		stream_keepalive     <duration>
//		encode_limit         <number>
//		prefill_limit        <number>
//		decode_limit         <number>
//		queue_size           <number>
//		queue_timeout        <duration>
//		encode_batch         <number>
//		references
//		uuid_salt            <text with placeholders>
//		ec_consumers {
//			<upstream> <control addresses...>
//		}
//		decode_has_embeddings
//		trust_clients
//		profiling
//		media_sources        <schemes or scheme://hosts...>
//		max_memory           <size>
//		body_timeout         <duration>
//		max_body_size        <size>
//		max_media_items      <number>
//	}
//
// Upstreams are given as in reverse_proxy, as host:port or as URLs, separated by
// spaces. encode and decode are required. "prefill disable" (or none, or "") is the
// same as no prefill at all: the decode pool then does prefill as well.
func parseCaddyfile(helper httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	start := *helper.Dispenser // errors about the whole block stand at its name
	start.Next()
	h := new(Handler)
	if err := caddyfile.Parse(helper, h.options(), "encode", "decode"); err != nil {
		return nil, err
	}
	if err := h.contradictions(); err != nil {
		return nil, start.WrapErr(err)
	}
	return h, nil
}
