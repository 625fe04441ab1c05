package engine

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// Call is what a stage asks of its pool in one attempt.
type Call struct {
	Method, Path string
	ID           string         // x-request-id
	IDHead       string         // what the ids of repetitions begin with
	Body         *body.Segments // nil: none

	// Renew makes the body for a repetition after an engine may have seen the one before. Nil: the
	// same may be sent again.
	Renew func() *body.Segments

	Encoding []string       // Accept-Encoding; nil: the transport asks for gzip itself, and undoes it
	Skip     []string       // instances not to choose
	Turn     *dispatch.Turn // in the queue of the pool; nil: the call takes no slot
	Patience time.Duration  // how long it may wait for a slot, where that is more than queue_timeout
	Clock    Clock          // of its time limit
	Reserved *Reservation   // the only instance that it may go to; nil: any
	Spends   bool           // it brings what engines give only once
	Alone    bool           // it gets a connection of its own
	Number   int            // of the attempt in its stage, from 1
	Items    []int          // the media items that it is about, in encode

	// Ready is asked when there is a slot for the call, and may replace its body. False gives the
	// slot back, and ends the call as [Attempt.Stale]. Nil: it is ready.
	Ready func(*body.Segments) (*body.Segments, bool)
}

// Clock limits how long an engine takes. It stops while the call waits for a slot.
type Clock interface {
	dispatch.Clock

	// Expired is the error of the limit that has passed.
	Expired() error
}

// call is a call on its way, with what comes of it.
type call struct {
	Call
	*Attempt

	pool   *Pool
	client *Client
	ask    dispatch.Ask
	slot   *dispatch.Slot
	span   trace.Span

	fault  error               // of somebody else's code: it panicked, or chose nonsense
	busy   error               // why there was no slot
	writer http.ResponseWriter // of the policy
	told   http.Header         // what the policy tells the client

	early     bool // it is only to reserve an instance
	lookingUp bool // it is only to find out which upstreams there are
}

type callKey struct{}

func withCall(ctx context.Context, c *call) context.Context {
	return context.WithValue(ctx, callKey{}, c)
}

// callOf returns the call that a request to an engine belongs to, nil if none.
func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

// NewAttempt returns the attempt to have a call answered by the pool, on behalf of a client.
func (p *Pool) NewAttempt(client *Client, in Call) *Attempt {
	c := &call{Call: in, pool: p, client: client}
	c.Attempt = &Attempt{Stage: p.Stage, Number: in.Number, Items: in.Items, HasBody: in.Body != nil, Pinned: in.Reserved != nil, pool: p, call: c}
	c.ask = dispatch.Ask{Turn: in.Turn, Skip: in.Skip, Patience: in.Patience}
	if in.Clock != nil {
		c.ask.Clock = in.Clock
	}
	if in.Reserved != nil {
		c.ask.Only = in.Reserved.Address
	}
	return c.Attempt
}

// Send sends the call and writes the answer to w. What came of it is known when [Attempt.Judge] has
// been called; then [Attempt.End] must be.
func (a *Attempt) Send(ctx context.Context, w http.ResponseWriter) {
	c := a.call
	defer func() { c.slot.Release() }()
	defer c.contain()
	ctx, c.span = telemetry.StartSpan(ctx, c.Method+" "+c.Path, trace.SpanKindClient)
	a.err = c.pool.Handler.ServeHTTP(w, c.client.request(ctx, c, w), noHandler)
	if a.err == nil && a.broke {
		a.err = errBroke
	}
}

// contain makes a panic, of reverse_proxy or of a module that it uses, a failure of the
// call. On a goroutine of ours it would end the process.
func (c *call) contain() {
	switch v := recover(); v {
	case nil:
	case http.ErrAbortHandler: // by which reverse_proxy ends an answer that its writer did not take
		c.err = errBroke
	default:
		c.fault = c.pool.panicked(v, c.client.ID)
		c.err = c.fault
	}
}

// errBroke is the end of an answer in its middle.
var errBroke = errors.New("the answer broke off")

// Reservation is an instance that was chosen for a call before the call is made. It must be
// released.
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

// ControlAddress is the address that embeddings are pushed to; empty on nil.
func (r *Reservation) ControlAddress() string {
	if r == nil {
		return ""
	}
	return r.Control
}

// Reserve chooses the instance for a call that is made later. Without one, it returns nil, and the
// attempt says why when it has been judged.
func (a *Attempt) Reserve(ctx context.Context) *Reservation {
	c, w := a.call, new(discard)
	defer c.contain()
	c.early = true
	p := c.pool.Handler
	u := p.LoadBalancing.SelectionPolicy.Select(p.Upstreams, c.client.request(ctx, c, w), w)
	if u == nil || ctx.Err() != nil {
		c.slot.Release()
		a.err = cmp.Or[error](c.fault, dispatch.ErrNobody)
		return nil
	}
	if c.Turn != nil {
		c.Turn.Admitted = true // encoders work for it
	}
	return &Reservation{Address: u.Dial, slot: c.slot}
}

// discard is where policies write that nobody listens to.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header {
	if d.header == nil {
		d.header = make(http.Header)
	}
	return d.header
}

func (*discard) WriteHeader(int) {}

func (*discard) Write(p []byte) (int, error) { return len(p), nil }
