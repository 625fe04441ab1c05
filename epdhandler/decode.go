package epdhandler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// decode has the answer generated, with one attempt. The client gets it as it
// comes, as soon as its status is one that need not be tried elsewhere.
func (x *exchange) decode() (f *failure) {
	ctx, leave := x.enter(&x.report.decode, x.decoding)
	var delivered *failure // the client has it as the answer, or in it
	defer func() { leave(cmp.Or(f, delivered)) }()
	ctx, clock, cancel := x.watch(ctx)
	defer cancel()
	c := x.decodeCall(clock, cancel)
	w := x.response(clock, cancel)
	x.decoding.begin(c)
	err := x.do(ctx, x.h.decode, c, w)
	x.decoding.note(c)
	if c.stale {
		x.decoding.made-- // nobody was asked
		return again(c, errStale)
	}
	if c.lost {
		return x.lostOnTheWay(c)
	}
	result := w.End(endingOf(c, err))
	switch {
	case result.Failed:
		ctx, err = x.r.Context(), nil
	case result.Cut && err == nil:
		err = errBroke
	}
	if result.Held != nil {
		f := judge(ctx, "decode", c, result.Held, err)
		if f == nil {
			f = brokenAnswer("decode", c, errors.New("no stream"))
		}
		c.end(f)
		x.settle(x.decoding, f)
		return f
	}
	if (result.Cut || result.ClientGone) && !result.Done {
		delivered = x.abort(ctx, c, w, result, err)
		c.end(delivered)
		x.breakOff(result.Stream)
		return nil
	}
	delivered = x.noteAnswer(c, result)
	c.end(delivered)
	return nil
}

// endingOf is how the answer to a call ended.
func endingOf(c *call, err error) stream.Ending {
	switch {
	case err != nil:
		return stream.Cut
	case c.unframed:
		return stream.Unframed
	}
	return stream.Complete
}

// noteAnswer notes the outcome of a complete answer that the client has, and returns the error
// that it is, or has.
func (x *exchange) noteAnswer(c *call, result stream.Result) *failure {
	switch {
	case result.Status >= http.StatusBadRequest:
		x.report.outcome = outcomeOf(result.Status)
		return x.noteError(c, result.Status, statusError(result.Status))
	case result.StreamError != 0:
		if x.report.outcome = outcomeBrokeOff; result.StreamError < http.StatusInternalServerError {
			x.report.outcome = outcomeRejected
		}
		return x.noteError(c, result.StreamError, fmt.Errorf("the stream has an error of status %d", result.StreamError))
	}
	x.report.outcome = outcomeOK
	return nil
}

// decodeCall is the call of an attempt. cancel ends it before an engine has got it.
func (x *exchange) decodeCall(clock *stream.Silence, cancel func()) *call {
	c := &call{
		method:   http.MethodPost,
		path:     x.r.URL.Path,
		id:       x.attemptID(x.decoding),
		idHead:   x.engineID + "-",
		encoding: x.r.Header["Accept-Encoding"],
		body:     x.decodeBody(),
		clock:    clock,
	}
	if x.streams() {
		c.encoding = []string{"identity"} // what is compressed cannot be seen to be an error
	}
	c.spends, c.alone = x.transferred() || x.consumer != nil, x.alone
	x.pin(c, x.h.decode)
	x.guardBlocks(c, cancel)
	return c
}

// noteError notes an error that the client has got as the answer, or in it.
func (x *exchange) noteError(c *call, status int, cause error) *failure {
	f := &failure{
		reason: badStatus, status: status, stage: "decode", call: c, final: true,
		cause: cause, verdict: apiError{status: status},
	}
	x.fails(x.decoding, f)
	x.logFailure(f, x.decoding)
	return f
}

// response is the way to the client. stop ends the engine's answer.
func (x *exchange) response(clock *stream.Silence, stop func()) *stream.Response {
	c := stream.Config{
		Client:    x.w,
		RequestID: x.id,
		Streamed:  x.streams(),
		Memory:    x.room,
		Silence:   clock,
		Keepalive: x.keepalive,
		Accept: func(status int) bool {
			// reverse_proxy says 499 for a client that went away
			return status/100 != 3 && !x.decoding.repeatable(status) && x.r.Context().Err() == nil
		},
		OnCommit: func(status int, streamed bool) {
			if status/100 == 2 {
				x.decoding.succeeds()
			}
			x.release()
			if streamed {
				x.report.begins()
			}
		},
		Stop: stop,
	}
	if x.kv != nil { // else decode has computed the prompt itself, and its usage is right
		c.CachedTokens = &x.cached
	}
	return stream.NewResponse(c)
}

// watch limits the silence of a stream.
func (x *exchange) watch(ctx context.Context) (context.Context, *stream.Silence, context.CancelFunc) {
	if !x.streams() {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, new(stream.Silence), cancel
	}
	return stream.Watch(ctx,
		stream.Limit{Option: "stream_start_timeout", Time: time.Duration(x.h.StreamStartTimeout)},
		stream.Limit{Option: "stream_idle_timeout", Time: time.Duration(x.h.StreamIdleTimeout)})
}

// abort deals with an answer that broke off in its middle. In a stream the client gets to
// know why.
func (x *exchange) abort(ctx context.Context, c *call, w *stream.Response, result stream.Result, cause error) *failure {
	if result.ClientGone || x.r.Context().Err() != nil {
		x.report.outcome = outcomeClientClosed
		return &failure{reason: canceled}
	}
	x.report.outcome = outcomeBrokeOff
	f := judge(ctx, "decode", c, new(stream.Answer), cause)
	f.final = true
	countFailure(f)
	x.logFailure(f, x.decoding)
	w.Abort(f.verdict.encode())
	return f
}

// breakOff breaks the client's connection, so that it does not take half of an answer for
// the whole. Over HTTP/3 a receiver drops what it has not read of a stream that is
// reset, also what has arrived. So one that ends with an event that is an error, and
// without [DONE], just ends there.
func (x *exchange) breakOff(withEvent bool) {
	if !withEvent || x.r.ProtoMajor < 3 {
		panic(http.ErrAbortHandler)
	}
}

// decodeBody is the client's body with what the stages before have left for
// decode. After a prefill it has no need of the embeddings, unless it is a consumer of them as
// well. If it had to compute a part of the prompt again it could not get them, and would die of a
// reference (vLLM 0.32). Where prefill has handed nothing over, it computes the prompt without them.
func (x *exchange) decodeBody() *body.Segments {
	kv := x.carry(body.KVTransferParams, x.kv)
	if !x.decodeHasEmbeddings() {
		return x.body.Rewrite(kv, body.Remove(body.ECTransferParams))
	}
	return x.forConsumers().Rewrite(kv, x.carry(body.ECTransferParams, x.embeddings.Handles))
}

// forConsumers is the body that those get who need the embeddings.
func (x *exchange) forConsumers() *body.Body {
	if x.embeddings.Body != nil {
		return x.embeddings.Body
	}
	return x.body
}
