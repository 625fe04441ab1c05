package fakevllm

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"sync"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind string

const (
	// None is no fault.
	None FaultKind = ""

	// Hang accepts requests and stays silent, /health included, until the
	// client leaves or SetFault is called again; then the request is served.
	Hang FaultKind = "hang"

	// CutBefore resets the connection without any byte of an answer.
	CutBefore FaultKind = "cut before"

	// CutMiddle sends the right status and headers with the first half of the
	// answer, then resets the connection. A stream ends in the middle of an
	// event, after the first few.
	CutMiddle FaultKind = "cut middle"

	// CutBetween is CutMiddle between two events of a stream, which is where
	// engines break off: they write each event at once.
	CutBetween FaultKind = "cut between"

	// ErrorWithin ends a stream, after its first few events, with one that is an error, of
	// Code and with Message, and with [DONE].
	ErrorWithin FaultKind = "error within"

	// ErrorFirst answers as vLLM does when a request fails after its checks: Code, with
	// Message, but a stream has the status 200 and the error as its first event (in a chat
	// as the one after the role), and [DONE].
	ErrorFirst FaultKind = "error first"

	// Status answers Code, with Message in vLLM's error shape.
	Status FaultKind = "status"

	// Slow waits for Delay before the request is served.
	Slow FaultKind = "slow"

	// Garbage answers 200 with a body that is not JSON.
	Garbage FaultKind = "garbage"

	// Forget makes a modern encode engine answer as ever, but what it has encoded is not
	// where consumers look for it: somebody has cleaned the storage.
	Forget FaultKind = "forget"

	// Crash is Kill, at the moment the request has been read.
	Crash FaultKind = "crash"
)

// Fault makes an engine fail. A request that is wrong in itself is refused as
// ever, and does not count: a fault hides nothing but missing embeddings and KV.
type Fault struct {
	Kind    FaultKind
	Code    int           // for Status, ErrorWithin and ErrorFirst; the default is 500
	Message string        // likewise
	Header  http.Header   // for Status: more headers, such as Retry-After
	Delay   time.Duration // for Slow

	// Times is the number of requests that the fault applies to. 0 is all,
	// until the fault is replaced. GET /health does not count.
	Times int

	// Match limits the fault to requests whose body contains it.
	Match string

	// Spend makes the engine read what the request brings before it fails:
	// KV blocks and transfer handles are gone then, though it has failed.
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

// hang returns when GET /health may be answered. It returns nil for: now.
func (f *faults) hang() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault.Kind != Hang || f.fault.Match != "" {
		return nil
	}
	return f.replaced
}

// strike applies the current fault. Without an answer and an error the request
// is served, by an engine that may have been slow.
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

// pause sleeps, but no longer than the context lives.
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
