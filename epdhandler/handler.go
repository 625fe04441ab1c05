package epdhandler

import (
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
)

func init() {
	caddy.RegisterModule(Handler{})
}

// Handler is a proxy in front of vLLM instances that serve a multimodal model
// with Encode-Prefill-Decode disaggregation (EPD).
//
// It serves these routes and answers 404 to all others:
//
// Route | What happens
// ------|-------------
// `POST /v1/chat/completions` | every media item goes to an encoder, then the request to prefill (if there is such a pool), then to decode
// `POST /v1/completions` | prefill, if there is such a pool, then decode
// `GET /v1/models`, `/v1/models/{id}` | answered by decode
// `GET /health` | the health of the pools, as Caddy's health checks know it
// `POST /start_profile`, `/stop_profile` | with `profiling`: asked of every instance of every pool
//
// Each pool is configured as a `reverse_proxy` handler, with all its options.
// Where a pool's configuration says nothing, these defaults apply, chosen for
// vLLM: `round_robin` load balancing; active health checks of `/health` every 5s,
// with a timeout of 5s, 3 fails and 1 pass; up to 1024 idle connections to each
// instance, kept for 2.5s, because vLLM closes them after 5s.
type Handler struct {
	// The instances that turn media items into embeddings: the configuration of a
	// [`reverse_proxy`](/docs/modules/http.handlers.reverse_proxy) handler. Required.
	Encode *reverseproxy.Handler `json:"encode,omitempty"`

	// The instances that compute the KV cache of the prompt: the configuration of a
	// `reverse_proxy` handler. Default: none, the decode pool does prefill as well.
	Prefill *reverseproxy.Handler `json:"prefill,omitempty"`

	// The instances that generate the answer: the configuration of a
	// `reverse_proxy` handler. Required.
	Decode *reverseproxy.Handler `json:"decode,omitempty"`

	// How often a stage of a request (encode: each of its media items) may be tried
	// again on another instance, after one that reached an instance has failed. Failed
	// dials do not count. Default: 1. 0 turns this off.
	Retries *int `json:"retries,omitempty"`

	// How many further attempts of a pool may fail as well, in percent of its requests
	// (encode: of its media items or batches), plus one per second, and ten at once. When
	// that is spent, there are no further attempts, so that a pool in which nothing works
	// does not get twice the load. Failed dials do not count. Default: 20. 0 turns the
	// limit off.
	RetryBudget *int `json:"retry_budget,omitempty"`

	// How many instances of a pool may be ejected at the same time, in percent of those that
	// health checks find up; 50 at most. One is ejected, for a while, when requests fail there
	// and then succeed at another instance, five times since it last succeeded. Default: 50.
	// 0 turns this off.
	MaxEjected *int `json:"max_ejected,omitempty"`

	// How many media items of one request are encoded at the same time. Default: 16.
	EncodeConcurrency int `json:"encode_concurrency,omitempty"`

	// How long an encoder may take for one media item, before the item goes to another
	// one, once. Default: 60s.
	EncodeTimeout caddy.Duration `json:"encode_timeout,omitempty"`

	// How long a prefill may take. It is not tried again then: the engine may only be
	// busy, and twice the work would make that worse. Default: 10m.
	PrefillTimeout caddy.Duration `json:"prefill_timeout,omitempty"`

	// How long prefill keeps KV blocks for a decode that has not asked for them yet: the
	// engines' `kv_lease_duration`. Blocks that are older than two thirds of it when decode
	// has room are made again. Default: 30s, as in vLLM.
	KVLease caddy.Duration `json:"kv_lease,omitempty"`

	// Where the bootstrap servers of prefill engines with MooncakeConnector are, for each
	// upstream of the prefill pool, as decode engines reach them: an object such as
	// `{"p1:8002": "http://p1:8998"}`. KV blocks are then handed over as that connector has it.
	// Default: none, prefill answers with what decode needs, as with NixlConnector.
	KVBootstrap map[string]string `json:"kv_bootstrap,omitempty"`

	// How long it may take decode to send the first event of a stream. An answer that is
	// not streamed is one long silence, and has no limit. Default: 10m.
	StreamStartTimeout caddy.Duration `json:"stream_start_timeout,omitempty"`

	// How long a stream may be silent after its first byte. There is no limit to the
	// whole of it. Default: 10m.
	StreamIdleTimeout caddy.Duration `json:"stream_idle_timeout,omitempty"`

	// How often the client of a stream gets an SSE comment while encode and prefill take
	// long, so that nobody in between takes the connection for dead: load balancers often
	// do after 60s. This commits the status 200, so that a failure afterwards is told by
	// an event with an error. Default: never.
	StreamKeepalive caddy.Duration `json:"stream_keepalive,omitempty"`

	// How many media items each encoder gets at the same time. More wait, for the first
	// encoder that is done with one, and requests take turns. Default: no limit.
	EncodeLimit int `json:"encode_limit,omitempty"`

	// How many requests each prefill instance gets at the same time. More wait, for the
	// first one that is done. Default: with decode_limit and several prefill instances, each
	// one's share of the requests that decode has slots for; else no limit.
	PrefillLimit int `json:"prefill_limit,omitempty"`

	// How many requests each decode instance gets at the same time; a stream is one
	// until its end. More wait, for the first one that is done. Default: no limit.
	DecodeLimit int `json:"decode_limit,omitempty"`

	// How many requests may wait for each pool that has a limit. Those that come then
	// are refused, with 503 and Retry-After, before anything is done for them.
	// Default: 1000. 0: none waits.
	QueueSize *int `json:"queue_size,omitempty"`

	// How long a request may wait for an instance, before it gets 503 with Retry-After.
	// Default: 30s.
	QueueTimeout caddy.Duration `json:"queue_timeout,omitempty"`

	// Let prefill or decode encode the media items of a request by themselves when no
	// encoder can be reached, or the only one that can be reached fails, instead of
	// answering 502, 503 or 504. Not if two encoders have failed at the same item, which
	// may be what kills them. The engines must be able to: they need the encoder's
	// weights, and the time. Default: false.
	EncodeOptional bool `json:"encode_optional,omitempty"`

	// How many images of one request may go to an encoder together, in one request. They
	// are spread over the encoders first. Needs vLLM 0.31.0 or newer.
	// Default: 1.
	EncodeBatch int `json:"encode_batch,omitempty"`

	// Send the engines that consume embeddings (prefill if there is one, else decode), instead
	// of media that have been encoded, references to them: their shapes, as encoders tell them,
	// and a uuid. Media that are in a request more than once are encoded once. If a consumer
	// dies, or answers 500, the next attempt has the media. Needs vLLM 0.30 or later.
	// Default: false.
	References bool `json:"references,omitempty"`

	// What goes into the uuids of media besides the media, so that who has another salt
	// shares no embeddings: a placeholder for the tenant, such as `{http.auth.user.id}`.
	// All proxies in front of the same engines must have the same. Default: nothing.
	UUIDSalt string `json:"uuid_salt,omitempty"`

	// Where encoders push embeddings to, with Mooncake: the control addresses of each
	// upstream of the pool that consumes them (prefill if there is one, else decode), one
	// for each of its data-parallel ranks, such as `{"pd1:8003": ["tcp://pd1:14579"]}`.
	// Instance and rank are chosen before anything is encoded. Default: they do not push.
	ECConsumers map[string][]string `json:"ec_consumers,omitempty"`

	// Give decode what prefill gets of the embeddings, the references and transfer handles, as
	// well. Its engines must be consumers of the same embeddings then (`--ec-transfer-config`
	// with the role of a consumer). Otherwise decode gets, after a prefill, the media as the
	// client has sent them. Without a prefill pool it has no effect. Default: false.
	DecodeHasEmbeddings bool `json:"decode_has_embeddings,omitempty"`

	// Let clients say what engines do besides answering: pass on `kv_transfer_params`,
	// `ec_transfer_params`, the `uuid` of media items, and the headers by which routers
	// steer engines. A client can then make an engine connect to hosts of its choice,
	// and read what other clients have sent. Default: false.
	TrustClients bool `json:"trust_clients,omitempty"`

	// Serve `POST /start_profile` and `/stop_profile`, for `vllm bench serve --profile`:
	// every instance of every pool is asked. Whoever may send requests can then slow the
	// engines down and fill their disks. On Caddy's admin endpoint they are always there,
	// as `/epd/start_profile` and `/epd/stop_profile`. Default: false.
	Profiling bool `json:"profiling,omitempty"`

	// Where media may come from: schemes, such as `data:`, or a scheme with a host, such
	// as `https://media.example.com` or `https://*.example.com`. An engine fetches the
	// URLs that clients send, also those of hosts that only it can reach. Redirects are
	// the engine's to refuse (`VLLM_MEDIA_URL_ALLOW_REDIRECTS=0`). Default: anywhere.
	MediaSources []string `json:"media_sources,omitempty"`

	// How much memory, in bytes, the bodies of all requests of the process may take
	// together. A request that would pass it waits a little and then gets 503 with
	// Retry-After, before its body is read. Default: half of the memory that the
	// machine, or Caddy's cgroup, has.
	MaxMemory int64 `json:"max_memory,omitempty"`

	// How long a request body may take to arrive. The timeouts of Caddy's server apply
	// as well: by default, a body may not stall for 1m. Default: 5m.
	BodyTimeout caddy.Duration `json:"body_timeout,omitempty"`

	// The largest request body that is accepted, in bytes; half of max_memory at most.
	// Default: 268435456 (256 MiB), or a quarter of max_memory if that is less.
	MaxBodySize int64 `json:"max_body_size,omitempty"`

	// The most media items that a request may have. Default: 128.
	MaxMediaItems int `json:"max_media_items,omitempty"`

	// Return errors that no engine has answered with, such as those of refused requests,
	// full queues and time limits, to Caddy's error routes (`handle_errors` in a Caddyfile),
	// where `{http.error.status_code}` and `{http.error.message}` describe them. The headers
	// `X-Request-Id` and `Retry-After` are set. Default: false, they are answered in the form
	// of OpenAI's API.
	HandleErrors bool `json:"handle_errors,omitempty"`

	encode, prefill, decode *pool // prefill may be nil

	sources    []media.Source        // MediaSources
	consumers  map[string]*ranks     // ECConsumers, nil if there are none
	bootstraps map[string]*bootstrap // KVBootstrap, nil if there are none
	gate       *gate                 // nil: nobody waits before prefill

	ctx    caddy.Context // done when another configuration has taken over
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
