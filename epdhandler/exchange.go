package epdhandler

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// exchange is one request of a client and its answer.
type exchange struct {
	h      *Handler
	w      http.ResponseWriter
	r      *http.Request
	id     string // x-request-id, for the client
	report *report

	received bool  // the whole body has been received
	err      error // for Caddy's error routes; nil: the request has been answered
}

// sendError answers the request with an error that does not come from an engine: in the form
// of the API or, if so configured, by Caddy's error routes.
func (x *exchange) sendError(e apiError) {
	if !x.h.HandleErrors || e.status == telemetry.StatusClientClosed {
		e.write(x.w)
		return
	}
	e.setHeader(x.w)
	x.err = caddyhttp.Error(e.status, errors.New(e.Message))
}

// breakOff breaks the client's connection, so that it cannot take a part of an answer for the
// whole. Over HTTP/3 that would make the client drop what it has received but not read.
// A stream that has an error event and no [DONE] therefore just ends there.
func (x *exchange) breakOff(withEvent bool) {
	if !withEvent || x.r.ProtoMajor < 3 {
		panic(http.ErrAbortHandler)
	}
}
