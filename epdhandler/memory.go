package epdhandler

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
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

// ledger counts bytes. What a request is done with counts until the garbage collector
// has taken it: that is when the memory is free.
type ledger struct {
	sync.Mutex
	held     int64
	promised int64 // by clients that have just begun to send

	waiting   int
	less      chan struct{} // closed and replaced when there is less, for those who wait
	collected time.Time     // when the garbage collector was last called
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
}

// newShare waits a little until there is room for a body of so many bytes, as far as
// its client is believed, or fails with errNoMemory. close must be called when the body
// has arrived.
func newShare(ctx context.Context, announced, limit int64) (*share, error) {
	s := &share{ctx: ctx, limit: limit}
	n := min(announced, maxPromise)
	err := s.wait(n, waitToBegin, func() {
		if n > firstRead {
			s.promised = n
			memory.promised += n
		}
	})
	if err == nil && n > firstRead {
		s.timer = time.AfterFunc(promiseKept, s.forget)
	}
	return s, err
}

// close has nothing more expected.
func (s *share) close() {
	if s.timer != nil {
		s.timer.Stop()
		s.forget()
	}
}

// forget does not believe the client any more.
func (s *share) forget() {
	memory.Lock()
	defer memory.Unlock()
	s.arrived(s.promised)
}

// arrived takes back a promise that has come true. memory must be locked.
func (s *share) arrived(n int64) {
	n = min(n, s.promised)
	s.promised -= n
	memory.promised -= n
	memory.lessened()
}

// alloc returns an empty slice with a capacity of n bytes. It fails with errNoMemory if
// there is no room for it for too long.
func (s *share) alloc(n int) ([]byte, error) {
	n = max(n, 512) // the garbage collector does not watch what is very small
	err := s.wait(int64(n), waitToGoOn, func() {
		memory.held += int64(n)
		s.arrived(int64(n))
	})
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 0, n)
	runtime.AddCleanup(&buf[:1][0], memory.free, int64(n))
	return buf, nil
}

// wait waits until there is room for n bytes and has them taken.
func (s *share) wait(n int64, patience time.Duration, take func()) error {
	memory.Lock()
	defer memory.Unlock()
	// what this one has promised is not in its own way
	noRoom := func() bool { return memory.held+memory.promised-min(s.promised, n)+n > s.limit }
	if !noRoom() {
		take()
		return nil
	}
	memory.waiting++
	defer func() { memory.waiting-- }()
	for end := time.Now().Add(patience); noRoom(); {
		if time.Now().After(end) {
			return errNoMemory
		}
		memory.collect()
		if err := memory.wait(s.ctx); err != nil {
			return err
		}
	}
	take()
	return nil
}

// free notes that the garbage collector has taken n bytes.
func (l *ledger) free(n int64) {
	l.Lock()
	defer l.Unlock()
	l.held -= n
	l.lessened()
}

// lessened wakes those who wait. The ledger must be locked, here and in what follows.
func (l *ledger) lessened() {
	if l.waiting > 0 {
		close(l.less)
		l.less = make(chan struct{})
	}
}

// wait waits for less, but not for long.
func (l *ledger) wait(ctx context.Context) error {
	less := l.less
	l.Unlock()
	defer l.Lock()
	t := time.NewTimer(waitToBegin)
	defer t.Stop()
	select {
	case <-less:
	case <-t.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// collect has the garbage collector look for bodies that are done with. By itself it
// would wait until there is as much garbage as there is memory in use.
func (l *ledger) collect() {
	if time.Since(l.collected) >= waitToBegin {
		l.collected = time.Now()
		go runtime.GC()
	}
}
