// Package stream passes the answer of an engine on to the client, as server-sent events or
// whole, and limits how long the engine may be silent. It must not know stages, instances,
// retries, or what the proxy does when an answer fails.
package stream

import (
	"mime"
	"net/http"
	"strings"
)

// Response is an http.ResponseWriter that passes the answer of an engine on to the client
// as it comes, but not before it is worth it: what is not passed on can be asked for again
// elsewhere. It is always in one of three states:
//
//   - held: the client has nothing. The header has not come, or its status is not accepted,
//     or the first byte of the body has not come.
//   - opening: a stream has begun, but none of its events has content, and one may still be
//     an error. The client has nothing.
//   - committed: the client has the status, and gets all that comes.
//
// It goes from held to committed, or from held through opening to committed, and may end in
// any state. Informational answers (1xx) are dropped.
type Response struct {
	config Config
	state
}

// Config is what a Response needs.
type Config struct {
	Client    http.ResponseWriter
	RequestID string // x-request-id for the client

	// Streamed says that the client wants a stream, and that the engine was told not to
	// compress it. A compressed stream is refused with ErrCompressed.
	Streamed bool

	// CachedTokens returns how many tokens of the prompt were cached, -1 if that is not known. It
	// replaces the number in the usage of the answer. Nil, also as the result, leaves the answer
	// as it is.
	CachedTokens func() *int

	Memory    Memory     // counts an answer that is held; nil: nothing does
	Silence   *Silence   // of the engine
	Keepalive *Keepalive // ended before anything else is sent; nil: there is none

	// Accept reports whether the client gets an answer of this status.
	Accept func(status int) bool

	// OnCommit is called just before the client gets a status. There can be no further
	// attempt then.
	OnCommit func(status int, stream bool)

	// Stop ends the engine's answer. It is called when the client cannot be written to.
	Stop func()
}

// state is what a Response does with what comes from the engine.
type state interface {
	http.ResponseWriter
	FlushError() error // for http.ResponseController
	end(e Ending) Result
}

// Ending is how an engine's answer ended.
type Ending int

const (
	Complete Ending = iota
	Cut             // it broke off
	Unframed        // by the end of the connection. A stream is complete if it has [DONE]
)

// Result is what has become of an answer.
type Result struct {
	Held   *Answer // the answer, of which the client has nothing; nil if it has the status
	Failed bool    // Held is an error that was the first event with content, whatever came then

	// If the client has the status:
	Status      int
	Stream      bool // of server-sent events, not compressed by the engine
	StreamError int  // status of an error that the engine has put into the stream; 0: none
	Done        bool // the client has [DONE]. Some clients leave then, before the answer ends
	Cut         bool // the answer broke off
	ClientGone  bool // a write to the client failed
}

// NewResponse returns a Response that is held.
func NewResponse(c Config) *Response {
	r := &Response{config: c}
	r.state = &held{response: r, answer: Answer{Memory: c.Memory}}
	return r
}

// End ends the answer, and returns what has become of it. A complete answer that was held
// for its first byte, or for its first content, goes to the client.
func (r *Response) End(e Ending) Result { return r.end(e) }

// Abort follows End for an answer that broke off. It ends a stream with an event that has
// this object. The caller then breaks the connection.
func (r *Response) Abort(object []byte) {
	if c, ok := r.state.(*committed); ok {
		c.abort(object)
	}
}

// commit gives the client the status and the header.
func (r *Response) commit(status int, header http.Header) *committed {
	config := &r.config
	c := &committed{
		response: r,
		conn:     http.NewResponseController(config.Client),
		status:   status,
		stream:   isStream(header),
	}
	r.state = c
	config.OnCommit(status, c.stream)
	if config.CachedTokens != nil && status == http.StatusOK && isIdentity(header.Get("Content-Encoding")) {
		if cached := config.CachedTokens(); cached != nil {
			c.usage = &usageEdit{cached: *cached, events: c.stream}
		}
	}
	if !config.Keepalive.End() { // else the client has them
		writeHeader(config.Client, config.RequestID, status, header)
	}
	return c
}

const eventStream = "text/event-stream"

// isEvents reports whether an answer is a stream of events.
func isEvents(header http.Header) bool {
	typ, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	return typ == eventStream
}

// isStream reports whether an answer is a stream of events that is not compressed.
func isStream(header http.Header) bool {
	return isEvents(header) && isIdentity(header.Get("Content-Encoding"))
}

// isIdentity reports whether a Content-Encoding is none.
func isIdentity(encoding string) bool {
	return encoding == "" || strings.EqualFold(encoding, "identity")
}
