package epdhandler

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
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
var memory ledger

// ledger counts bytes. Only take and give change the sum.
type ledger struct {
	sync.Mutex
	sum      int64
	promised int64 // part of the sum: what clients that have just begun are still to send
	idle     regions
	claims   []*claim // that wait, in the order in which they came
}

// claim is what a share waits for: n bytes more.
type claim struct {
	share *share
	n     int64
	take  func() // counts them
	taken chan struct{}
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
	ended  bool // all is given back
}

// newShare waits a little until there is room for a body of so many bytes, as far as
// its client is believed, or fails with errNoMemory. arrived must be called when no
// more of the body will come.
func newShare(ctx context.Context, announced, limit int64) (*share, error) {
	s := &share{ctx: ctx, limit: limit}
	n := min(announced, maxPromise)
	err := memory.wait(waitToBegin, &claim{share: s, n: n, take: func() {
		if n > smallUpload {
			s.promised = n
			memory.promised += n
			memory.take(n)
		}
	}})
	if err == nil && n > smallUpload {
		s.timer = time.AfterFunc(promiseKept, s.forget)
	}
	return s, err
}

// forget does not believe the client any more.
func (s *share) forget() {
	memory.Lock()
	defer memory.Unlock()
	memory.give(s.redeem(s.promised))
}

// redeem takes back what has come true of a promise, at most n bytes, and returns how much
// that is. memory must be locked, here and in holds.
func (s *share) redeem(n int64) int64 {
	n = min(n, s.promised)
	s.promised -= n
	memory.promised -= n
	return n
}

// holds counts n bytes as held, of which the client may have promised some.
func (s *share) holds(n int64) {
	more := n - s.held
	s.held = n
	if more > 0 {
		memory.take(more - s.redeem(more))
	} else {
		memory.give(-more)
	}
}

// alloc returns an empty slice for n bytes that takes no memory yet. It may have less
// room, if there is no better memory, and must then be replaced. It is called once.
func (s *share) alloc(n int) []byte {
	if n > smallUpload+1 {
		memory.Lock()
		defer memory.Unlock()
		if s.region = memory.idle.take(n); s.region != nil {
			s.holds(s.region.touched)
			return s.region.bytes[:0:n]
		}
	}
	return make([]byte, 0, min(n, smallUpload+1))
}

// reach waits until the first n bytes may take memory. It fails with errNoMemory if
// that takes too long.
func (s *share) reach(n int64) error {
	if s.region != nil {
		n = inPages(n)
	}
	return s.add(n - s.held)
}

// add waits until there is room for n bytes more.
func (s *share) add(n int64) error {
	if n <= 0 {
		return nil
	}
	return memory.wait(waitToGoOn, &claim{share: s, n: n, take: func() {
		if !s.ended { // else nobody would give it back
			s.holds(s.held + n)
		}
	}})
}

// received says that no more of the body will come, and what has; nil if that is not known.
// It returns what it is in.
func (s *share) received(b []byte) *body.Memory {
	switch {
	case b == nil:
		return s.arrived(s.held)
	case s.region == nil:
		return s.arrived(int64(cap(b)))
	}
	return s.arrived(int64(len(b)))
}

// arrived says that no more of the body will come, and how many bytes have. It returns what
// they are in.
func (s *share) arrived(n int64) *body.Memory {
	if s.timer != nil {
		s.timer.Stop()
	}
	memory.Lock()
	defer memory.Unlock()
	if s.region != nil {
		s.region.touched = max(s.region.touched, inPages(n))
		n = s.region.touched
	}
	s.holds(n)
	memory.give(s.redeem(s.promised))
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
	if s.region != nil {
		memory.idle.put(s.region)
	}
	s.holds(0)
	s.ended = true
}

// take counts n bytes. The ledger must be locked, here and in what follows.
func (l *ledger) take(n int64) { l.sum += n }

// give counts n bytes less, and grants the claims for which there is room now.
func (l *ledger) give(n int64) {
	if n > 0 {
		l.sum -= n
		l.claims = slices.DeleteFunc(l.claims, l.grant)
	}
}

// grant has a claim's bytes taken if there is room for them.
func (l *ledger) grant(c *claim) bool {
	promised := min(c.share.promised, c.n) // what this one has promised is not in its own way
	missing := l.sum - promised + c.n - c.share.limit
	if missing > 0 {
		return false
	}
	if missing+l.idle.touched > 0 {
		l.idle.drop(0)
	}
	c.take()
	close(c.taken)
	return true
}

// wait waits until a claim is granted.
func (l *ledger) wait(patience time.Duration, c *claim) error {
	c.taken = make(chan struct{})
	l.Lock()
	if l.grant(c) {
		l.Unlock()
		return nil
	}
	l.claims = append(l.claims, c)
	l.Unlock()

	expired := time.NewTimer(patience)
	defer expired.Stop()
	var err error
	select {
	case <-c.taken:
		return nil
	case <-expired.C:
		err = errNoMemory
	case <-c.share.ctx.Done():
		err = c.share.ctx.Err()
	}
	l.Lock()
	defer l.Unlock()
	i := slices.Index(l.claims, c)
	if i < 0 { // it was granted at the same moment
		return nil
	}
	l.claims = slices.Delete(l.claims, i, i+1)
	return err
}
