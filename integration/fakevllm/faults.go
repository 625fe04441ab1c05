package fakevllm

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"sync"
	"time"
)

// FaultKind is a way in which an engine fails.
type FaultKind string

const (
	// None is no fault.
	None FaultKind = ""

	// Hang accepts requests, /health included, and sends nothing until the client
	// leaves or SetFault is called again; then the request is served.
	Hang FaultKind = "hang"

	// CutBefore resets the connection before the first byte of an answer.
	CutBefore FaultKind = "cut before"

	// CutMiddle sends the right status and headers with the first half of the
	// answer, then resets the connection. A stream ends in the middle of an
	// event, after the first few.
	CutMiddle FaultKind = "cut middle"

	// CutBetween is CutMiddle between two events of a stream. Real engines fail there,
	// because they write each event in one piece.
	CutBetween FaultKind = "cut between"

	// ErrorWithin ends a stream, after its first few events, with an error event (Code,
	// Message) and [DONE].
	ErrorWithin FaultKind = "error within"

	// ErrorFirst answers as vLLM does when a request fails after its checks: with Code and
	// Message. A stream has the status 200 and the error as its first event (in a chat,
	// after the one with the role), then [DONE].
	ErrorFirst FaultKind = "error first"

	// Status answers Code, with Message in vLLM's error shape.
	Status FaultKind = "status"

	// Slow waits for Delay before the request is served.
	Slow FaultKind = "slow"

	// Garbage answers 200 with a body that is not JSON.
	Garbage FaultKind = "garbage"

	// Forget makes a modern encode engine answer as usual, but consumers do not find the
	// embeddings: they were removed from the storage.
	Forget FaultKind = "forget"

	// Crash is Kill, right after the request has been read.
	Crash FaultKind = "crash"
)

// Fault makes an engine fail. An invalid request is rejected as usual and does not count:
// a fault takes precedence only over errors about missing embeddings and KV.
type Fault struct {
	Kind    FaultKind
	Code    int           // for Status, ErrorWithin and ErrorFirst; default 500
	Message string        // for Status, ErrorWithin and ErrorFirst
	Header  http.Header   // for Status: additional headers, such as Retry-After
	Delay   time.Duration // for Slow

	// Times is the number of requests that the fault applies to. 0 is all,
	// until the fault is replaced. GET /health does not count.
	Times int

	// Match limits the fault to requests whose body contains it.
	Match string

	// Spend makes the engine read the KV blocks and transfer handles of the request
	// before it fails, so that they are used up.
	Spend bool
}

// faults holds an engine's current fault.
type faults struct {
	mu       sync.Mutex
	fault    Fault
	left     int           // of Times
	replaced chan struct{} // closed when the fault is replaced
}

// SetFault replaces the current fault. Fault{} clears it. Hanging requests go on.
func (e *Engine) SetFault(f Fault) {
	e.faults.set(f)
}

func (f *faults) set(fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.replaced != nil {
		close(f.replaced)
	}
	f.fault, f.left, f.replaced = fault, fault.Times, make(chan struct{})
}

// next returns the fault that this request gets, and when it is replaced.
func (f *faults) next(body []byte) (Fault, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fault := f.fault
	if fault.Kind == None || !bytes.Contains(body, []byte(fault.Match)) {
		return Fault{}, nil
	}
	if fault.Times > 0 {
		f.left--
		if f.left == 0 {
			f.fault = Fault{}
		}
	}
	return fault, f.replaced
}

// hang returns a channel that is closed when GET /health may be answered; nil: at once.
func (f *faults) hang() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.Kind != Hang || f.fault.Match != "" {
		return nil
	}
	return f.replaced
}

// strike applies the current fault. If it returns neither an answer nor an error, the
// request is served, possibly after a delay.
func (x *exchange) strike() (*answer, error) {
	fault, replaced := x.engine.faults.next(x.body)
	if fault.Spend {
		x.spend()
	}
	switch fault.Kind {
	case Hang:
		return nil, waitFor(x.context(), replaced)
	case Slow:
		return nil, pause(x.context(), fault.Delay)
	case CutBefore:
		return nil, errCut
	case Crash:
		connectionOf(x.r).life.kill()
		return nil, errKilled
	case Forget:
		x.forgets = true
	case CutMiddle:
		x.cut = (*answer).firstHalf
	case CutBetween:
		x.cut = (*answer).firstEvents
	case ErrorWithin:
		x.within = fault.error()
	case ErrorFirst:
		if x.members.is("stream", "true") {
			return x.failingStream(fault.error()), nil
		}
		return fault.answer(), nil
	case Garbage:
		return jsonAnswer(http.StatusOK, []byte(`{"id":"chatcmpl-`)), nil
	case Status:
		return fault.answer(), nil
	}
	return nil, nil
}

func (f Fault) error() *apiError {
	return newAPIError(cmp.Or(f.Code, http.StatusInternalServerError), nil, f.Message)
}

func (f Fault) answer() *answer {
	a := f.error().answer()
	for name, values := range f.Header {
		a.header[http.CanonicalHeaderKey(name)] = values
	}
	return a
}

// waitFor returns the context's cause if it ends before the channel is closed.
func waitFor(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-done:
		return nil
	}
}

// pause sleeps until the time is over or the context is done.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
