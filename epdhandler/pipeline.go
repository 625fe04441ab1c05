package epdhandler

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/media"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// run takes the request through its stages, until one has failed for good or the
// client has its answer.
func (x *exchange) run() {
	x.begin()
	defer x.dropConsumer()
	defer x.leaveGate()
	if x.h.prefill != nil {
		x.prefilling = x.attempts(x.h.prefill)
	}
	if x.h.StreamKeepalive > 0 && x.streams() {
		x.keepalive = stream.StartKeepalive(x.w, x.id, time.Duration(x.h.StreamKeepalive))
		defer x.keepalive.End()
	}
	for {
		f := x.pass()
		if f == nil {
			return
		}
		x.restore(f)
		if f.final {
			x.fail(f)
			return
		}
	}
}

// begin readies the request for being sent to engines.
func (x *exchange) begin() {
	x.engineID = engineID(x.id)
	x.header = forwarded(x.r.Header, x.h.TrustClients)
	x.decoding = x.attempts(x.h.decode)
}

// pass goes through the stages that are not done yet, each with one attempt
// (encode: with all that its items have).
func (x *exchange) pass() *failure {
	if f := x.chooseConsumer(); f != nil {
		return f
	}
	if f := x.encode(); f != nil {
		return f
	}
	if f := x.passGate(); f != nil {
		return f
	}
	if f := x.prefill(); f != nil {
		return f
	}
	return x.decode()
}

// restore has the stages done again whose results an attempt has spent. Engines
// give what kv_transfer_params and transfer handles name just once, to whoever
// asks first; only an attempt that did not get through to an engine has left them
// as they were.
func (x *exchange) restore(f *failure) {
	spent := f.stage == "prefill" && x.embeddings.Handles != nil || f.stage == "decode" && x.transferred()
	lost := x.lost(f)
	if died := f.call.reached && (f.reason == broken || f.call.lost); x.refers(f.stage) && (lost || died) {
		// an engine that lacks an embedding dies of a reference to it (vLLM 0.32): the
		// next one gets the media
		x.noReferences, x.embeddings = true, x.embeddings.WithoutReferences()
	}
	gone := x.consumer != nil && !x.prefilled // whom the embeddings are with
	if (!spent && !lost || !f.call.reached) && !gone && !f.call.stale {
		return
	}
	if lost && x.kv != nil {
		x.prefilling.avoid() // nobody else can have lost the blocks
	}
	x.prefilled, x.kv = false, nil
	if x.embeddings.Handles != nil || x.consumer != nil {
		x.encoded, x.embeddings = false, media.Encoded{}
		x.dropConsumer()
	}
}

// lostOnTheWay is what becomes of a call that met the end of an idle connection, of which
// nobody can say whether the engine has got what the call brought. It counts as spent, but
// not as a failure of the engine. This happens to a request once: the next attempts have
// connections of their own.
func (x *exchange) lostOnTheWay(c *call) *failure {
	x.alone = true
	return again(c, errIdleEnded)
}

var errIdleEnded = errors.New("an idle connection ended")

// again has the stages done again whose results a call brought, and then the stage of the call.
func again(c *call, why error) *failure {
	f := &failure{reason: expired, stage: c.stage, call: c, cause: why}
	c.end(f)
	return f
}

// lost reports whether an engine may have failed because it could not get what others
// have made for it, such as the KV blocks of a prefill that has died since: it says 500 then.
func (x *exchange) lost(f *failure) bool {
	return x.needy(f.stage) && f.reason == badStatus && f.status == http.StatusInternalServerError
}

// needy reports whether a stage cannot do without what other engines have made for it.
func (x *exchange) needy(stage string) bool {
	return x.refers(stage) || stage == "decode" && x.transferred()
}

// refers reports whether a stage gets references.
func (x *exchange) refers(stage string) bool {
	return x.embeddings.Refers && (stage == "prefill" || stage == "decode" && x.decodeHasEmbeddings())
}

// decodeHasEmbeddings reports whether decode gets the embeddings: because it does prefill as
// well, instead of one, or beside what a prefill has handed over.
func (x *exchange) decodeHasEmbeddings() bool {
	return x.h.prefill == nil || x.h.DecodeHasEmbeddings && (x.kv != nil || x.direct != "")
}

// transferred reports whether decode gets something that serves only once.
func (x *exchange) transferred() bool {
	return x.kv != nil || !x.prefills() && x.embeddings.Handles != nil
}

// fail answers a request that has failed for good.
func (x *exchange) fail(f *failure) {
	x.report.outcome = outcomeOf(f.verdict.status)
	begun := x.keepalive.End()
	if f.stage == "decode" && f.isAnswered() && !begun {
		x.release()
		f.engine.Deliver(x.w, x.id)
		return
	}
	e := f.verdict
	if f.item != "" && e.Param == nil && e.status < http.StatusInternalServerError {
		e.Param = f.item
	}
	if begun {
		stream.WriteEvent(x.w, e.encode())
		x.breakOff(true)
		return
	}
	if f.isAnswered() {
		e.write(x.w)
		return
	}
	x.sendError(e)
}

// streams reports whether the client wants a stream.
func (x *exchange) streams() bool {
	return x.body != nil && string(x.body.Value(body.Stream)) == "true"
}
