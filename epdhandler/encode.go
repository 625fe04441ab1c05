package epdhandler

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"golang.org/x/sync/errgroup"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// encoding is how the media of a request are encoded, and what has been tried.
type encoding struct {
	plan     *media.Plan
	attempts []*attempts // of each batch
}

// encodes reports whether a request needs encoders. If decode computes the prompt instead of
// prefill, it does only if decode gets the embeddings. Pushed ones go to prefill.
func (h *Handler) encodes(in *input) bool {
	return len(in.media.Items()) > 0 && (in.without == "" || h.DecodeHasEmbeddings && h.consumers == nil)
}

// encode has all media items encoded, encode_concurrency batches at a time. The first one that
// fails for good ends the others.
func (g *generation) encode() (made *embeddings, f *failure) {
	e := &embeddings{Encoded: media.Encoded{Body: g.in.body}, stage: telemetry.Decode}
	if g.prefills() {
		e.stage = telemetry.Prefill
	}
	if !g.h.encodes(g.in) {
		return e, nil
	}
	if g.encoding == nil {
		g.encoding = g.planEncoding()
	}
	if e.pushedTo, f = g.reserveConsumer(); f != nil {
		return nil, f
	}
	defer func() {
		if made == nil { // also after a panic
			e.release()
		}
	}()
	ctx, leave := g.report.enter(g.r.Context(), &g.report.encode, g.encoding.attempts...)
	defer func() { leave(f) }()
	var to string // where encoders push to
	if e.pushedTo != nil {
		to = e.pushedTo.Control
	}
	answers, f := g.encodeAll(ctx, to)
	switch {
	case f == nil:
		e.Encoded = g.encoding.plan.Encoded(answers)
	case !f.optional:
		return nil, f
	}
	if g.seen.noReferences {
		e.Encoded = e.WithoutReferences()
	}
	return e, nil
}

func (g *generation) planEncoding() *encoding {
	options := media.Options{
		References: g.h.References,
		Pushed:     g.h.consumers != nil,
		BatchSize:  g.h.EncodeBatch,
		Encoders:   len(g.h.Encode.Upstreams), // none are known if the pool is dynamic
	}
	if options.References || options.Pushed {
		repl := g.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		options.Salt = repl.ReplaceAll(g.h.UUIDSalt, "")
	}
	e := &encoding{plan: g.in.media.Plan(options)}
	for range e.plan.Batches {
		a := g.h.attempts(g.h.site.Encode)
		if len(e.attempts) > 0 {
			a.turn = e.attempts[0].turn // a request's, not an item's
		}
		e.attempts = append(e.attempts, a)
	}
	return e
}

// encodeAll has all batches encoded. It returns the first failure, without which there is an
// answer for each batch.
func (g *generation) encodeAll(ctx context.Context, to string) ([]media.Answer, *failure) {
	ctx, cancel := context.WithCancel(ctx) // not the group's: its cancellation counts against healthy instances
	defer cancel()
	var (
		group   errgroup.Group
		first   atomic.Pointer[failure]
		failing *attempts // of the first failure
		answers = make([]media.Answer, len(g.encoding.plan.Batches))
	)
	group.SetLimit(g.h.EncodeConcurrency)
	for i := range answers {
		group.Go(func() error {
			if first.Load() != nil {
				return nil
			}
			var f *failure
			if answers[i], f = g.encodeBatch(ctx, i, to); f != nil && first.CompareAndSwap(nil, f) {
				failing = g.encoding.attempts[i]
				cancel()
			}
			return nil
		})
	}
	_ = group.Wait() // no function fails
	f := first.Load()
	if f != nil && g.h.mayBeOptional(f) {
		f.optional = g.harmless()
		g.log(f, failing)
	}
	return answers, f
}

// mayBeOptional reports whether a request may go on without encoders after the last attempt of a
// batch failed: the consumer encodes the media itself. Not if encoders are only busy, because
// consumers would be then, nor if another encoder could have been asked.
func (h *Handler) mayBeOptional(f *failure) bool {
	return h.EncodeOptional && f.Stage == telemetry.Encode && !f.unpaid &&
		(f.Reason == telemetry.Unavailable || f.Reason == telemetry.Refused || f.ByEngine())
}

// harmless reports whether no item has made two encoders fail: it might kill its consumer as
// well. After one, the consumer counts as the further attempt.
func (g *generation) harmless() bool {
	return !slices.ContainsFunc(g.encoding.attempts, func(a *attempts) bool { return a.poison > min(1, *g.h.Retries) })
}

// encodeBatch has a batch of media items encoded, in several attempts if need be.
func (g *generation) encodeBatch(ctx context.Context, i int, to string) (media.Answer, *failure) {
	for {
		answer, f := g.tryEncode(ctx, i, to)
		if f == nil {
			return answer, nil
		}
		if g.settle(g.encoding.attempts[i], f); f.final {
			return media.Answer{}, f
		}
	}
}

func (g *generation) tryEncode(ctx context.Context, i int, to string) (media.Answer, *failure) {
	ctx, clock, cancel := stream.Watch(ctx, stream.Limit{Option: "encode_timeout", Time: time.Duration(g.h.EncodeTimeout)}, stream.Limit{})
	defer cancel()
	plan, a := g.encoding.plan, g.encoding.attempts[i]
	b := plan.Batches[i]
	head := g.engineID + ":" + strconv.Itoa(b[0]) + ":"
	c := engine.Call{Method: http.MethodPost, Path: chatPath, ID: head + engine.RandomHex(6), IDHead: head, Clock: clock, Items: b}
	var ids []string
	c.Renew = func() (request *body.Segments) {
		request, ids = plan.Request(i, to)
		return request
	}
	c.Body = c.Renew()
	text, f := g.ask(ctx, a, c)
	if f == nil {
		answer, err := plan.Read(i, text.Body.Bytes(), ids)
		if err == nil {
			a.succeeds()
			return answer, nil
		}
		f = nonsense(a.attempt, err)
	}
	if len(b) == 1 {
		f.item = g.in.media.Items()[b[0]].Path()
	}
	return media.Answer{}, f
}

// ask makes an attempt whose answer is for the proxy, not for the client.
func (g *generation) ask(ctx context.Context, a *attempts, c engine.Call) (*stream.Answer, *failure) {
	attempt, answer := a.next(g.client, c), new(stream.Answer)
	if g.in != nil {
		answer.Memory = g.in.room
	}
	defer a.sent()
	attempt.Send(ctx, answer)
	attempt.Judge(ctx, answer.Status, answer.Err)
	attempt.End()
	if attempt.Failed() {
		return nil, newFailure(attempt, answer)
	}
	return answer, nil
}
