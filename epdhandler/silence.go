package epdhandler

import (
	"context"
	"time"
)

// silence ends a stream that stays silent for too long: before its first byte, and
// then between any two writes.
type silence struct {
	timer *time.Timer // nil: there is no limit
	next  time.Duration
}

// watch returns a context that ends, as if by its deadline, when the stream has been
// silent for first, or after its first byte for next.
func watch(ctx context.Context, first, next time.Duration) (context.Context, *silence, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &silence{
		// reverse_proxy takes only this cause for a time-out
		timer: time.AfterFunc(first, func() { cancel(context.DeadlineExceeded) }),
		next:  next,
	}
	return ctx, s, func() {
		s.timer.Stop()
		cancel(nil)
	}
}

// heard notes that the stream is not silent.
func (s *silence) heard() {
	if s.timer != nil {
		s.timer.Reset(s.next)
	}
}
