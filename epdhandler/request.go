package epdhandler

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// requestID returns the client's x-request-id if it is fit to be passed on, else
// a fresh one.
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

// engineID returns the x-request-id for engines: one that nobody else has, whatever clients
// send and however many proxies there are. vLLM before 0.14, or with
// VLLM_DISABLE_REQUEST_ID_RANDOMIZATION, mixes up requests that have one id, or crashes; and
// a prefill is not over for it when it is answered.
func engineID(id string) string { return id + "-" + randomHex(12) }

// hex6 tells the attempts of a request apart.
func hex6() string { return randomHex(6) }

// randomHex returns n random hexadecimal digits, 16 at most.
func randomHex(n int) string { return fmt.Sprintf("%016x", rand.Uint64())[:n] }

// readRaw reads the client's body as it is. On error it returns what the client is to
// be told.
func (x *exchange) readRaw() ([]byte, *apiError) {
	if e := x.r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, badRequest(http.StatusUnsupportedMediaType, "unsupported_encoding", "compressed bodies are not supported; send the JSON as it is")
	}
	raw, err := x.receive()
	if err != nil {
		return nil, x.readError(err)
	}
	x.received = true
	return raw, nil
}

// readBody reads the client's body and indexes it. On error it returns what the
// client is to be told.
func (x *exchange) readBody(chat bool) *apiError {
	if !isJSON(x.r.Header) {
		return badRequest(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be JSON, with the header Content-Type: application/json")
	}
	raw, e := x.readRaw()
	if e != nil {
		return e
	}
	var err error
	if chat {
		x.body, x.media, err = media.ParseChat(raw, x.h.MaxMediaItems, x.h.TrustClients)
	} else {
		x.body, x.media, err = media.ParseText(raw)
	}
	if invalid, ok := errors.AsType[*media.Error](err); ok {
		return mediaError(invalid)
	}
	x.body.Memory = x.memory
	if v := x.body.Value(body.Stream); v != nil && !body.IsNull(v) && !body.IsBool(v) {
		e := badRequest(http.StatusBadRequest, "invalid_body", "'stream' must be true, false or null")
		e.Param = body.Stream.String()
		return e
	}
	x.report.parsed, x.report.items = true, len(x.media.Items())
	if chat {
		x.countItems()
	}
	if e := x.media.CheckSources(x.h.sources); e != nil {
		return mediaError(e)
	}
	if e := x.checkOptions(); e != nil {
		return e
	}
	if err := x.room.Add(itemSize * int64(len(x.media.Items()))); err != nil {
		return x.readError(err)
	}
	return nil
}

// isJSON reports whether a request says that its body is JSON. A page of another site can have a
// browser send any other type without asking first (CORS).
func isJSON(h http.Header) bool {
	types := h["Content-Type"]
	if len(types) != 1 {
		return false
	}
	typ, _, _ := strings.Cut(types[0], ";")
	return strings.EqualFold(strings.Trim(typ, " \t"), "application/json")
}

// mediaError is what the client is told about a request that package media refuses.
func mediaError(invalid *media.Error) *apiError {
	e := badRequest(http.StatusBadRequest, invalid.Code, "%s", invalid.Message)
	if invalid.Param != "" {
		e.Param = invalid.Param
	}
	return e
}

func badRequest(status int, code, format string, args ...any) *apiError {
	e := requestError(status, code, format, args...)
	return &e
}

// itemSize is what a media item takes besides its bytes: its place in the body, its uuid,
// what encoders have told of it, and the pieces of bodies around it. See TestItemsAreCounted.
const itemSize = 2 << 10

// receive reads the body. If all requests together hold too much, that fails before a
// byte is read.
func (x *exchange) receive() (raw []byte, err error) {
	length := x.r.ContentLength
	if length > x.h.MaxBodySize {
		return nil, memory.ErrTooLarge
	}
	x.room, err = memoryLedger.Reserve(x.r.Context(), max(length, 0), x.h.MaxMemory)
	if err != nil {
		return nil, err
	}
	conn := http.NewResponseController(x.w)
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(x.h.BodyTimeout)))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	raw, x.memory, err = x.room.ReadBody(x.r.Body, length, x.h.MaxBodySize)
	return raw, err
}

// readError says why the body could not be read.
func (x *exchange) readError(err error) *apiError {
	tooLarge, isTooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case isTooLarge: // by the directive request_body, which may have a lower limit
		return tooLargeError(tooLarge.Limit)
	case errors.Is(err, memory.ErrTooLarge):
		return tooLargeError(x.h.MaxBodySize)
	case errors.Is(err, memory.ErrExhausted):
		e := noMemoryError()
		return &e
	case errors.Is(err, io.ErrUnexpectedEOF): // the client may still listen
		return badRequest(http.StatusBadRequest, "incomplete_body", "the body ended early")
	case errors.Is(err, os.ErrDeadlineExceeded): // which also ends the request's context
		return badRequest(http.StatusRequestTimeout, "body_timeout", "the body did not arrive in time")
	case x.r.Context().Err() != nil:
		return &apiError{status: statusClientClosed}
	}
	if he, ok := errors.AsType[caddyhttp.HandlerError](err); ok && he.StatusCode != 0 {
		return badRequest(he.StatusCode, "invalid_body", "the body could not be read")
	}
	return badRequest(http.StatusBadRequest, "invalid_body", "the body could not be read")
}

func tooLargeError(limit int64) *apiError {
	return badRequest(http.StatusRequestEntityTooLarge, "body_too_large", "the body is larger than %s bytes", strconv.FormatInt(limit, 10))
}
