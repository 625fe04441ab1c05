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

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

const chatPath = "/v1/chat/completions"

// encode has every media item encoded, so many batches at a time as are allowed. The
// first item that fails for good ends the others.
func (x *exchange) encode() (f *failure) {
	if x.encoded || len(x.media.Items()) == 0 {
		x.encoded = true
		return nil
	}
	if x.plan == nil {
		x.planEncoding()
	}
	ctx, leave := x.enter(&x.report.encode, x.encoding...)
	defer func() { leave(f) }()
	answers, f := x.encodeAll(ctx)
	if f != nil && !f.optional {
		return f
	}
	x.encoded = true
	if f == nil {
		x.embeddings = x.plan.Encoded(answers)
		if x.noReferences {
			x.embeddings = x.embeddings.WithoutReferences()
		}
	}
	return nil
}

// planEncoding decides which items are encoded, and which of them together.
func (x *exchange) planEncoding() {
	options := media.Options{
		References: x.h.References,
		Pushed:     x.h.consumers != nil,
		BatchSize:  x.h.EncodeBatch,
		Encoders:   len(x.h.encode.handler.Upstreams), // none are known if the pool is dynamic
	}
	if options.References || options.Pushed {
		repl := x.r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		options.Salt = repl.ReplaceAll(x.h.UUIDSalt, "")
	}
	x.plan = x.media.Plan(options)
	for range x.plan.Batches {
		a := x.attempts(x.h.encode)
		if len(x.encoding) > 0 {
			a.turn = x.encoding[0].turn // a request's, not an item's
		}
		x.encoding = append(x.encoding, a)
	}
}

// encodeAll has all batches encoded. It returns the first failure, without which there is an
// answer for each batch.
func (x *exchange) encodeAll(ctx context.Context) ([]media.Answer, *failure) {
	ctx, cancel := context.WithCancel(ctx) // not the group's: its cancellation counts against healthy instances
	defer cancel()
	var (
		group   errgroup.Group
		first   atomic.Pointer[failure]
		failing *attempts // of the first failure
		answers = make([]media.Answer, len(x.plan.Batches))
	)
	group.SetLimit(x.h.EncodeConcurrency)
	for i := range answers {
		group.Go(func() error {
			if first.Load() != nil {
				return nil
			}
			var f *failure
			if answers[i], f = x.encodeBatch(ctx, i); f != nil && first.CompareAndSwap(nil, f) {
				failing = x.encoding[i]
				cancel()
			}
			return nil
		})
	}
	_ = group.Wait() // no function fails
	f := first.Load()
	if f != nil && x.mayBeOptional(f) {
		f.optional = x.harmless()
		x.logFailure(f, failing)
	}
	return answers, f
}

// mayBeOptional reports whether a request may go on after a failure, which ends the attempts
// of an item: its consumer then encodes the media itself. That is not for encoders that are
// only busy, as the consumers would be then, nor where another encoder could have been asked.
func (x *exchange) mayBeOptional(f *failure) bool {
	return x.h.EncodeOptional && f.stage == "encode" && !f.unpaid && (f.reason == unavailable || f.reason == refused || f.isEngines())
}

// harmless reports whether no item may have made two encoders fail, which it would do to its
// consumer as well. With one, the consumer is the further attempt, if retries allows it.
func (x *exchange) harmless() bool {
	return !slices.ContainsFunc(x.encoding, func(a *attempts) bool { return a.poison > min(1, *x.h.Retries) })
}

// encodeBatch has a batch of media items encoded, in several attempts if need be.
func (x *exchange) encodeBatch(ctx context.Context, i int) (media.Answer, *failure) {
	for {
		answer, f := x.tryEncode(ctx, i)
		if f == nil {
			return answer, nil
		}
		if x.settle(x.encoding[i], f); f.final {
			return media.Answer{}, f
		}
	}
}

func (x *exchange) tryEncode(ctx context.Context, i int) (said media.Answer, f *failure) {
	ctx, clock, cancel := stream.Watch(ctx, stream.Limit{Option: "encode_timeout", Time: time.Duration(x.h.EncodeTimeout)}, stream.Limit{})
	defer cancel()
	b := x.plan.Batches[i]
	id := x.engineID + ":" + strconv.Itoa(b[0]) + ":"
	c := &call{
		method: http.MethodPost,
		path:   chatPath,
		id:     id + hex6(),
		idHead: id,
		clock:  clock,
		items:  b,
	}
	var ids []string
	c.renew = func() {
		control := ""
		if x.consumer != nil {
			control = x.consumer.control
		}
		c.body, ids = x.plan.Request(i, control)
	}
	c.renew()
	a, f := x.ask(ctx, x.encoding[i], c)
	if f == nil {
		var err error
		if said, err = x.plan.Read(i, a.Body.Bytes(), ids); err != nil {
			f = brokenAnswer("encode", c, err)
		} else {
			x.encoding[i].succeeds()
		}
	}
	if f != nil && len(b) == 1 { // else nobody says which
		f.item = x.media.Items()[b[0]].Path()
	}
	return said, f
}

// ask makes an attempt whose answer is for the proxy.
func (x *exchange) ask(ctx context.Context, a *attempts, c *call) (*stream.Answer, *failure) {
	a.begin(c)
	defer a.note(c)
	answer := &stream.Answer{Memory: x.room}
	err := x.do(ctx, a.pool, c, answer)
	f := judge(ctx, a.pool.stage, c, answer, err)
	c.end(f)
	return answer, f
}
