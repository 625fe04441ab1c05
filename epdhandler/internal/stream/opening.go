package stream

import (
	"net/http"
	"time"
)

// opening is the state of a Response with a stream that has no content yet.
type opening struct {
	response *Response
	answer   *Answer // status and header
	events   firstEvents
}

// timeAfterError is how long an engine may go on after an error that is its whole answer.
const timeAfterError = time.Second

func (o *opening) Header() http.Header { return o.answer.Header() }

func (o *opening) WriteHeader(int) {}

func (o *opening) Write(p []byte) (int, error) {
	failed, complete := o.events.failed, o.events.complete
	switch begun := o.events.add(p); {
	case begun:
		o.commit()
	case o.events.failed != failed:
		o.response.config.Silence.run(Limit{Time: timeAfterError})
	case o.events.complete > complete: // a comment does not show that the engine works on the request
		o.response.config.Silence.heard()
	}
	return len(p), nil
}

// commit gives the client what was held back.
func (o *opening) commit() *committed {
	c := o.response.commit(http.StatusOK, o.answer.Headers)
	_, _ = c.Write(o.events.bytes) // never fails
	return c
}

func (o *opening) FlushError() error { return nil }

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
		return Result{Held: o.answer}
	}
	return o.commit().end(Complete)
}
