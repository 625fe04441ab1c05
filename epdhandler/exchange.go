package epdhandler

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
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

// requestID returns the client's x-request-id if it is valid, otherwise a new one.
func requestID(h http.Header) string {
	if ids := h["X-Request-Id"]; len(ids) == 1 && validID(ids[0]) {
		return ids[0]
	}
	return uuid.NewString()
}

// validID reports whether an id has 1 to 128 characters of A-Za-z0-9._-
func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return 0 < len(id) && len(id) <= 128
}

// engineID returns the x-request-id for engines, which is unique whatever clients send and however many
// proxies there are. vLLM before 0.14, or with VLLM_DISABLE_REQUEST_ID_RANDOMIZATION, confuses requests
// with the same id, or crashes; and a prefill is still in use there after it has been answered.
func engineID(id string) string { return id + "-" + engine.RandomHex(12) }
