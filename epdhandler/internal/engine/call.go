package engine

import (
	"context"
	"errors"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
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
	Ranked   bool           // it goes to the rank of the reservation
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

	pool  *Pool
	ask   dispatch.Ask
	slot  *dispatch.Slot
	query string // the client's, which engines do not get
	span  trace.Span

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

// Do sends a call to the pool and writes the answer to w. What came of it is known when
// [Attempt.Judge] has been called; then [Attempt.End] must be.
func (p *Pool) Do(ctx context.Context, client *Client, in Call, w http.ResponseWriter) *Attempt {
	c := p.newCall(client, in)
	defer c.release()
	defer c.contain(client)
	ctx, c.span = c.startSpan(ctx)
	c.Attempt.err = p.Handler.ServeHTTP(w, client.request(ctx, c, w), noHandler)
	if c.Attempt.err == nil && c.broke {
		c.Attempt.err = errBroke
	}
	return c.Attempt
}

func (p *Pool) newCall(client *Client, in Call) *call {
	c := &call{Call: in, pool: p, query: client.Request.URL.RawQuery}
	c.Attempt = &Attempt{Stage: p.Stage, Number: in.Number, Items: in.Items, HasBody: in.Body != nil, pool: p, call: c}
	c.ask = dispatch.Ask{Turn: in.Turn, Skip: in.Skip, Patience: in.Patience}
	if in.Clock != nil {
		c.ask.Clock = in.Clock
	}
	if in.Reserved != nil {
		c.ask.Only = in.Reserved.Address
	}
	return c
}

func (c *call) release() { c.slot.Release() }

// contain makes a panic, of reverse_proxy or of a module that it uses, a failure of the
// call. On a goroutine of ours it would end the process.
func (c *call) contain(client *Client) {
	switch v := recover(); v {
	case nil:
	case http.ErrAbortHandler: // by which reverse_proxy ends an answer that its writer did not take
		c.Attempt.err = errBroke
	default:
		c.fault = c.pool.panicked(v, client.ID)
		c.Attempt.err = c.fault
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

// Reserve chooses an instance for a call that is made later. The attempt says why there is none.
func (p *Pool) Reserve(ctx context.Context, client *Client, in Call) (r *Reservation, a *Attempt) {
	c := p.newCall(client, in)
	defer c.contain(client)
	w := new(discard)
	c.early = true
	u := p.Handler.LoadBalancing.SelectionPolicy.Select(p.Handler.Upstreams, client.request(ctx, c, w), w)
	if u == nil || ctx.Err() != nil {
		c.slot.Release()
		if c.Attempt.err == nil {
			c.Attempt.err = dispatch.ErrNobody
		}
		return nil, c.Attempt
	}
	return &Reservation{Address: u.Dial, slot: c.slot}, c.Attempt
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
