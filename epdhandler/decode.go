package epdhandler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// decode has the answer generated, with one attempt. The client gets it as it
// comes, as soon as its status is one that need not be tried elsewhere.
func (x *exchange) decode() (f *failure) {
	ctx, leave := x.enter(&x.report.decode, x.decoding)
	var told *failure // that the client has got as the answer
	defer func() { leave(cmp.Or(f, told)) }()
	ctx, clock, cancel := x.watch(ctx)
	defer cancel()
	c := x.decodeCall(clock, cancel)
	w := x.response()
	w.silence, w.stop = clock, cancel
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
	if err == nil && c.unframed && w.stream && !w.ended() {
		err = errBroke // which looks like the end
	}
	if w.close(err != nil) {
		ctx, err = x.r.Context(), nil
	}
	switch {
	case !w.committed:
		f := judge(ctx, "decode", c, &w.held, err)
		if f == nil {
			f = brokenAnswer("decode", c, errors.New("no stream"))
		}
		c.end(f)
		x.settle(x.decoding, f)
		return f
	case (err != nil || w.gone) && !w.ended():
		told = x.abort(ctx, c, w, err)
		c.end(told)
		x.breakOff(w.stream)
		return nil
	case w.status >= http.StatusBadRequest:
		x.report.outcome = outcomeOf(w.status)
		told = x.noteError(c, w.status, statusError(w.status))
	case w.failure != 0:
		if x.report.outcome = outcomeBrokeOff; w.failure < http.StatusInternalServerError {
			x.report.outcome = outcomeRejected
		}
		told = x.noteError(c, w.failure, fmt.Errorf("the stream has an error of status %d", w.failure))
	default:
		x.report.outcome = outcomeOK
	}
	c.end(told)
	return nil
}

// decodeCall is the call of an attempt. cancel ends it before an engine has got it.
func (x *exchange) decodeCall(clock *silence, cancel func()) *call {
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

// response is the way to the client.
func (x *exchange) response() *response {
	w := &response{
		client:    x.w,
		conn:      http.NewResponseController(x.w),
		id:        x.id,
		held:      answer{room: x.room},
		keepalive: x.keepalive,
		silence:   new(silence),
		stop:      func() {},
		begins:    x.report.begins,
		correct:   x.correct,
		plain:     x.streams(),
		accept: func(status int) bool {
			// reverse_proxy says 499 for a client that went away
			return status/100 != 3 && !x.decoding.repeatable(status) && x.r.Context().Err() == nil
		},
	}
	w.done = func() {
		if w.status/100 == 2 {
			x.decoding.succeeds()
		}
		x.release()
	}
	return w
}

// watch limits the silence of a stream.
func (x *exchange) watch(ctx context.Context) (context.Context, *silence, context.CancelFunc) {
	if !x.streams() {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, new(silence), cancel
	}
	return watch(ctx,
		limit{"stream_start_timeout", time.Duration(x.h.StreamStartTimeout)},
		limit{"stream_idle_timeout", time.Duration(x.h.StreamIdleTimeout)})
}

// abort deals with an answer that broke off in its middle. In a stream the client gets to
// know why.
func (x *exchange) abort(ctx context.Context, c *call, w *response, cause error) *failure {
	if w.gone || x.r.Context().Err() != nil {
		x.report.outcome = outcomeClientClosed
		return &failure{reason: canceled}
	}
	x.report.outcome = outcomeBrokeOff
	f := judge(ctx, "decode", c, new(answer), cause)
	f.final = true
	countFailure(f)
	x.logFailure(f, x.decoding)
	if w.stream {
		w.endEvent()
		f.verdict.writeEvent(w.client)
	}
	_ = w.FlushError()
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
