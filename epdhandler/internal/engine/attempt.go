package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Call is what a stage asks of its pool in one attempt.
type Call struct {
	Method, Path string
	ID           string         // x-request-id
	IDHead       string         // what the ids of repetitions begin with
	Body         *body.Segments // nil: none

	// Renew makes the body of a repetition after an engine may have seen the one before. Nil: the same.
	Renew func() *body.Segments

	Encoding []string       // Accept-Encoding; nil: the transport asks for gzip itself, and undoes it
	Skip     []string       // instances not to choose
	Turn     *dispatch.Turn // in the queue of the pool; nil: the call takes no slot
	Patience time.Duration  // how long it may wait for a slot, where that is more than queue_timeout
	Clock    Clock          // of its time limit
	Reserved *Reservation   // the only instance that it may go to; nil: any
	Movable  bool           // it ends as [Attempt.Stale] rather than wait for that one while another is free
	Spends   bool           // it brings what engines give only once
	Alone    bool           // it gets a connection of its own
	Number   int            // of the attempt in its stage, from 1
	Items    []int          // the media items that it is about, in encode

	// Ready is asked when there is a slot for the call, and may replace its body. An error gives the
	// slot back, and ends the call as [Attempt.Stale]. Nil: it is ready.
	Ready func(*body.Segments) (*body.Segments, error)
}

// Clock limits how long an engine takes. It stops while the call waits for a slot.
type Clock interface {
	dispatch.Clock
	Expired() error // of the limit that has passed
}

// Reservation is an instance that was chosen before the call is made. It must be released.
type Reservation struct {
	Address string
	Control string // the address that embeddings are pushed to
	Rank    string // for X-Data-Parallel-Rank; empty if there is only one

	slot *dispatch.Slot
}

// Release lets go of the instance. It may be called more than once, and on nil.
func (r *Reservation) Release() {
	if r != nil {
		r.slot.Release()
	}
}

// RandomHex returns n random hexadecimal digits, 16 at most, that tell calls apart. They are no secret.
func RandomHex(n int) string { return fmt.Sprintf("%016x", rand.Uint64())[:n] }

// Attempt is a call and what came of it: who was asked, what came back, and why it failed. What
// decides about further attempts, the log, the metrics and the spans read this one value.
type Attempt struct {
	Call
	Stage string

	Chosen   []string      // the instances that the load balancing chose; the last one answered, or was asked last
	Selected time.Time     // when the slot of the last one was taken; zero: when no instance was ejected
	Waited   time.Duration // for a slot
	Asked    time.Time     // when it was last sent
	Reached  bool          // there was a connection, so that an engine may have seen the call
	Lost     bool          // an idle connection ended, perhaps with what the call brought
	Stale    error         // why what the call brings is of no use any more; nobody was asked
	Unframed bool          // nothing but the end of the connection says that the answer ended

	Reason telemetry.Reason // why it failed; empty: it did not
	Status int              // of the answer of an engine, or of Caddy for it; 0: none
	Cause  error            // for the log; never holds content
	Err    error            // what reverse_proxy, or something before it, says; nil after an answer that came to its end

	pool   *Pool
	client *Client
	ask    dispatch.Ask
	slot   *dispatch.Slot
	span   trace.Span          // nil: it was not sent
	fault  error               // a [dispatch.BusyError], or of somebody else's code, which panicked or chose nonsense
	writer http.ResponseWriter // of the policy
	told   http.Header         // what the policy tells the client
	broke  bool                // the answer ended in its middle
	code   int                 // of the engine's last answer

	lookingUp bool                      // it is only to find out which upstreams there are
	found     reverseproxy.UpstreamPool // those
}

// NewAttempt returns the attempt to have a call answered by the pool, on behalf of a client.
func (p *Pool) NewAttempt(client *Client, c Call) *Attempt {
	a := &Attempt{Call: c, Stage: p.Stage, pool: p, client: client}
	a.ask = dispatch.Ask{Turn: c.Turn, Skip: c.Skip, Patience: c.Patience, Clock: c.Clock}
	if c.Reserved != nil {
		a.ask.Only, a.ask.Movable = c.Reserved.Address, c.Movable
	}
	return a
}

// NotSent returns an attempt that failed before a call was made.
func (p *Pool) NotSent(why telemetry.Reason, cause error) *Attempt {
	return &Attempt{Stage: p.Stage, Reason: why, Cause: cause, pool: p}
}

// Send sends the call and writes the answer to w. What came of it is known when [Attempt.Judge] has
// been called; then [Attempt.End] must be.
func (a *Attempt) Send(ctx context.Context, w http.ResponseWriter) {
	defer func() { a.slot.Release() }()
	defer a.contain()
	ctx, a.span = telemetry.StartSpan(ctx, a.Method+" "+a.Path, trace.SpanKindClient)
	a.Err = a.pool.Handler.ServeHTTP(w, a.client.request(ctx, a, w), noHandler)
	if a.Err == nil && a.broke {
		a.Err = ErrBroke
	}
}

// Reserve chooses the instance for a call that is made later. Without one, it returns nil, and the
// attempt says why when it has been judged.
func (a *Attempt) Reserve(ctx context.Context) *Reservation {
	defer a.contain()
	a.ask.Early = true
	p, w := a.pool.Handler, make(discard)
	u := p.LoadBalancing.SelectionPolicy.Select(p.Upstreams, a.client.request(ctx, a, w), w)
	if u == nil || ctx.Err() != nil {
		a.slot.Release()
		a.Err = cmp.Or[error](a.fault, dispatch.ErrNobody)
		return nil
	}
	if a.Turn != nil {
		a.Turn.Admitted = true // encoders work for it
	}
	return &Reservation{Address: u.Dial, slot: a.slot}
}

