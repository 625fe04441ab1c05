package epdhandler

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// memoryLedger counts what the bodies of all requests in this process hold.
var memoryLedger memory.Ledger

// exchange is one request of a client on its way through the stages.
type exchange struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	id     string        // x-request-id, for the client
	parent sync.Mutex    // guards the variables and placeholders of r
	header http.Header   // what engines get of the client's headers
	body   *body.Body    // nil if it is not needed any more
	media  *media.Set    // in the body
	memory *body.Memory  // that the body is in
	room   *memory.Share // of the memory of all
	report *report
	err    error // for Caddy's error routes; nil: the request has been answered

	received bool   // the whole body has come
	engineID string // x-request-id, for engines

	inside bool   // it has passed the gate
	alone  bool   // an idle connection has ended, so the stages get connections of their own
	direct string // the member for which decode does without prefill, empty if it does not

	// What the stages have come to:
	encoded      bool
	embeddings   media.Encoded // zero if encoders have made none
	noReferences bool          // an engine may have died of one
	prefilled    bool
	kv           []byte    // kv_transfer_params, nil if the prefill gave none
	made         time.Time // when kv was
	cached       int       // tokens of the prompt that prefill had cached, -1 if it does not say
	remade       bool      // kv was made again, because it had become too old

	plan     *media.Plan // how the media are encoded, nil before that begins
	consumer *consumer   // nil if encoders need not know

	keepalive            *stream.Keepalive // nil: there is none
	encoding             []*attempts       // of each batch
	prefilling, decoding *attempts
}

// route is what is done for a path.
type route struct {
	api     string // for metrics
	methods []string
	serve   func(*exchange)
	enabled func(*Handler) bool // nil: always
}

// What APIs are called.
const (
	apiChat        = "chat_completions"
	apiCompletions = "completions"
	apiModels      = "models"
	apiHealth      = "health"
	apiProfile     = "profile"
	apiOther       = "other" // no such route
)

var routes = map[string]route{
	"/v1/chat/completions": {apiChat, []string{http.MethodPost}, (*exchange).chatCompletions, nil},
	"/v1/completions":      {apiCompletions, []string{http.MethodPost}, (*exchange).completions, nil},
	modelsPath:             {apiModels, []string{http.MethodGet, http.MethodHead}, (*exchange).models, nil},
	"/health":              {apiHealth, []string{http.MethodGet, http.MethodHead}, (*exchange).health, nil},
	"/start_profile":       {apiProfile, []string{http.MethodPost}, (*exchange).profile, (*Handler).mayProfile},
	"/stop_profile":        {apiProfile, []string{http.MethodPost}, (*exchange).profile, (*Handler).mayProfile},
}

// notFound is what is not there.
var notFound = route{api: apiOther}

// ServeHTTP implements caddyhttp.MiddlewareHandler. It answers every request, unless errors
// are for Caddy's error routes, and never calls next.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	x := &exchange{h: h, w: w, r: r, id: requestID(r.Header)}
	w.Header()["X-Request-Id"] = []string{x.id}
	if r.ProtoMajor == 2 && h.ctx.Err() != nil {
		// Go's server sends GOAWAY at a reload, but not on connections whose handshake ends
		// after it. This makes it send one: else a busy client would stay here for good.
		w.Header()["Connection"] = []string{"close"}
	}
	path := r.URL.Path
	if id, below := strings.CutPrefix(path, modelsPath+"/"); below && id != "" {
		path = modelsPath
	}
	route, ok := routes[path]
	if !ok || route.enabled != nil && !route.enabled(h) {
		route = notFound
	}
	x.report = newReport(x.id, route.api)
	defer x.report.finish(r.Context())
	if route.serve == nil {
		x.reject(badRequest(http.StatusNotFound, "not_found", "there is no such route"))
		return x.err
	}
	for _, m := range route.methods {
		if r.Method == m {
			route.serve(x)
			return x.err
		}
	}
	allow := strings.Join(route.methods, ", ")
	e := badRequest(http.StatusMethodNotAllowed, "method_not_allowed", "use %s here", allow)
	e.header = http.Header{"Allow": {allow}}
	x.reject(e)
	return x.err
}

func (x *exchange) chatCompletions() { x.complete(true) }

func (x *exchange) completions() { x.complete(false) }

func (x *exchange) complete(chat bool) {
	// reject early, before any stage has done work
	if e := x.findRoom(x.h.prefill, x.h.decode); e != nil {
		x.reject(e)
		return
	}
	defer x.release()
	if e := x.readBody(chat); e != nil {
		x.reject(e)
		return
	}
	if x.h.prefill != nil {
		x.direct = whyNoHandOver(x.body, chat)
		if x.report.direct = x.direct; x.direct != "" {
			handOvers.WithLabelValues(handOverSkipped).Inc()
		}
	}
	x.encoded = !x.encodes()
	if !x.encoded {
		if e := x.findRoom(x.h.encode); e != nil {
			x.reject(e)
			return
		}
	}
	x.run()
}

// release gives the body's memory back, as soon as no engine reads it any more.
func (x *exchange) release() {
	x.memory.Release()
	x.body, x.media, x.plan, x.memory = nil, nil, nil, nil
	x.embeddings = media.Encoded{Handles: x.embeddings.Handles}
}

// findRoom returns an error if the queue of a pool is full.
func (x *exchange) findRoom(pools ...*pool) *apiError {
	for _, p := range pools {
		if p != nil && (p.queue.full(p.handler.Upstreams) || p == x.h.decode && x.h.gate != nil && x.h.gate.full()) {
			stageFailures.WithLabelValues(p.stage, string(overloaded)).Inc()
			e := overloadedError(p.stage)
			return &e
		}
	}
	return nil
}
