package epdhandler

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/handover"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// input is the indexed body of a client's request.
type input struct {
	body    *body.Body // nil when engines no longer need it
	media   *media.Set // in the body
	memory  *memory.Buffer
	room    *memory.Share // the request's share of max_memory
	chat    bool
	streams bool   // the client wants a stream
	without string // the member because of which prefill is skipped; empty: it is not skipped
}

// release frees the body's memory, as soon as engines no longer read it.
func (in *input) release() {
	if in != nil {
		in.memory.Release()
		in.body, in.media, in.memory = nil, nil, nil
	}
}

// readInput reads the client's body and indexes it. Together with an error, which is meant for the
// client, it returns what has been read so far.
func (x *exchange) readInput(parse bodyParser) (*input, *apiError) {
	if !isJSON(x.r.Header) {
		return nil, badRequest(http.StatusUnsupportedMediaType, "unsupported_media_type", "the body must be JSON, with the header Content-Type: application/json")
	}
	raw, in, e := x.readBody()
	if e != nil {
		return in, e
	}
	if invalid, ok := errors.AsType[*media.Error](parse(x.h, raw, in)); ok {
		return in, mediaError(invalid)
	}
	in.body.Memory = in.memory
	stream := in.body.Value("stream")
	if body.Given(stream) && !body.IsBool(stream) {
		return in, invalidBody("stream", "'stream' must be true, false or null")
	}
	in.streams = string(stream) == "true"
	x.report.received(in)
	if e := x.h.check(in); e != nil {
		return in, e
	}
	if err := in.room.Add(itemSize * int64(len(in.media.Items()))); err != nil {
		return in, x.readError(err)
	}
	if x.h.site.Prefill != nil {
		in.without = handover.Prevents(in.body, in.chat)
		if x.report.without = in.without; in.without != "" {
			x.h.process.Metrics.HandOvers.WithLabelValues(telemetry.HandOverSkipped).Inc()
		}
	}
	return in, nil
}

// itemSize is the memory that a media item takes besides its bytes: its place in the body, its uuid,
// the answers of encoders, and the pieces of bodies around it. See TestItemsAreCounted.
const itemSize = 2 << 10

// readBody reads the client's body unchanged. If the bodies of all requests take too much memory, it
// fails before it reads a byte.
func (x *exchange) readBody() ([]byte, *input, *apiError) {
	if e := x.r.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, nil, badRequest(http.StatusUnsupportedMediaType, "unsupported_encoding", "compressed bodies are not supported; send the JSON as it is")
	}
	length := x.r.ContentLength
	if length > x.h.MaxBodySize {
		return nil, nil, tooLargeError(x.h.MaxBodySize)
	}
	room, err := x.h.process.Memory.Reserve(x.r.Context(), max(length, 0), x.h.MaxMemory)
	if err != nil {
		return nil, nil, x.readError(err)
	}
	conn := http.NewResponseController(x.w)
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(x.h.BodyTimeout)))
	defer func() { _ = conn.SetReadDeadline(time.Time{}) }()
	raw, memory, err := room.ReadBody(x.r.Body, length, x.h.MaxBodySize)
	if err != nil {
		return nil, nil, x.readError(err)
	}
	x.received = true
	return raw, &input{memory: memory, room: room}, nil
}

// isJSON reports whether the content type of a request is JSON. Pages of other sites can make a
// browser send any other type without a CORS preflight.
func isJSON(h http.Header) bool {
	types := h["Content-Type"]
	if len(types) != 1 {
		return false
	}
	typ, _, _ := strings.Cut(types[0], ";")
	return strings.EqualFold(strings.Trim(typ, " \t"), "application/json")
}

func (x *exchange) readError(err error) *apiError {
	tooLarge, isTooLarge := errors.AsType[*http.MaxBytesError](err)
	switch {
	case isTooLarge: // from the directive request_body, whose limit may be lower
		return tooLargeError(tooLarge.Limit)
	case errors.Is(err, memory.ErrTooLarge):
		return tooLargeError(x.h.MaxBodySize)
	case errors.Is(err, memory.ErrExhausted):
		return new(noMemoryError())
	case errors.Is(err, io.ErrUnexpectedEOF): // the client may still wait for an answer
		return badRequest(http.StatusBadRequest, "incomplete_body", "the body ended early")
	case errors.Is(err, os.ErrDeadlineExceeded): // it also cancels the request's context
		return badRequest(http.StatusRequestTimeout, "body_timeout", "the body did not arrive in time")
	case x.r.Context().Err() != nil:
		return &apiError{status: telemetry.StatusClientClosed}
	}
	he, _ := errors.AsType[caddyhttp.HandlerError](err)
	return badRequest(cmp.Or(he.StatusCode, http.StatusBadRequest), "invalid_body", "the body could not be read")
}

func tooLargeError(limit int64) *apiError {
	return badRequest(http.StatusRequestEntityTooLarge, "body_too_large", "the body is larger than %d bytes", limit)
}

// check rejects what clients must not send, and what engines might read differently than this package.
func (h *Handler) check(in *input) *apiError {
	if e := in.media.CheckSources(h.sources); e != nil {
		return mediaError(e)
	}
	if e := media.CheckOptions(in.body, h.TrustClients); e != nil {
		return mediaError(e)
	}
	switch {
	case h.consumers != nil && in.body.Members(body.ECTransferParams).Value("ec_items") != nil && h.TrustClients:
		return invalidBody("ec_transfer_params.ec_items", "ec_items cannot be sent to a proxy that makes its own (ec_consumers)")
	case h.TrustClients:
		return nil
	case !in.chat && body.Given(in.body.Value("prompt_embeds")):
		return invalidBody("prompt_embeds", "prompt_embeds is for trusted clients only; send a prompt")
	}
	// vLLM also reads transfer parameters from here, which clients must not set
	for _, name := range []string{body.KVTransferParams, body.ECTransferParams} {
		if in.body.Members(body.VLLMXArgs).Value(name) != nil {
			return invalidBody("vllm_xargs", "vllm_xargs must not have kv_transfer_params or ec_transfer_params")
		}
	}
	return nil
}

func (h *Handler) findRoom(pools ...*engine.Pool) *apiError {
	for _, p := range pools {
		if p != nil && (p.Full() || p == h.site.Decode && h.site.Gate.Full()) {
			h.process.Metrics.StageFailures.WithLabelValues(p.Stage, string(telemetry.Overloaded)).Inc()
			return new(overloadedError(p.Stage))
		}
	}
	return nil
}
