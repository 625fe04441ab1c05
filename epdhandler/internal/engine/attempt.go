package engine

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/attribute"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Attempt is what came of a call: what was asked of whom, what came back, and why it failed. What
// decides about further attempts, the log, the metrics and the spans read this one value.
type Attempt struct {
	Stage   string
	Number  int   // in its stage, from 1
	Items   []int // the media items that it was about, in encode
	Pinned  bool  // to the instance that was reserved
	HasBody bool  // else it is a question that any engine can answer, and costs it nothing

	Chosen   []string      // the instances that the load balancing chose; the last one answered, or was asked last
	Selected time.Time     // when the slot of the last one was taken; zero: when no instance was ejected
	Waited   time.Duration // for a slot
	Asked    time.Time     // when it was last sent
	Reached  bool          // there was a connection, so that an engine may have seen the call
	Lost     bool          // an idle connection ended, perhaps with what the call brought
	Stale    bool          // what the call brought had become too old when there was a slot
	Unframed bool          // nothing but the end of the connection says that the answer ended

	Reason telemetry.Reason // why it failed; empty: it did not
	Status int              // of the answer of an engine, or of Caddy for it; 0: none
	Cause  error            // for the log; never holds content

	pool  *Pool
	call  *call
	broke bool // the answer ended in its middle
	code  int  // of the engine's last answer
	err   error
}

// Upstream is the instance that answered, or was asked last; empty if none was.
func (a *Attempt) Upstream() string {
	if len(a.Chosen) == 0 {
		return ""
	}
	return a.Chosen[len(a.Chosen)-1]
}

// Instance is the instance that answered, or was asked last.
func (a *Attempt) Instance() *dispatch.Instance { return a.pool.Instance(a.Upstream()) }

// known are the instances among which the load balancing chose.
func (a *Attempt) known() reverseproxy.UpstreamPool {
	if a.call == nil {
		return nil
	}
	return a.call.ask.Upstreams()
}

// Failed reports whether the attempt failed.
func (a *Attempt) Failed() bool { return a.Reason != "" }

// Err is what reverse_proxy, or something before it, says of the call; nil after an answer that
// came to its end.
func (a *Attempt) Err() error { return a.err }

// BrokeOff notes that the answer ended in its middle, although it looked like its end.
func (a *Attempt) BrokeOff() { a.err = errBroke }

// Answered notes that there is a whole answer, however the call ended.
func (a *Attempt) Answered() { a.err = nil }

// Why is the reason as operators get to know it.
func (a *Attempt) Why() telemetry.Reason {
	if a.Reason == telemetry.BadStatus && a.Status/100 == 4 {
		return telemetry.Rejected
	}
	return a.Reason
}

// ByEngine reports whether an engine has failed at what it was asked: it was reached, is not
// only busy, and does not say that the request is at fault.
func (a *Attempt) ByEngine() bool {
	switch a.Reason {
	case telemetry.TimedOut, telemetry.Broken:
		return a.Reached
	case telemetry.BadStatus:
		return a.Reached && a.Status >= http.StatusInternalServerError
	}
	return false
}

// ErrNoMemory is why an answer is not taken for which there is no memory.
type memoryError interface{ NoMemory() bool }

// Judge decides whether the attempt failed, and why, by the status of the answer that was
// received (0: none), the reason why it was not taken, and how the call ended.
func (a *Attempt) Judge(ctx context.Context, status int, untaken error) {
	a.Reason, a.Status, a.Cause = a.judge(ctx, status, untaken)
	if a.Cause != nil && strings.Contains(a.Cause.Error(), "malformed") {
		a.Cause = errors.New("malformed HTTP") // net/http quotes what it got, which may be the request
	}
}

func (a *Attempt) judge(ctx context.Context, status int, untaken error) (why telemetry.Reason, _ int, cause error) {
	handler, _ := errors.AsType[caddyhttp.HandlerError](a.err)
	if cause = a.err; handler.Err != nil {
		cause = handler.Err
	}
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return telemetry.TimedOut, 0, a.call.Clock.Expired()
	case ctx.Err() != nil:
		return telemetry.Canceled, 0, cause
	case a.err == nil && status/100 == 2:
		return "", status, nil
	case a.err == nil && status != 0:
		return telemetry.BadStatus, status, StatusError(status)
	case a.call.fault != nil:
		return telemetry.Broken, 0, a.call.fault
	case a.call.busy != nil:
		return telemetry.Overloaded, 0, a.call.busy
	case len(a.Chosen) == 0:
		return telemetry.Unavailable, 0, cause
	case a.err != nil && !a.Reached:
		return telemetry.Refused, 0, cause
	case isTimeout(a.err):
		return telemetry.TimedOut, 0, cause
	case handler.StatusCode >= 400 && handler.StatusCode != http.StatusBadGateway:
		// lb_retry_match gave up on an answer, or handle_response made an error
		return telemetry.BadStatus, handler.StatusCode, cause
	}
	return broken(a.err, untaken, cause)
}

func broken(err, untaken, cause error) (telemetry.Reason, int, error) {
	noMemory, is := errors.AsType[interface {
		error
		memoryError
	}](untaken)
	switch {
	case is && noMemory.NoMemory():
		return telemetry.Overloaded, 0, untaken
	case untaken != nil:
		return telemetry.Broken, 0, untaken
	case err == nil:
		return telemetry.Broken, 0, errors.New("no answer")
	}
	return telemetry.Broken, 0, cause
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	return ok && timeout.Timeout()
}

// Fail makes the attempt a failed one for a reason that its answer shows.
func (a *Attempt) Fail(why telemetry.Reason, status int, cause error) {
	a.Reason, a.Status, a.Cause = why, status, cause
}

// StatusError is the cause of a failure that an engine put in a status. Its words
// may quote the request, so they are not for the log.
func StatusError(status int) error { return fmt.Errorf("status %d", status) }

// NotSent returns an attempt that failed before a call was made.
func (p *Pool) NotSent(why telemetry.Reason, cause error) *Attempt {
	return &Attempt{Stage: p.Stage, Reason: why, Cause: cause, pool: p}
}

// End ends the span of the call, when it is known what came of it.
func (a *Attempt) End() {
	c := a.call
	if c == nil || c.span == nil {
		return
	}
	defer c.span.End()
	if !c.span.IsRecording() {
		return
	}
	c.span.SetAttributes(
		attribute.String("http.request.method", c.Method),
		attribute.String("url.path", c.Path),
		attribute.Int("epd.attempt", a.Number),
	)
	if a.Items != nil {
		c.span.SetAttributes(attribute.IntSlice("epd.media_items", a.Items))
	}
	if address := a.Upstream(); address != "" {
		c.span.SetAttributes(telemetry.Server(address)...)
	}
	if a.code != 0 {
		c.span.SetAttributes(attribute.Int("http.response.status_code", a.code))
	}
	switch a.Reason {
	case "":
	case telemetry.Canceled:
		c.span.SetAttributes(attribute.String("error.type", string(a.Reason)))
	case telemetry.BadStatus:
		telemetry.FailSpan(c.span, strconv.Itoa(a.Status))
	default:
		telemetry.FailSpan(c.span, string(a.Reason))
	}
}
