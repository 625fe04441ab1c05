package epdhandler

import (
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// exchange is one request of a client on its way through the stages.
type exchange struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	id     string      // x-request-id, for the client
	parent sync.Mutex  // guards the variables and placeholders of r
	header http.Header // what engines get of the client's headers
	body   *body.Body  // nil if the request has none
	report report

	engineID string // x-request-id, for engines

	// What the stages have come to:
	encoded   bool
	handles   []byte // ec_transfer_params of all media items, nil if encoders gave none
	prefilled bool
	kv        []byte // kv_transfer_params, nil if the prefill gave none

	encoding             []*attempts // of each media item
	prefilling, decoding *attempts
}

// route is what is done for a path.
type route struct {
	methods []string
	serve   func(*exchange)
}

var routes = map[string]route{
	"/v1/chat/completions": {[]string{http.MethodPost}, (*exchange).chatCompletions},
	"/v1/completions":      {[]string{http.MethodPost}, (*exchange).completions},
	"/v1/models":           {[]string{http.MethodGet, http.MethodHead}, (*exchange).models},
	"/health":              {[]string{http.MethodGet, http.MethodHead}, (*exchange).health},
}

// ServeHTTP implements caddyhttp.MiddlewareHandler. It answers every request, and
// never calls next.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	x := &exchange{h: h, w: w, r: r, id: requestID(r.Header), report: report{start: time.Now()}}
	w.Header()["X-Request-Id"] = []string{x.id}
	defer x.logFields()

	route, ok := routes[r.URL.Path]
	if !ok {
		x.reject(badRequest(http.StatusNotFound, "not_found", "there is no such route"))
		return nil
	}
	for _, m := range route.methods {
		if r.Method == m {
			route.serve(x)
			return nil
		}
	}
	allow := strings.Join(route.methods, ", ")
	e := badRequest(http.StatusMethodNotAllowed, "method_not_allowed", "use %s here", allow)
	e.header = http.Header{"Allow": {allow}}
	x.reject(e)
	return nil
}

func (x *exchange) chatCompletions() { x.complete(true) }

func (x *exchange) completions() { x.complete(false) }

func (x *exchange) complete(chat bool) {
	if e := x.readBody(chat); e != nil {
		x.reject(e)
		return
	}
	x.run()
}

// models asks the decode pool.
func (x *exchange) models() { x.run() }

// reject answers a request with which nothing was done.
func (x *exchange) reject(e *apiError) {
	x.report.outcome = outcomeRejected
	if e.status == statusClientClosed {
		x.report.outcome = outcomeClientClosed
	} else {
		x.h.logger.Warn("request rejected", zap.String("request_id", x.id), zap.String("stage", "request"),
			zap.Int("status", e.status), zap.Error(errors.New(e.Message)))
	}
	// net/http would wait for more of a body that nobody wants before it answers
	_ = http.NewResponseController(x.w).EnableFullDuplex()
	e.write(x.w)
}
