package epdhandler

import (
	"errors"
	"io"
	"net/http"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// reject answers a request before any work was done for it.
func (x *exchange) reject(e *apiError) {
	x.report.outcome = telemetry.OutcomeOf(e.status)
	if x.report.outcome != telemetry.ClientClosed {
		x.h.logger.Warn("request turned away", zap.String("request_id", x.id), zap.String("stage", "request"),
			zap.Int("status", e.status), zap.Any("code", e.Code), zap.Error(errors.New(e.Message)))
	}
	if x.received || x.r.ContentLength == 0 || x.r.ProtoMajor > 1 {
		x.sendError(*e)
		return
	}
	x.refuseUpload(e)
}

const (
	lingering   = time.Second // how long a client may go on to send a body that is not read
	smallUpload = 64 << 10    // the size up to which the rest of a body is read instead
)

// refuseUpload answers over HTTP/1.1 before the body has arrived. net/http would first wait for
// more of it. The connection must be closed, because the bytes that follow are not a request; but
// not at once, or the client would see a reset connection instead of the answer.
func (x *exchange) refuseUpload(e *apiError) {
	conn := http.NewResponseController(x.w)
	_ = conn.SetReadDeadline(time.Now().Add(lingering))
	asks := x.r.Header.Get("Expect") != "" // sends no body after an error
	if n := x.r.ContentLength; 0 < n && n <= smallUpload && !asks {
		x.sendError(*e)
		return
	}
	x.w.Header().Set("Connection", "close")
	x.sendError(*e)
	if x.err == nil {
		_ = conn.Flush()
	} // otherwise Caddy answers later, and the client has a second to send its body first
	if !asks {
		_, _ = io.Copy(io.Discard, x.r.Body)
	}
}
