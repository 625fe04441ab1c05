package epdhandler

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// reason is why an attempt failed, in the word that logs, metrics and spans have for it.
type reason string

const (
	canceled    reason = "canceled"    // by the client, or because a sibling failed
	expired     reason = "expired"     // what earlier stages have made, before it was used; no instance has failed
	timedOut    reason = "timeout"     // a time limit of ours or of the transport
	unavailable reason = "unavailable" // no instance is up, so there was nobody to ask
	overloaded  reason = "overloaded"  // no instance is free, and the queue full, or the wait too long
	refused     reason = "refused"     // dial or handshake failed, the engine knows nothing
	broken      reason = "broken"      // no answer at all, half of one, or nonsense
	badStatus   reason = "bad_status"  // anything but 2xx
	rejected    reason = "rejected"    // a bad status that is the request's own fault: 4xx
)

// reasons are those of failures. That somebody canceled is none, nor that something expired.
var reasons = []reason{timedOut, unavailable, overloaded, refused, broken, badStatus, rejected}

// failure is why an attempt, or the whole request, failed, and what the client
// gets if it is the last word.
type failure struct {
	reason   reason
	stage    string
	item     string // the media item, in encode
	call     *call
	final    bool           // there is no further attempt
	unpaid   bool           // because the retry budget is spent
	optional bool           // the request goes on without the stage
	cause    error          // for the log; never holds content
	status   int            // of a badStatus
	engine   *stream.Answer // the engine's answer, if there was one
	verdict  apiError
}

// why is the reason as operators get to know it.
func (f *failure) why() reason {
	if f.reason == badStatus && f.status/100 == 4 {
		return rejected
	}
	return f.reason
}

// isEngines reports whether an engine has failed at what it was asked: it was reached, is not
// only busy, and does not say that the request is at fault.
func (f *failure) isEngines() bool {
	switch f.reason {
	case timedOut, broken:
		return f.call.reached
	case badStatus:
		return f.call.reached && f.status >= http.StatusInternalServerError
	}
	return false
}

// isAnswered reports whether an engine has answered with an error.
func (f *failure) isAnswered() bool { return f.engine != nil && f.status >= http.StatusBadRequest }

// judge returns why a call failed, nil if it was answered with 2xx.
func judge(ctx context.Context, stage string, c *call, a *stream.Answer, err error) *failure {
	f := &failure{stage: stage, call: c, cause: err}
	handler, _ := errors.AsType[caddyhttp.HandlerError](err)
	if handler.Err != nil {
		f.cause = handler.Err
	}
	timeout, isTimeout := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		f.reason, f.cause = timedOut, c.clock.Expired()
	case ctx.Err() != nil:
		f.reason = canceled
	case err == nil && a.Status/100 == 2:
		return nil
	case err == nil && a.Status != 0:
		f.reason, f.status, f.engine = badStatus, a.Status, a
		f.cause = statusError(a.Status)
	case c.fault != nil:
		f.reason, f.cause = broken, c.fault
	case c.crowded != nil:
		f.reason, f.cause = overloaded, c.crowded
	case len(c.chosen) == 0:
		f.reason = unavailable
	case err != nil && !c.reached:
		f.reason = refused
	case isTimeout && timeout.Timeout():
		f.reason = timedOut
	case handler.StatusCode >= 400 && handler.StatusCode != http.StatusBadGateway:
		// lb_retry_match gave up on an answer, or handle_response made an error
		f.reason, f.status = badStatus, handler.StatusCode
	case errors.Is(a.Err, memory.ErrExhausted):
		f.reason, f.cause = overloaded, a.Err
	case a.Err != nil:
		f.reason, f.cause = broken, a.Err
	default:
		f.reason = broken
		if err == nil {
			f.cause = errors.New("no answer")
		}
	}
	if f.cause != nil && strings.Contains(f.cause.Error(), "malformed") {
		f.cause = errors.New("malformed HTTP") // net/http quotes what it got, which may be the request
	}
	f.verdict = f.explain()
	return f
}

// statusError is the cause of a failure that an engine put in a status. Its words
// may quote the request, so they are not for the log.
func statusError(status int) error { return fmt.Errorf("status %d", status) }

// brokenAnswer is the failure of a call whose answer makes no sense.
func brokenAnswer(stage string, c *call, cause error) *failure {
	f := &failure{reason: broken, stage: stage, call: c, cause: cause}
	f.verdict = f.explain()
	return f
}

