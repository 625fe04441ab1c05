package epdhandler

import (
	"context"
	"fmt"
	"time"
)

// limit is a time limit, and the option that sets it.
type limit struct {
	option string
	time   time.Duration
}

// silence limits how long an engine may be silent: before its answer, and in a stream
// between any two writes.
type silence struct {
	timer       *time.Timer // nil: there is no limit
	first, next limit
	running     limit // one of them
}

// watch returns a context that ends, as if by its deadline, when the engine has been
// silent for first, or after its first byte for next. The time that a call waits for
// an instance does not count.
func watch(ctx context.Context, first, next limit) (context.Context, *silence, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &silence{
		// reverse_proxy takes only this cause for a time-out
		timer:   time.AfterFunc(first.time, func() { cancel(context.DeadlineExceeded) }),
		first:   first,
		next:    next,
		running: first,
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
	s.run(s.first)
}

// heard notes that the stream is not silent.
func (s *silence) heard() {
	s.run(s.next)
}

func (s *silence) run(l limit) {
	if s.timer != nil {
		s.running = l
		s.timer.Reset(l.time)
	}
}

// expired is the error of a limit that has passed.
func (s *silence) expired() error {
	return fmt.Errorf("nothing came for %s (%s)", s.running.time, s.running.option)
}
