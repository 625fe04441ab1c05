package stream

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// Limit is a time limit, and the option that sets it.
type Limit struct {
	Option string
	Time   time.Duration
}

// Silence limits how long an engine may be silent: before its answer, and in a stream
// between two writes. A stream may last as long as it keeps sending. The zero value has no limit.
type Silence struct {
	timer       *time.Timer // nil: there is no limit
	first, next Limit
	running     Limit // the one that the timer runs for
}

// Watch returns a context that ends, as if by its deadline, when the engine has been silent
// for first, or, after the first byte of its answer, for next.
func Watch(ctx context.Context, first, next Limit) (context.Context, *Silence, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &Silence{first: first, next: next, running: first}
	// the only cause that reverse_proxy takes for a timeout
	s.timer = time.AfterFunc(first.Time, func() { cancel(context.DeadlineExceeded) })
	return ctx, s, func() {
		s.timer.Stop()
		cancel(nil)
	}
}

// Pause stops the clock while a request waits for an instance: no engine has it then.
func (s *Silence) Pause() {
	if s.timer != nil {
		s.timer.Stop()
	}
}

// Resume follows Pause. It gives the engine all of the first limit.
func (s *Silence) Resume() { s.run(s.first) }

// Expired is the error of a limit that has passed.
func (s *Silence) Expired() error {
	return fmt.Errorf("nothing came for %s (%s)", s.running.Time, s.running.Option)
}

func (s *Silence) heard() { s.run(s.next) }

func (s *Silence) run(l Limit) {
	if s.timer != nil {
		s.running = l
		s.timer.Reset(l.Time)
	}
}

// Keepalive sends comments to the client of a stream until the engine answers, so that no proxy
// or firewall closes an idle connection. The first comment gives the client the status 200.
type Keepalive struct {
	mu        sync.Mutex // held while anything is sent
	client    http.ResponseWriter
	requestID string
	every     time.Duration
	timer     *time.Timer
	begun     bool // the client has the status
	ended     bool
}

// StartKeepalive sends the first comment after every. Nothing else may be sent before End is called.
func StartKeepalive(client http.ResponseWriter, requestID string, every time.Duration) *Keepalive {
	k := &Keepalive{client: client, requestID: requestID, every: every}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.timer = time.AfterFunc(every, k.comment)
	return k
}

func (k *Keepalive) comment() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ended {
		return
	}
	if !k.begun {
		k.begun = true
		h := k.client.Header()
		h.Set("Content-Type", eventStream)
		h.Set("Cache-Control", "no-cache")
		h["X-Request-Id"] = []string{k.requestID}
		k.client.WriteHeader(http.StatusOK)
	}
	_, err := k.client.Write([]byte(": keep-alive\n\n"))
	if err == nil && http.NewResponseController(k.client).Flush() == nil {
		k.timer.Reset(k.every)
	}
}

// End ends the comments and reports whether there were any. A nil Keepalive has none.
func (k *Keepalive) End() (begun bool) {
	if k == nil {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = true
	k.timer.Stop()
	return k.begun
}