// explain says what the client gets to know. An address of an engine is nothing
// for clients.
func (f *failure) explain() apiError {
	switch f.reason {
	case canceled:
		return apiError{status: statusClientClosed}
	case timedOut:
		return serverError(http.StatusGatewayTimeout, f.stage+"_timeout", "the %s stage did not answer in time", f.stage)
	case unavailable, refused:
		return serverError(http.StatusServiceUnavailable, f.stage+"_unavailable", "no instance of the %s stage can be reached", f.stage)
	case overloaded:
		if errors.Is(f.cause, memory.ErrExhausted) {
			return noMemoryError()
		}
		return overloadedError(f.stage)
	case badStatus:
		return engineError(f.stage, f.status, f.engine)
	}
	return serverError(http.StatusBadGateway, f.stage+"_failed", "the %s stage gave no valid answer", f.stage)
}

// statusClientClosed is the status, by convention, of a request whose client
// went away; only logs get to see it.
const statusClientClosed = 499

// apiError is an error as the OpenAI API words it.
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

// noMemoryError is for requests that did not get the memory that they need.
func noMemoryError() apiError {
	e := serverError(http.StatusServiceUnavailable, "overloaded", "%s; try again later", memory.ErrExhausted)
	e.header = retryLater()
	return e
}

// overloadedError is for requests that found no room. It is 503, not 429: the engines have
// too much to do, whoever it comes from.
func overloadedError(stage string) apiError {
	e := serverError(http.StatusServiceUnavailable, stage+"_overloaded", "all instances of the %s stage are busy; try again later", stage)
	e.header = retryLater()
	return e
}

// retryLater says when, in seconds: not to all the same.
func retryLater() http.Header {
	return http.Header{"Retry-After": {strconv.Itoa(1 + rand.IntN(5))}}
}

// requestError is an error that the client can mend.
func requestError(status int, code, format string, args ...any) apiError {
	return apiError{status: status, Message: fmt.Sprintf(format, args...), Type: "invalid_request_error", Code: code}
}

// sendError answers the request with an error that no engine has answered with: as the API
// words it or, if the configuration says so, by Caddy's error routes.
func (x *exchange) sendError(e apiError) {
	if !x.h.HandleErrors || e.status == statusClientClosed {
		e.write(x.w)
		return
	}
	e.setHeader(x.w)
	x.err = caddyhttp.Error(e.status, errors.New(e.Message))
}

// setHeader adds the headers of the error to the response.
func (e apiError) setHeader(w http.ResponseWriter) {
	for name, values := range e.header {
		w.Header()[name] = values
	}
}

// write sends the error as the response.
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

// encode returns the error as a line of JSON.
func (e apiError) encode() []byte {
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(map[string]apiError{"error": e})
	return line.Bytes()
}

// These bound how much of an engine's own words is passed on, in bytes.
const (
	maxMessage = 4 << 10
	maxName    = 256 // of a type, param or code
)

// engineError passes on the status and the message of an engine, whose answer has
// one of the forms that vLLM has had: {"error": {"message", "type", …}},
// {"object": "error", "message", "type", …}, {"error": "…"}, or FastAPI's
// {"detail": …}. There may be no answer, only its status.
func engineError(stage string, status int, a *stream.Answer) apiError {
	e := serverError(status, stage+"_failed", "the %s stage answered with status %d", stage, status)
	if status < 400 { // an engine does not redirect
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
	top := members(a.Body.Bytes())
	detail := top
	if inner := members(top["error"]); inner != nil {
		detail = inner
	}
	for _, m := range []json.RawMessage{detail["message"], top["error"], top["detail"]} {
		var text string
		if json.Unmarshal(m, &text) == nil && text != "" {
			e.Message = clip(text, maxMessage)
			break
		}
	}
	for name, to := range map[string]*any{"param": &e.Param, "code": &e.Code} {
		if v := detail[name]; v != nil && len(v) <= maxName && !body.IsNull(v) && !body.IsObject(v) {
			*to = v
		}
	}
	var typ string
	if json.Unmarshal(detail["type"], &typ) == nil && typ != "" && len(typ) <= maxName {
		e.Type = typ
	}
	return e
}

// members returns the members of a JSON object, nil if it is none.
func members(object []byte) (m map[string]json.RawMessage) {
	if json.Unmarshal(object, &m) != nil {
		return nil
	}
	return m
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
