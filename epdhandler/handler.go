package epdhandler

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/operate"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
)

func init() {
	caddy.RegisterModule(Handler{})
	operate.Register()
}

// Handler is a proxy in front of vLLM instances that serve a multimodal model
// with Encode-Prefill-Decode disaggregation (EPD).
//
// It serves these routes and answers 404 to all others:
//
// Route | What happens
// ------|-------------
// `POST /v1/chat/completions` | each media item is sent to an encoder, then the request to prefill (if there is such a pool), then to decode
// `POST /v1/completions` | prefill (if there is such a pool), then decode
// `GET /v1/models`, `/v1/models/{id}` | answered by decode
// `GET /health` | the last results of Caddy's health checks of the pools
// `POST /start_profile`, `/stop_profile` | with `profiling`: sent to every instance of every pool
//
// Each pool is configured as a `reverse_proxy` handler, with all its options. For options that a
// pool does not set, these defaults apply, which suit vLLM: `round_robin` load balancing; active
// health checks of `/health` every 5s, with a timeout of 5s, 3 fails and 1 pass; up to 1024 idle
// connections to each instance, kept for 2.5s, because vLLM closes them after 5s. An empty object
// at `health_checks.active` switches health checks off.
type Handler struct {
	// The instances that turn media items into embeddings: the configuration of a
	// [`reverse_proxy`](/docs/modules/http.handlers.reverse_proxy) handler. Required.
	Encode *reverseproxy.Handler `json:"encode,omitempty"`

	// The instances that compute the KV cache of the prompt: the configuration of a
	// `reverse_proxy` handler. Default: none, the decode pool does prefill as well.
	Prefill *reverseproxy.Handler `json:"prefill,omitempty"`

	// The instances that generate the answer: the configuration of a `reverse_proxy` handler. Required.
	Decode *reverseproxy.Handler `json:"decode,omitempty"`

	// How often a stage of a request (encode: each media item) is tried again on another
	// instance, after an attempt that reached an instance has failed. Failed dials do not
	// count. Default: 1. 0 turns retries off.
	Retries *int `json:"retries,omitempty"`

	// How many further attempts in a pool may fail, in percent of its requests (encode: of
	// its media items or batches), plus one per second, with a burst of ten. Once the budget
	// is spent there are no further attempts, so that a pool in which everything fails does
	// not get twice the load. Failed dials do not count. Default: 20. 0 turns the limit off.
	RetryBudget *int `json:"retry_budget,omitempty"`

	// How many instances of a pool may be ejected at the same time, in percent of those that
	// health checks find up; at most 50. An instance is ejected for a while when requests have
	// failed there and then succeeded at another instance, five times since it last succeeded.
	// Default: 50. 0 turns ejection off.
	MaxEjected *int `json:"max_ejected,omitempty"`

	// How many media items of one request are encoded at the same time. Default: 16.
	EncodeConcurrency int `json:"encode_concurrency,omitempty"`

	// How long an encoder may take for a media item before the item goes to another
	// encoder, once. Default: 60s.
	EncodeTimeout caddy.Duration `json:"encode_timeout,omitempty"`

	// How long a prefill may take. It is not retried after that: the engine may only be
	// busy, and a retry would double its load. Default: 10m.
	PrefillTimeout caddy.Duration `json:"prefill_timeout,omitempty"`

	// How long prefill keeps KV blocks that decode has not asked for yet: the engines'
	// `kv_lease_duration`. Blocks older than two thirds of it when decode has room are made
	// again. Default: 30s, as in vLLM.
	KVLease caddy.Duration `json:"kv_lease,omitempty"`

	// The bootstrap servers of prefill engines with MooncakeConnector: one URL, as decode
	// engines reach it, for each upstream of the prefill pool, such as
	// `{"p1:8002": "http://p1:8998"}`. KV blocks are then handed over as that connector expects.
	// Default: none; the answer of prefill has what decode needs, as with NixlConnector.
	KVBootstrap map[string]string `json:"kv_bootstrap,omitempty"`

	// How long decode may take until the first event of a stream. There is no limit for
	// answers that are not streamed. Default: 10m.
	StreamStartTimeout caddy.Duration `json:"stream_start_timeout,omitempty"`

	// How long a stream may be silent after its first byte. There is no limit on its whole
	// length. Default: 10m.
	StreamIdleTimeout caddy.Duration `json:"stream_idle_timeout,omitempty"`

	// How often the client of a stream gets an SSE comment during encode and prefill, so that no load
	// balancer in between closes the connection as idle, which many do after 60s. The first comment
	// commits status 200: a later failure is reported by an event with an error. Default: never.
	StreamKeepalive caddy.Duration `json:"stream_keepalive,omitempty"`

	// How many media items each encoder gets at the same time. Further items wait for the
	// first encoder that is free; requests take turns. Default: no limit.
	EncodeLimit int `json:"encode_limit,omitempty"`

	// How many requests each prefill instance gets at the same time. Further requests wait
	// for the first instance that is free. Default: with decode_limit and several prefill
	// instances, an equal share of the requests that decode has slots for; else no limit.
	PrefillLimit int `json:"prefill_limit,omitempty"`

	// How many requests each decode instance gets at the same time; a stream counts until
	// it ends. Further requests wait for the first instance that is free. Default: no limit.
	DecodeLimit int `json:"decode_limit,omitempty"`

	// How many requests may wait for each pool that has a limit. Further requests are rejected
	// with 503 and Retry-After before any work is done for them. Default: 1000. 0: no request waits.
	QueueSize *int `json:"queue_size,omitempty"`

	// How long a request may wait for an instance before it gets 503 with Retry-After. Default: 30s.
	QueueTimeout caddy.Duration `json:"queue_timeout,omitempty"`

	// Let prefill or decode encode the media items of a request themselves, instead of answering
	// 502, 503 or 504, when no encoder can be reached, or when the only one that can be reached
	// fails. If two encoders have failed at the same item, the request fails: the item may be what
	// kills them. The engines need the weights of the encoder, and the time. Default: false.
	EncodeOptional bool `json:"encode_optional,omitempty"`

	// How many images of one request may be sent to an encoder together. Images are first spread
	// over the encoders. Needs vLLM 0.31.0 or newer. Default: 1.
	EncodeBatch int `json:"encode_batch,omitempty"`

	// Send the engines that consume embeddings (prefill if there is such a pool, else decode)
	// references instead of media that have been encoded: the shapes that encoders report, and
	// a uuid. Media that occur in a request more than once are encoded once. If a consumer dies
	// or answers 500, the next attempt has the media. Needs vLLM 0.30 or newer. Default: false.
	References bool `json:"references,omitempty"`

	// What the uuids of media depend on besides the media, so that requests with different
	// salts share no embeddings: a placeholder for the tenant, such as `{http.auth.user.id}`.
	// It must be the same on all proxies in front of the same engines. Default: nothing.
	UUIDSalt string `json:"uuid_salt,omitempty"`

	// Where encoders push embeddings to with Mooncake: for each upstream of the pool that
	// consumes them (prefill if there is such a pool, else decode), the control addresses, one
	// for each data-parallel rank, such as `{"pd1:8003": ["tcp://pd1:14579"]}`. Instance and
	// rank are chosen before anything is encoded. Default: encoders do not push.
	ECConsumers map[string][]string `json:"ec_consumers,omitempty"`

	// After a prefill, also give decode the references and transfer handles of the embeddings,
	// instead of the media as the client sent them. The decode engines must then be consumers
	// of the same embeddings (`--ec-transfer-config` with the role of a consumer). It has no
	// effect without a prefill pool. Default: false.
	DecodeHasEmbeddings bool `json:"decode_has_embeddings,omitempty"`

	// Pass on what clients can use to control engines: `kv_transfer_params`, `ec_transfer_params`,
	// the `uuid` of media items, and the headers that routers use for this. A client can then make
	// an engine connect to any host, and read what other clients have sent. Default: false.
	TrustClients bool `json:"trust_clients,omitempty"`

	// Serve `POST /start_profile` and `/stop_profile`, for `vllm bench serve --profile`. They
	// are sent to every instance of every pool, so any client can slow the engines down and
	// fill their disks. Caddy's admin endpoint always has them, as `/epd/start_profile` and
	// `/epd/stop_profile`. Default: false.
	Profiling bool `json:"profiling,omitempty"`

	// Where media may come from: schemes, such as `data:`, or a scheme with a host, such
	// as `https://media.example.com` or `https://*.example.com`. Engines fetch the URLs that
	// clients send, also from hosts that only the engines can reach. Redirects must be refused
	// by the engines (`VLLM_MEDIA_URL_ALLOW_REDIRECTS=0`). Default: anywhere.
	MediaSources []string `json:"media_sources,omitempty"`

	// How much memory, in bytes, the bodies of all requests in the process may take together.
	// A request that would exceed it waits briefly, then gets 503 with Retry-After before its
	// body is read. Default: half of the memory of the machine or of Caddy's cgroup.
	MaxMemory int64 `json:"max_memory,omitempty"`

	// How long a request body may take to arrive. The timeouts of Caddy's server apply
	// as well: by default, a body may not stall for 1m. Default: 5m.
	BodyTimeout caddy.Duration `json:"body_timeout,omitempty"`

	// The largest request body that is accepted, in bytes; at most half of max_memory.
	// Default: 268435456 (256 MiB), or a quarter of max_memory if that is less.
	MaxBodySize int64 `json:"max_body_size,omitempty"`

	// How many media items a request may have. Default: 128.
	MaxMediaItems int `json:"max_media_items,omitempty"`

	// Return errors that do not come from an engine, such as those of rejected requests, full queues
	// and time limits, to Caddy's error routes (`handle_errors` in a Caddyfile), where
	// `{http.error.status_code}` and `{http.error.message}` describe them. The headers `X-Request-Id`
	// and `Retry-After` are set. Default: false, they are written in the form of OpenAI's API.
	HandleErrors bool `json:"handle_errors,omitempty"`

	process *process.Process // what all handlers share
	users   *process.Users   // of it: the handler, and its requests
	site    process.Site     // the pools

	sources   []media.Source     // MediaSources
	consumers map[string]*ranks  // ECConsumers, nil if there are none
	connector handover.Connector // between prefill and decode

	ctx    caddy.Context // canceled when another configuration has replaced this one
	logger *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.epd_proxy",
		New: func() caddy.Module { return new(Handler) },
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ caddyfile.Unmarshaler       = (*Handler)(nil)
)
