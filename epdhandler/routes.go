package epdhandler

import (
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// route describes how requests to a path are served.
type route struct {
	api     string // for metrics
	methods []string
	serve   func(*exchange) // nil: there is no such route
}

const (
	chatPath   = "/v1/chat/completions"
	modelsPath = "/v1/models"
)

var routes = map[string]route{
	chatPath:          {telemetry.Chat, []string{http.MethodPost}, func(x *exchange) { x.generate((*Handler).parseChat) }},
	"/v1/completions": {telemetry.Completions, []string{http.MethodPost}, func(x *exchange) { x.generate((*Handler).parseText) }},
	modelsPath:        {telemetry.Models, []string{http.MethodGet, http.MethodHead}, (*exchange).models},
	"/health":         {telemetry.Health, []string{http.MethodGet, http.MethodHead}, (*exchange).health},
	"/start_profile":  {telemetry.Profile, []string{http.MethodPost}, (*exchange).profile},
	"/stop_profile":   {telemetry.Profile, []string{http.MethodPost}, (*exchange).profile},
}

func (h *Handler) routeOf(path string) route {
	if id, below := strings.CutPrefix(path, modelsPath+"/"); below && id != "" {
		path = modelsPath
	}
	found, ok := routes[path]
	if !ok || found.api == telemetry.Profile && !h.Profiling {
		return route{api: telemetry.Other}
	}
	return found
}

// ServeHTTP implements caddyhttp.MiddlewareHandler. It answers every request, or returns an
// error for Caddy's error routes, and never calls next.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	h.users.Add()
	defer h.users.Done()
	route := h.routeOf(r.URL.Path)
	x := &exchange{h: h, w: w, r: r, id: requestID(r.Header)}
	w.Header()["X-Request-Id"] = []string{x.id}
	if r.ProtoMajor == 2 && h.ctx.Err() != nil {
		// Go's server sends GOAWAY at a reload, but not on connections whose handshake ends after
		// it. The header makes it send one; a busy client would otherwise stay on the old configuration.
		w.Header()["Connection"] = []string{"close"}
	}
	x.report = newReport(h.process.Metrics, x.id, route.api)
	defer x.report.finish(r.Context())
	x.route(route)
	return x.err
}

func (x *exchange) route(route route) {
	if route.serve == nil {
		x.reject(badRequest(http.StatusNotFound, "not_found", "there is no such route"))
		return
	}
	if slices.Contains(route.methods, x.r.Method) {
		route.serve(x)
		return
	}
	allow := strings.Join(route.methods, ", ")
	e := badRequest(http.StatusMethodNotAllowed, "method_not_allowed", "use %s here", allow)
	e.header = http.Header{"Allow": {allow}}
	x.reject(e)
}

func (x *exchange) generate(parse bodyParser) {
	// reject early, before any stage has done work
	if e := x.h.findRoom(x.h.site.Prefill, x.h.site.Decode); e != nil {
		x.reject(e)
		return
	}
	in, e := x.readInput(parse)
	defer in.release()
	if e == nil && x.h.encodes(in) {
		e = x.h.findRoom(x.h.site.Encode)
	}
	if e != nil {
		x.reject(e)
		return
	}
	x.run(in)
}

// A bodyParser indexes the body of a request for one API.
type bodyParser func(h *Handler, raw []byte, in *input) error

func (h *Handler) parseChat(raw []byte, in *input) (err error) {
	in.chat = true
	in.body, in.media, err = media.ParseChat(raw, h.MaxMediaItems, h.TrustClients)
	return err
}

func (h *Handler) parseText(raw []byte, in *input) (err error) {
	in.body, in.media, err = media.ParseText(raw)
	return err
}
