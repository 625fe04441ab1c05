package epdhandler

import (
	"cmp"
	"math"

	caddytokens "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-epd/caddy-epd/caddyfile"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("epd_proxy", parseCaddyfile)
	httpcaddyfile.RegisterDirectiveOrder("epd_proxy", httpcaddyfile.Before, "reverse_proxy")
}

// options lists everything that the directive's block can contain.
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
		"media_sources":         caddyfile.List(&h.MediaSources, "data: https://*.example.com"),
		"max_memory":            caddyfile.Size(&h.MaxMemory),
		"body_timeout":          caddyfile.Duration(&h.BodyTimeout),
		"max_body_size":         caddyfile.Size(&h.MaxBodySize),
		"max_media_items":       caddyfile.Int(&h.MaxMediaItems),
		"handle_errors":         caddyfile.Flag(&h.HandleErrors),
	}
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler. Syntax, with the other options that
// docs/configuration.md explains:
//
//	epd_proxy [<matcher>] {
//		encode  <upstreams...> { <options of reverse_proxy> }
//		prefill <upstreams...> { <options of reverse_proxy> } | disable
//		decode  <upstreams...> { <options of reverse_proxy> }
//		<options>
//	}
//
// Upstreams are given as in reverse_proxy, as host:port or as URLs, separated by spaces. encode
// and decode are required. "prefill disable" (or none, or "") is the same as no prefill at all:
// decode then does prefill as well. The block of a pool may also have "health_checks off".
//
// FinalizeUnmarshalCaddyfile of the pools must be called afterwards if they have "handle_response".
func (h *Handler) UnmarshalCaddyfile(d *caddytokens.Dispenser) error {
	at, err := caddyfile.Parse(d, h.options())
	if err != nil {
		return err
	}
	// Caddy validates the configuration again when it loads it; errors found here have a line number.
	complete := *h
	complete.MaxMemory = cmp.Or(h.MaxMemory, math.MaxInt64) // the default depends on the machine that runs Caddy
	complete.setDefaults()
	if option, err := complete.validate(); err != nil {
		return at(option).WrapErr(err)
	}
	return nil
}

func parseCaddyfile(helper httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	h := new(Handler)
	if err := h.UnmarshalCaddyfile(helper.Dispenser); err != nil {
		return nil, err
	}
	for _, pool := range []*reverseproxy.Handler{h.Encode, h.Prefill, h.Decode} {
		if pool != nil {
			if err := pool.FinalizeUnmarshalCaddyfile(helper); err != nil {
				return nil, err
			}
		}
	}
	return h, nil
}
