package epdhandler

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// apiError is an error in the form of the OpenAI API.
type apiError struct {
	status int
	header http.Header // further headers; may be nil

	Message string `json:"message"`
	Type    string `json:"type"`
	Param   any    `json:"param"`
	Code    any    `json:"code"`
}

func serverError(status int, code, format string, args ...any) apiError {
	return apiError{status: status, Message: fmt.Sprintf(format, args...), Type: "server_error", Code: code}
}

func noMemoryError() apiError {
	return retryLater("overloaded", "%s; try again later", memory.ErrExhausted)
}

// overloadedError is for requests that would exceed a limit or a queue. The status is 503, not
// 429, because the cause is the load of the engines and not the client's rate of requests.
func overloadedError(stage string) apiError {
	return retryLater(stage+"_overloaded", "all instances of the %s stage are busy; try again later", stage)
}

// retryLater is an error with a Retry-After of some seconds, random so that clients do not return
// all at once.
func retryLater(code, format string, args ...any) apiError {
	e := serverError(http.StatusServiceUnavailable, code, format, args...)
	e.header = http.Header{"Retry-After": {strconv.Itoa(1 + rand.IntN(5))}}
	return e
}

func badRequest(status int, code, format string, args ...any) *apiError {
	return &apiError{status: status, Message: fmt.Sprintf(format, args...), Type: "invalid_request_error", Code: code}
}

func invalidBody(param, format string, args ...any) *apiError {
	e := badRequest(http.StatusBadRequest, "invalid_body", format, args...)
	e.Param = param
	return e
}

func mediaError(invalid *media.Error) *apiError {
	e := badRequest(http.StatusBadRequest, invalid.Code, "%s", invalid.Message)
	if invalid.Param != "" {
		e.Param = invalid.Param
	}
	return e
}

func (e apiError) setHeader(w http.ResponseWriter) {
	maps.Copy(w.Header(), e.header)
}

func (e apiError) write(w http.ResponseWriter) {
	e.setHeader(w)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	var line []byte
	if e.Message != "" {
		line = e.encode()
	}
	h.Set("Content-Length", strconv.Itoa(len(line)))
	w.WriteHeader(e.status)
	_, _ = w.Write(line)
}

func (e apiError) encode() []byte {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]apiError{"error": e})
	return line.Bytes()
}

// engineError passes on the status and the message of an engine. There may be only a status.
func engineError(stage string, status int, a *stream.Answer) apiError {
	e := serverError(status, stage+"_failed", "the %s stage answered with status %d", stage, status)
	if status < 400 { // engines do not redirect
		e.status = http.StatusBadGateway
		return e
	}
	if status < 500 {
		e.Type = "invalid_request_error"
	}
	if a == nil {
		return e
	}
	if wait := a.Header()["Retry-After"]; wait != nil {
		e.header = http.Header{"Retry-After": wait}
	}
	said := engine.ErrorOf(status, a.Body.Bytes())
	e.Message, e.Type = cmp.Or(said.Message, e.Message), cmp.Or(said.Type, e.Type)
	if said.Param != nil {
		e.Param = said.Param
	}
	if said.Code != nil {
		e.Code = said.Code
	}
	return e
}
