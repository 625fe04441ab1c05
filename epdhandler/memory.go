package epdhandler

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// defaultMemory is half of the memory that the process may use.
func defaultMemory() int64 {
	n, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
	if err != nil {
		return 2 << 30
	}
	return int64(min(n, 1<<62)) / 2
}

// memory is what the bodies of clients hold, those of all requests in this process.
var memory = ledger{less: make(chan struct{})}

// ledger counts bytes.
type ledger struct {
	sync.Mutex
	held     int64 // by bodies
	promised int64 // by clients that have just begun to send
	idle     regions

	waiting int
	less    chan struct{} // closed and replaced when there is less, for those who wait
}

// These say how long a request waits for memory: a new one hardly, one that has begun
// to arrive until others are done.
const (
	waitToBegin = 200 * time.Millisecond
	waitToGoOn  = 10 * time.Second
)

// Clients are believed when they say how much will come, so that not more begin than
// can end: up to maxPromise, and for as long as promiseKept.
const (
	maxPromise  = 16 << 20
	promiseKept = 2 * time.Second
)

var errNoMemory = errors.New("the bodies of other requests hold all the memory")

// share is the part of the memory that one body takes.
type share struct {
	ctx      context.Context
	limit    int64 // for all
	promised int64 // what the client is still believed to send
	timer    *time.Timer

	region *region // nil: the bytes are in ordinary memory
	held   int64
}

// newShare waits a little until there is room for a body of so many bytes, as far as
// its client is believed, or fails with errNoMemory. arrived must be called when no
// more of the body will come.
func newShare(ctx context.Context, announced, limit int64) (*share, error) {
	s := &share{ctx: ctx, limit: limit}
	n := min(announced, maxPromise)
	err := s.wait(n, waitToBegin, func() {
		if n > smallUpload {
			s.promised = n
			memory.promised += n
		}
	})
	if err == nil && n > smallUpload {
		s.timer = time.AfterFunc(promiseKept, s.forget)
	}
	return s, err
}

// forget does not believe the client any more.
func (s *share) forget() {
	memory.Lock()
	defer memory.Unlock()
	s.keepPromise(s.promised)
}

// keepPromise takes back what has come true of a promise. memory must be locked.
func (s *share) keepPromise(n int64) {
	n = min(n, s.promised)
	s.promised -= n
	memory.promised -= n
	memory.lessened()
}

// alloc returns an empty slice for n bytes that takes no memory yet. It may have less
// room, if there is no better memory, and must then be replaced. It is called once.
func (s *share) alloc(n int) []byte {
	if n > smallUpload+1 {
		memory.Lock()
		defer memory.Unlock()
		if s.region = memory.idle.take(n); s.region != nil {
			memory.held += s.region.touched
			s.held = s.region.touched
			s.keepPromise(s.held)
			return s.region.bytes[:0:n]
		}
	}
	return make([]byte, 0, min(n, smallUpload+1))
}

// reach waits until the first n bytes may take memory. It fails with errNoMemory if
// that takes too long.
func (s *share) reach(n int64) error {
	more := n - s.held
	if more <= 0 {
		return nil
	}
	return s.wait(more, waitToGoOn, func() {
		memory.held += more
		s.held = n
		s.keepPromise(more)
	})
}

// arrived says how many bytes have come in the end, and returns what they are in.
func (s *share) arrived(n int64) *body.Memory {
	if s.timer != nil {
		s.timer.Stop()
	}
	memory.Lock()
	defer memory.Unlock()
	s.keepPromise(s.promised)
	if s.region != nil {
		s.region.touched = max(s.region.touched, n)
		n = s.region.touched
	}
	memory.held -= s.held - n
	s.held = n
	memory.lessened()
	over := sync.OnceFunc(s.over)
	m := body.NewMemory(over)
	// a reader that is never closed must not take it for ever
	runtime.AddCleanup(m, func(over func()) { over() }, over)
	return m
}

// over gives everything back.
func (s *share) over() {
	memory.Lock()
	defer memory.Unlock()
	memory.held -= s.held
	if s.region != nil {
		memory.idle.put(s.region)
	}
	memory.lessened()
}

// wait waits until there is room for n bytes and has them taken.
func (s *share) wait(n int64, patience time.Duration, take func()) error {
	memory.Lock()
	defer memory.Unlock()
	// what this one has promised is not in its own way
	missing := func() int64 { return memory.held + memory.promised - min(s.promised, n) + n - s.limit }
	if missing()+memory.idle.touched > 0 {
		memory.idle.drop(0)
	}
	if missing() <= 0 {
		take()
		return nil
	}
	memory.waiting++
	defer func() { memory.waiting-- }()
	expired := time.NewTimer(patience)
	defer expired.Stop()
	for missing() > 0 {
		if err := memory.wait(s.ctx, expired.C); err != nil {
			return err
		}
	}
	memory.idle.drop(0)
	take()
	return nil
}

// lessened wakes those who wait. The ledger must be locked, here and in what follows.
func (l *ledger) lessened() {
	if l.waiting > 0 {
		close(l.less)
		l.less = make(chan struct{})
	}
}

// wait waits for less.
func (l *ledger) wait(ctx context.Context, expired <-chan time.Time) error {
	less := l.less
	l.Unlock()
	defer l.Lock()
	select {
	case <-less:
		return nil
	case <-expired:
		return errNoMemory
	case <-ctx.Done():
		return ctx.Err()
	}
}
