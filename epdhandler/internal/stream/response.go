// Package stream passes the answer of an engine on to the client, as server-sent events or
// whole, and limits how long the engine may be silent. It must not know stages, instances,
// retries, or what the proxy does when an answer fails.
package stream

import (
	"bytes"
	"cmp"
	"mime"
	"net/http"
	"strings"
	"time"
)

// Response is an http.ResponseWriter that passes the answer of an engine on to the client as it
// comes, but not before it is worth it: what is not passed on can be asked for again elsewhere. It
// goes from held, for a stream through opening, to committed, and may end in any of these states.
// Informational answers (1xx) are dropped.
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

	// CachedTokens returns how many tokens of the prompt were cached, -1: not known. It replaces the
	// number in the usage of the answer. Nil, also as the result, leaves the answer as it is.
	CachedTokens func() *int

	Memory    Memory     // counts an answer that is held; nil: nothing does
	Silence   *Silence   // of the engine
	Keepalive *Keepalive // ended before anything else is sent; nil: there is none

	Accept   func(status int) bool         // reports whether the client gets an answer of this status
	OnCommit func(status int, stream bool) // called just before it gets one; there is no further attempt then
	Stop     func()                        // ends the engine's answer when the client cannot be written to
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

func (r *Response) commit(status int, header http.Header) *committed {
	config := &r.config
	conn := http.NewResponseController(config.Client)
	c := &committed{response: r, conn: conn, status: status, stream: isStream(header)}
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

func isEvents(header http.Header) bool {
	typ, _, _ := mime.ParseMediaType(header.Get("Content-Type"))
	return typ == eventStream
}

func isStream(header http.Header) bool {
	return isEvents(header) && isIdentity(header.Get("Content-Encoding"))
}

func isIdentity(encoding string) bool {
	return encoding == "" || strings.EqualFold(encoding, "identity")
}

// held is the state in which the client has nothing, and there is no stream: the header has not come,
// or its status is not accepted, or the first byte of the body has not come.
type held struct {
	response *Response
	answer   Answer
	accepted bool // the client gets the answer with its first byte, or its end
}

func (h *held) Header() http.Header { return h.answer.Header() }

func (h *held) WriteHeader(status int) {
	if status < 200 || h.answer.Status != 0 {
		return
	}
	h.answer.WriteHeader(status)
	config := &h.response.config
	switch {
	case status == http.StatusOK && isStream(h.answer.Headers):
		h.response.state = &opening{held: h}
	case status == http.StatusOK && config.Streamed && isEvents(h.answer.Headers):
		h.answer.Err = ErrCompressed
	case config.Accept(status):
		// a client that has had a comment has the status and type of a stream
		h.accepted = !config.Keepalive.End()
	}
}

// Write keeps what is not accepted: it may be passed on later, when all attempts have failed.
func (h *held) Write(p []byte) (int, error) {
	if h.accepted {
		return h.commit().Write(p)
	}
	return h.answer.Write(p)
}

func (h *held) commit() *committed {
	return h.response.commit(h.answer.Status, h.answer.Headers)
}

func (h *held) FlushError() error { return nil }

func (h *held) end(e Ending) Result {
	if h.accepted && e != Cut {
		return h.commit().end(Complete)
	}
	return Result{Held: &h.answer}
}

// opening is the state of a stream of which the client has nothing: no event has content yet, and one
// may still be an error.
type opening struct {
	*held
	events firstEvents
}

func (o *opening) Write(p []byte) (int, error) {
	failed, complete := o.events.failed, o.events.complete
	switch begun := o.events.add(p); {
	case begun:
		_, _ = o.commit().Write(o.events.bytes) // never fails
	case o.events.failed != failed: // the engine may go on for so long after an error that is its answer
		o.response.config.Silence.run(Limit{Time: time.Second})
	case o.events.complete > complete: // a comment does not show that the engine works on the request
		o.response.config.Silence.heard()
	}
	return len(p), nil
}

// end makes an error an answer with the status that it should have had. What follows the
// error, and how that ends, does not matter.
func (o *opening) end(e Ending) Result {
	if e != Cut {
		o.events.end()
	}
	switch {
	case o.events.failed != nil:
		return Result{Held: o.events.failed, Failed: true}
	case e == Cut:
		return Result{Held: &o.answer}
	}
	c := o.commit()
	_, _ = c.Write(o.events.bytes)
	return c.end(Complete)
}

// committed is the state in which the client has the status, and gets all that comes.
type committed struct {
	response    *Response
	conn        *http.ResponseController // of the client
	status      int
	stream      bool
	usage       *usageEdit // nil: the usage is right
	tail        [16]byte   // the last bytes that the client has
	streamError int
	clientGone  bool
}

// Header returns the client's: what is set now are trailers.
func (c *committed) Header() http.Header { return c.response.config.Client.Header() }

func (c *committed) WriteHeader(int) {}

// Write never fails: reverse_proxy would log it. A client that is gone ends the answer by Config.Stop.
func (c *committed) Write(p []byte) (int, error) {
	c.response.config.Silence.heard()
	if c.stream {
		c.streamError = cmp.Or(c.streamError, errorStatus(c.tail[:], p))
	}
	if c.usage != nil {
		c.usage.write(p, c.send)
	} else {
		c.send(p)
	}
	return len(p), nil
}

func (c *committed) send(p []byte) {
	if c.clientGone {
		return
	}
	n, err := c.response.config.Client.Write(p)
	if err != nil {
		c.clientGone = true
		c.response.config.Stop()
		return
	}
	c.keepTail(p[:n])
}

func (c *committed) keepTail(p []byte) {
	n := min(len(p), len(c.tail))
	copy(c.tail[:], c.tail[n:])
	copy(c.tail[len(c.tail)-n:], p[len(p)-n:])
}

func (c *committed) FlushError() error { return c.conn.Flush() }

func (c *committed) end(e Ending) Result {
	c.usage.flush(c.send)
	done := c.stream && c.endsWithEvent("[DONE]")
	return Result{
		Status:      c.status,
		Stream:      c.stream,
		StreamError: c.streamError,
		Done:        done,
		Cut:         e == Cut || e == Unframed && c.stream && !done,
		ClientGone:  c.clientGone,
	}
}

// abort sends an error event. An event that was cut before it gets an end of its own.
func (c *committed) abort(object []byte) {
	if !c.stream {
		_ = c.FlushError()
		return
	}
	client := c.response.config.Client
	begun := c.tail != [len(c.tail)]byte{}
	if begun && !c.endsWithEvent("") {
		_, _ = client.Write([]byte("\n\n"))
	}
	WriteEvent(client, object)
}

// endsWithEvent reports whether the last event that the client has is complete, and ends with s.
func (c *committed) endsWithEvent(s string) bool {
	tail := string(c.tail[:])
	return strings.HasSuffix(tail, s+"\n\n") || strings.HasSuffix(tail, s+"\r\n\r\n")
}

// WriteEvent sends a JSON object as an event at once.
func WriteEvent(client http.ResponseWriter, object []byte) {
	event := append([]byte("data: "), bytes.TrimSpace(object)...)
	_, _ = client.Write(append(event, "\n\n"...))
	_ = http.NewResponseController(client).Flush()
}
