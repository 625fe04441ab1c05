package epdhandler

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

var errIdleEnded = errors.New("an idle connection ended")

// decode makes one attempt to have the answer generated. The client gets it as it arrives,
// unless its status leads to another attempt.
func (g *generation) decode(e *embeddings, b *blocks) (f *failure) {
	ctx, leave := g.report.enter(g.r.Context(), &g.report.decode, g.decoding)
	var delivered *failure // an error that the client has, as the answer or in it
	defer func() { leave(cmp.Or(f, delivered)) }()
	ctx, clock, cancel := g.watch(ctx)
	defer cancel()
	c := g.decodeCall(e, b, clock)
	g.guard(&c, e, b)
	a, w := g.decoding.next(g.client, c), g.response(b, clock, cancel)
	a.Send(ctx, w)
	g.decoding.sent()
	brings := g.bringsToDecode(e, b) // without blocks that became too old
	if a.Stale != nil {
		return g.stale(g.decoding)
	}
	if a.Lost {
		return g.lost(a, brings)
	}
	result := w.End(endingOf(a))
	if result.Cut && a.Err == nil {
		a.Err = engine.ErrBroke
	}
	if result.Held != nil {
		f := g.judgeHeld(ctx, a, result)
		f.brought = brings
		g.settle(g.decoding, f)
		return f
	}
	broken := (result.Cut || result.ClientGone) && !result.Done
	if broken {
		delivered = g.abort(ctx, a, w, result)
	} else {
		delivered = g.noteAnswer(a, result)
	}
	a.End()
	if broken {
		g.breakOff(result.Stream)
	}
	return nil
}

// judgeHeld returns the failure of an attempt if the client has nothing of its answer.
func (g *generation) judgeHeld(ctx context.Context, a *engine.Attempt, result stream.Result) *failure {
	if result.Failed { // an error event: what came afterwards does not matter
		a.Err = nil
		ctx = g.r.Context()
	}
	if a.Judge(ctx, result.Held.Status, result.Held.Err); !a.Failed() {
		a.Fail(telemetry.Broken, 0, errors.New("no stream"))
	}
	a.End()
	return newFailure(a, result.Held)
}

func endingOf(a *engine.Attempt) stream.Ending {
	switch {
	case a.Err != nil:
		return stream.Cut
	case a.Unframed:
		return stream.Unframed
	}
	return stream.Complete
}

// noteAnswer sets the outcome of a complete answer. It returns the error that the answer is, or
// contains, if any.
func (g *generation) noteAnswer(a *engine.Attempt, result stream.Result) *failure {
	switch {
	case result.Status >= http.StatusBadRequest:
		g.report.outcome = telemetry.OutcomeOf(result.Status)
		return g.noteError(a, result.Status, engine.StatusError(result.Status))
	case result.StreamError != 0:
		if g.report.outcome = telemetry.BrokeOff; result.StreamError < http.StatusInternalServerError {
			g.report.outcome = telemetry.Turned
		}
		return g.noteError(a, result.StreamError, fmt.Errorf("the stream has an error of status %d", result.StreamError))
	}
	g.report.outcome = telemetry.OK
	return nil
}

func (g *generation) noteError(a *engine.Attempt, status int, cause error) *failure {
	a.Fail(telemetry.BadStatus, status, cause)
	f := &failure{Attempt: a, final: true, verdict: apiError{status: status}}
	g.fails(g.decoding, f)
	g.log(f, g.decoding)
	return f
}

// abort ends an answer that broke off. In a stream it sends an error event.
func (g *generation) abort(ctx context.Context, a *engine.Attempt, w *stream.Response, result stream.Result) *failure {
	if result.ClientGone || g.r.Context().Err() != nil {
		g.report.outcome = telemetry.ClientClosed
		a.Fail(telemetry.Canceled, 0, nil)
		return &failure{Attempt: a}
	}
	g.report.outcome = telemetry.BrokeOff
	a.Judge(ctx, 0, nil)
	f := newFailure(a, nil)
	f.final = true
	f.count(g.h.process.Metrics)
	g.log(f, g.decoding)
	w.Abort(f.verdict.encode())
	return f
}

func (g *generation) bringsToDecode(e *embeddings, b *blocks) brought {
	return brought{
		references: e.Refers && g.decodeHasEmbeddings(b),
		once:       b.Params != nil || !g.prefills() && e.Handles != nil,
	}
}

func (g *generation) decodeCall(e *embeddings, b *blocks, clock *stream.Silence) engine.Call {
	c := engine.Call{
		Method: http.MethodPost, Path: g.r.URL.Path, ID: g.decoding.id(g.engineID), IDHead: g.engineID + "-",
		Encoding: g.r.Header["Accept-Encoding"], Body: g.decodeBody(e, b), Clock: clock,
		Spends: g.bringsToDecode(e, b).once || e.pushedTo != nil, Alone: g.seen.lostCall,
	}
	if g.in.streams {
		c.Encoding = []string{"identity"} // errors in a compressed stream cannot be seen
	}
	if e.stage == telemetry.Decode {
		c.Reserved, c.Movable = e.pushedTo, g.movable()
	}
	return c
}

// decodeHasEmbeddings reports whether decode gets the embeddings: because it does prefill as
// well, or because it is a consumer of them too.
func (g *generation) decodeHasEmbeddings(b *blocks) bool {
	return g.h.site.Prefill == nil || g.h.DecodeHasEmbeddings && (b.Params != nil || g.in.without != "")
}

// decodeBody is the client's body with what the stages before have made for decode. After a
// prefill it has the media as the client sent them: if decode has to compute a part of the
// prompt again it cannot get the embeddings, and dies of a reference to one (vLLM 0.32).
func (g *generation) decodeBody(e *embeddings, b *blocks) *body.Segments {
	kv := g.carry(body.KVTransferParams, b.Params)
	if !g.decodeHasEmbeddings(b) {
		return g.in.body.Rewrite(kv, body.Remove(body.ECTransferParams))
	}
	return e.Body.Rewrite(kv, g.carry(body.ECTransferParams, e.Handles))
}

// response passes the answer on to the client. stop ends the engine's answer.
func (g *generation) response(b *blocks, clock *stream.Silence, stop func()) *stream.Response {
	return stream.NewResponse(stream.Config{
		Client:    g.w,
		RequestID: g.id,
		Streamed:  g.in.streams,
		Memory:    g.in.room,
		Silence:   clock,
		Keepalive: g.keepalive,
		Accept: func(status int) bool {
			// reverse_proxy answers 499 if the client is gone
			return status/100 != 3 && !g.decoding.repeatable(status) && g.r.Context().Err() == nil
		},
		OnCommit: func(status int, streamed bool) {
			if status/100 == 2 {
				g.decoding.succeeds()
			}
			g.in.release()
			if streamed {
				g.report.begins()
			}
		},
		CachedTokens: func() *int {
			if b.Params == nil {
				return nil // decode computed the prompt itself, and its usage is right
			}
			return &b.Cached
		},
		Stop: stop,
	})
}

// watch limits the silence of a stream.
func (g *generation) watch(ctx context.Context) (context.Context, *stream.Silence, context.CancelFunc) {
	if !g.in.streams {
		ctx, cancel := context.WithCancel(ctx)
		return ctx, new(stream.Silence), cancel
	}
	return stream.Watch(ctx,
		stream.Limit{Option: "stream_start_timeout", Time: time.Duration(g.h.StreamStartTimeout)},
		stream.Limit{Option: "stream_idle_timeout", Time: time.Duration(g.h.StreamIdleTimeout)})
}