// contain makes a panic, of reverse_proxy or of a module that it uses, a failure of the
// call. On a goroutine of ours it would end the process.
func (a *Attempt) contain() {
	switch v := recover(); v {
	case nil:
	case http.ErrAbortHandler: // by which reverse_proxy ends an answer that its writer did not take
		a.Err = ErrBroke
	default:
		a.fault = a.pool.panicked(v, zap.String("request_id", a.client.ID))
		a.Err = a.fault
	}
}

// ErrBroke is that an answer ended in its middle.
var ErrBroke = errors.New("the answer broke off")

// HasBody reports whether the call has a body. To answer one without costs an engine nothing.
func (a *Attempt) HasBody() bool { return a.Body != nil }

// Upstream is the instance that answered, or was asked last; empty if none was.
func (a *Attempt) Upstream() string {
	if len(a.Chosen) == 0 {
		return ""
	}
	return a.Chosen[len(a.Chosen)-1]
}

// Instance is the instance that answered, or was asked last.
func (a *Attempt) Instance() *dispatch.Instance { return a.pool.Instance(a.Upstream()) }

// Failed reports whether the attempt failed.
func (a *Attempt) Failed() bool { return a.Reason != "" }

// Why is the reason as operators get to know it.
func (a *Attempt) Why() telemetry.Reason {
	if a.Reason == telemetry.BadStatus && a.Status/100 == 4 {
		return telemetry.Rejected
	}
	return a.Reason
}

// ByEngine reports whether an engine that was reached failed: not if it is busy or blames the request.
func (a *Attempt) ByEngine() bool {
	return a.Reached && (a.Reason == telemetry.TimedOut || a.Reason == telemetry.Broken ||
		a.Reason == telemetry.BadStatus && a.Status >= http.StatusInternalServerError)
}

// Judge decides whether the attempt failed, and why, by the status of the answer that was
// received (0: none), the reason why it was not taken, and how the call ended.
func (a *Attempt) Judge(ctx context.Context, status int, untaken error) {
	a.Fail(a.judge(ctx, status, untaken))
	if a.Cause != nil && strings.Contains(a.Cause.Error(), "malformed") {
		a.Cause = errors.New("malformed HTTP") // net/http quotes what it got, which may be the request
	}
}

func (a *Attempt) judge(ctx context.Context, status int, untaken error) (why telemetry.Reason, _ int, cause error) {
	handler, _ := errors.AsType[caddyhttp.HandlerError](a.Err)
	timeout, _ := errors.AsType[net.Error](a.Err)
	cause = cmp.Or(handler.Err, a.Err)
	switch {
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded):
		return telemetry.TimedOut, 0, a.Clock.Expired()
	case ctx.Err() != nil:
		return telemetry.Canceled, 0, cause
	case a.Err == nil && status/100 == 2:
		return "", status, nil
	case a.Err == nil && status != 0:
		return telemetry.BadStatus, status, StatusError(status)
	case errors.As(a.fault, new(dispatch.BusyError)):
		return telemetry.Overloaded, 0, a.fault
	case a.fault != nil:
		return telemetry.Broken, 0, a.fault
	case len(a.Chosen) == 0:
		return telemetry.Unavailable, 0, cause
	case a.Err != nil && !a.Reached:
		return telemetry.Refused, 0, cause
	case timeout != nil && timeout.Timeout():
		return telemetry.TimedOut, 0, cause
	case handler.StatusCode >= 400 && handler.StatusCode != http.StatusBadGateway:
		// lb_retry_match gave up on an answer, or handle_response made an error
		return telemetry.BadStatus, handler.StatusCode, cause
	case errors.Is(untaken, memory.ErrExhausted):
		return telemetry.Overloaded, 0, untaken
	}
	return telemetry.Broken, 0, cmp.Or(untaken, cause, errors.New("no answer"))
}

// Fail makes the attempt a failed one for a reason that its answer shows.
func (a *Attempt) Fail(why telemetry.Reason, status int, cause error) {
	a.Reason, a.Status, a.Cause = why, status, cause
}

// StatusError is a failure that an engine put in a status. Its words may quote the request: not for logs.
func StatusError(status int) error { return fmt.Errorf("status %d", status) }

// End ends the span of the call, when it is known what came of it.
func (a *Attempt) End() {
	if a.span == nil {
		return
	}
	defer a.span.End()
	if !a.span.IsRecording() {
		return
	}
	a.span.SetAttributes(
		attribute.String("http.request.method", a.Method),
		attribute.String("url.path", a.Path),
		attribute.Int("epd.attempt", a.Number),
	)
	if a.Items != nil {
		a.span.SetAttributes(attribute.IntSlice("epd.media_items", a.Items))
	}
	if address := a.Upstream(); address != "" {
		a.span.SetAttributes(telemetry.Server(address)...)
	}
	if a.code != 0 {
		a.span.SetAttributes(attribute.Int("http.response.status_code", a.code))
	}
	switch a.Reason {
	case "":
	case telemetry.Canceled:
		a.span.SetAttributes(attribute.String("error.type", string(a.Reason)))
	case telemetry.BadStatus:
		telemetry.FailSpan(a.span, strconv.Itoa(a.Status))
	default:
		telemetry.FailSpan(a.span, string(a.Reason))
	}
}
