package fakevllm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// errCut ends a request by resetting its connection.
var errCut = errors.New("connection cut")

// exchange is one request and its answer.
type exchange struct {
	engine   *Engine
	w        http.ResponseWriter
	r        *http.Request
	id       string
	body     []byte
	members  object                // of the body, once it is checked
	prompt   prompt                // likewise
	target   target                // likewise
	referred bool                  // it has references
	cut      func(*answer) *answer // selects what is sent before the connection is reset
	within   *apiError             // error event at the end of a stream, after its first events
	forgets  bool                  // embeddings are not stored
	started  bool                  // a part of the answer was sent
}

func (x *exchange) context() context.Context { return x.r.Context() }

// receive reads the whole body first: only then does net/http watch the connection
// and notice that a client has gone away.
func (e *Engine) receive(w http.ResponseWriter, r *http.Request) (*exchange, error) {
	x := &exchange{engine: e, w: w, r: r, id: r.Header.Get("X-Request-Id")}
	e.reports.begin(x)
	at := time.Now()
	body, err := io.ReadAll(r.Body)
	x.body = body
	if e.options.Forget {
		return x, err
	}
	e.reports.request(Request{
		ID:               x.id,
		At:               at,
		Method:           r.Method,
		Path:             r.URL.Path,
		Proto:            r.Proto,
		Header:           r.Header.Clone(),
		Host:             r.Host,
		ContentLength:    r.ContentLength,
		TransferEncoding: r.TransferEncoding,
		Body:             body,
	})
	return x, err
}

// end removes the request from those in flight. It is called before the answer's last
// byte is sent: the client may send the next request with this id right after it.
func (x *exchange) end() { x.engine.reports.end(x) }

// finish sends the answer or the error.
func (x *exchange) finish(a *answer, err error) {
	var refusal *apiError
	if errors.As(err, &refusal) {
		if !refusal.late {
			x.engine.reports.refusal(Refusal{x.id, time.Now(), refusal.code, refusal.message})
		}
		a, err = refusal.answer(), nil
		if (refusal.late || refusal.statusSent) && x.members.is("stream", "true") {
			a = x.failingStream(refusal)
		}
	}
	if err == nil {
		err = x.send(a)
	}
	if err != nil {
		x.abort(err)
	}
}

// abort resets the connection. If the engine did not intend to cut it, the client
// has gone away.
func (x *exchange) abort(err error) {
	if !errors.Is(err, errCut) && context.Cause(x.context()) != errKilled {
		x.reportGone()
	}
	x.end()
	reset(connectionOf(x.r).conn)
	panic(http.ErrAbortHandler) // net/http's way to end a request without an answer
}

// refuseTruncated is for a body that ended before its Content-Length. Usually the
// client has gone away; one that is still connected gets the error.
func (x *exchange) refuseTruncated(err error) {
	if context.Cause(x.context()) != errKilled {
		x.reportGone()
	}
	refusal := newAPIError(http.StatusBadRequest, nil, fmt.Sprintf(
		"content-length is %d, the body ended after %d bytes: %v", x.r.ContentLength, len(x.body), err))
	x.end()
	a := refusal.answer()
	x.writeHead(a)
	_, _ = x.w.Write(a.pieces[0]) // the client may have gone away
}

func (x *exchange) reportGone() {
	stage := "before"
	if x.started {
		stage = "during"
	}
	x.engine.reports.cancellation(Cancellation{x.id, time.Now(), stage})
}
