package telemetry

import "net/http"

// The stages of a request, in their order.
const (
	Encode  = "encode"
	Prefill = "prefill"
	Decode  = "decode"
)

// Stages returns all of them.
func Stages() []string { return []string{Encode, Prefill, Decode} }

// A Reason is why an attempt failed, in the word that logs, metrics and spans have for it.
type Reason string

// The reasons.
const (
	Canceled    Reason = "canceled"    // the client left, or another media item failed
	Expired     Reason = "expired"     // what earlier stages made became useless before it was used; no instance failed
	TimedOut    Reason = "timeout"     // a time limit of the proxy or of its transport
	Unavailable Reason = "unavailable" // no instance is up
	Overloaded  Reason = "overloaded"  // no instance has a free slot, and the queue is full or the wait too long
	Refused     Reason = "refused"     // dial or handshake failed: no engine has seen the request
	Broken      Reason = "broken"      // no answer, a part of one, or one that makes no sense
	BadStatus   Reason = "bad_status"  // 3xx or 5xx
	Rejected    Reason = "rejected"    // 4xx: the request's own fault
)

// An Outcome is what became of a request.
type Outcome string

// The outcomes.
const (
	OK           Outcome = "ok"            // answered
	Turned       Outcome = "rejected"      // answered with 4xx: the request's own fault
	Failed       Outcome = "failed"        // answered with 5xx: an engine's fault, or a lack of engines or memory
	BrokeOff     Outcome = "broke_off"     // decode broke off in the middle of the answer
	ClientClosed Outcome = "client_closed" // the client left
)

// StatusClientClosed is, by convention, the status in logs of a request whose client left.
const StatusClientClosed = 499

// OutcomeOf is the outcome of a request that is answered with an error.
func OutcomeOf(status int) Outcome {
	switch {
	case status == StatusClientClosed:
		return ClientClosed
	case status < http.StatusInternalServerError:
		return Turned
	}
	return Failed
}

// The API that a request is for.
const (
	Chat        = "chat_completions"
	Completions = "completions"
	Models      = "models"
	Health      = "health"
	Profile     = "profile"
	Other       = "other" // there is no such route
)

// What prefill handed over to decode.
const (
	HandOverBlocks  = "blocks"  // KV blocks
	HandOverNone    = "none"    // nothing, although it answered
	HandOverExpired = "expired" // blocks that were too old when decode had a free slot
	HandOverSkipped = "skipped" // the request cannot have a prefill
)
