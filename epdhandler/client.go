package epdhandler

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

// clientWriter is the way to the client. One that does not take what it gets would hold
// an engine for ever, so writing has a time limit, unless the server has one itself.
type clientWriter struct {
	http.ResponseWriter
	patience time.Duration // 0: no limit
	set      time.Time     // when the deadline was set, zero: never
}

func newClientWriter(w http.ResponseWriter, r *http.Request, patience time.Duration) *clientWriter {
	if serverOf(r).WriteTimeout != 0 {
		patience = 0
	}
	return &clientWriter{ResponseWriter: w, patience: patience}
}

// Unwrap is for http.ResponseController.
func (w *clientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write implements http.ResponseWriter.
func (w *clientWriter) Write(p []byte) (int, error) {
	w.extend()
	return w.ResponseWriter.Write(p)
}

// FlushError implements the Flush of http.ResponseController.
func (w *clientWriter) FlushError() error {
	w.extend()
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// extend sets the deadline. HTTP/2 ends a stream by it even if nothing is being
// written, so it must come after the end of an engine's silence; and to set it takes
// time, so that is not done for every event.
func (w *clientWriter) extend() {
	if now := time.Now(); w.patience > 0 && now.Sub(w.set) > w.patience/2 {
		w.set = now
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(now.Add(2 * w.patience))
	}
}

// done lifts the limit: the connection serves the next request.
func (w *clientWriter) done() {
	if !w.set.IsZero() {
		_ = http.NewResponseController(w.ResponseWriter).SetWriteDeadline(time.Time{})
	}
}

// limitUpload limits how long the client's body may take, unless the server does
// so itself. done lifts the limit.
func (x *exchange) limitUpload() (done func()) {
	if serverOf(x.r).ReadTimeout != 0 {
		return func() {}
	}
	conn := http.NewResponseController(x.w)
	_ = conn.SetReadDeadline(time.Now().Add(time.Duration(x.h.BodyTimeout)))
	return func() { _ = conn.SetReadDeadline(time.Time{}) }
}

func serverOf(r *http.Request) *caddyhttp.Server {
	return r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
}
