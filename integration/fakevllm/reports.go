package fakevllm

import (
	"net/http"
	"slices"
	"sync"
	"time"
)

// Request is a request as it arrived.
type Request struct {
	ID               string // x-request-id
	At               time.Time
	Method           string
	Path             string
	Proto            string
	Header           http.Header
	Host             string
	ContentLength    int64
	TransferEncoding []string
	Body             []byte
}

// Cancellation is a request whose client went away before the answer was complete.
type Cancellation struct {
	ID    string
	At    time.Time // when the engine noticed
	Stage string    // "before" or "during": before the first byte of the answer, or after it
}

// Refusal is a request that broke the contract.
type Refusal struct {
	ID      string
	At      time.Time
	Code    int
	Message string
}

// reports is what an engine records about requests. Kill and Restart keep it.
type reports struct {
	mu            sync.Mutex
	requests      []Request
	cancellations []Cancellation
	refusals      []Refusal
	inFlight      map[*exchange]string // and the x-request-id that each has claimed
	peak          int                  // of inFlight
	healthChecks  int
}

// Requests returns all requests except GET /health, oldest first, also those
// for unknown paths.
func (e *Engine) Requests() []Request {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	return slices.Clone(e.reports.requests)
}

// Cancellations returns the requests whose clients went away, oldest first.
func (e *Engine) Cancellations() []Cancellation {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	return slices.Clone(e.reports.cancellations)
}

// Refusals returns the requests that broke the contract, oldest first: all that
// got an error from the engine itself. Errors that come from a fault, or from KV blocks that
// were lost with their engine, do not count.
func (e *Engine) Refusals() []Refusal {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	return slices.Clone(e.reports.refusals)
}

// Reset forgets requests, cancellations and refusals.
func (e *Engine) Reset() {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	e.reports.requests, e.reports.cancellations, e.reports.refusals = nil, nil, nil
}

// InFlight is the number of requests in service, without GET /health. A request is
// no longer counted when its client sees the end of the answer, or when its
// cancellation is reported.
func (e *Engine) InFlight() int {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	return len(e.reports.inFlight)
}

// Peak is the maximum number of requests that were in service at the same time since the
// engine was started.
func (e *Engine) Peak() int {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	return e.reports.peak
}

// HealthChecks is the number of GET /health requests since the engine was started.
func (e *Engine) HealthChecks() int {
	e.reports.mu.Lock()
	defer e.reports.mu.Unlock()
	return e.reports.healthChecks
}

func (r *reports) health() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.healthChecks++
}

func (r *reports) request(q Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q)
}

func (r *reports) cancellation(c Cancellation) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancellations = append(r.cancellations, c)
}

func (r *reports) refusal(f Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusals = append(r.refusals, f)
}

func (r *reports) begin(x *exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.inFlight == nil {
		r.inFlight = make(map[*exchange]string)
	}
	r.inFlight[x] = ""
	r.peak = max(r.peak, len(r.inFlight))
}

// claim reserves the request's id while it is in flight. It reports false if
// another request in flight has it.
func (r *reports) claim(x *exchange) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range r.inFlight {
		if id == x.id {
			return false
		}
	}
	r.inFlight[x] = x.id
	return true
}

func (r *reports) end(x *exchange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.inFlight, x)
}
