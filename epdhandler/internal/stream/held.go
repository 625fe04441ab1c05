package stream

import (
	"net/http"
	"time"
)

// held is the state of a Response of which the client has nothing, and that has no stream.
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

// opening is the state of a Response with a stream that has no content yet.
type opening struct {
	*held
	events firstEvents
}

// timeAfterError is how long an engine may go on after an error that is its whole answer.
const timeAfterError = time.Second

func (o *opening) Write(p []byte) (int, error) {
	failed, complete := o.events.failed, o.events.complete
	switch begun := o.events.add(p); {
	case begun:
		_, _ = o.commit().Write(o.events.bytes) // never fails
	case o.events.failed != failed:
		o.response.config.Silence.run(Limit{Time: timeAfterError})
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
