package stream

import (
	"context"
	"fmt"
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
	s := &Silence{
		// the only cause that reverse_proxy takes for a timeout
		timer:   time.AfterFunc(first.Time, func() { cancel(context.DeadlineExceeded) }),
		first:   first,
		next:    next,
		running: first,
	}
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

// heard notes that the engine is not silent.
func (s *Silence) heard() { s.run(s.next) }

func (s *Silence) run(l Limit) {
	if s.timer != nil {
		s.running = l
		s.timer.Reset(l.Time)
	}
}
