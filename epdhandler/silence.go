package epdhandler

import (
	"context"
	"time"
)

// silence limits how long an engine may be silent: before its answer, and in a stream
// between any two writes.
type silence struct {
	timer       *time.Timer // nil: there is no limit
	first, next time.Duration
}

// watch returns a context that ends, as if by its deadline, when the engine has been
// silent for first, or after its first byte for next. The time that a call waits for
// an instance does not count.
func watch(ctx context.Context, first, next time.Duration) (context.Context, *silence, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &silence{
		// reverse_proxy takes only this cause for a time-out
		timer: time.AfterFunc(first, func() { cancel(context.DeadlineExceeded) }),
		first: first,
		next:  next,
	}
	return ctx, s, func() {
		s.timer.Stop()
		cancel(nil)
	}
}

// stop and start leave out the time between them; start begins anew.
func (s *silence) stop() {
	if s.timer != nil {
		s.timer.Stop()
	}
}

func (s *silence) start() {
	if s.timer != nil {
		s.timer.Reset(s.first)
	}
}

// heard notes that the stream is not silent.
func (s *silence) heard() {
	if s.timer != nil {
		s.timer.Reset(s.next)
	}
}
