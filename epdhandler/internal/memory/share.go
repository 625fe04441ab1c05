package memory

import (
	"context"
	"errors"
	"io"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	smallBody = 64 << 10 // bytes up to which a body is in ordinary memory, and not counted before it arrives

	// The length that a client announces is counted before the body arrives, so that not more bodies
	// begin than can be received: up to maxPromise bytes for promiseTime, as clients may not send it.
	maxPromise  = 16 << 20
	promiseTime = 2 * time.Second
)

// Share is the memory that one request takes. A nil Share counts nothing.
type Share struct {
	ledger   *Ledger
	ctx      context.Context // of the request
	limit    int64           // for the sum of all shares
	promised int64           // announced bytes that are counted and have not arrived
	timer    *time.Timer     // ends the promise; nil: there is none
	region   *region         // of the body; nil: it is in ordinary memory
	held     int64
	ended    bool // everything has been given back
}

// Reserve begins a share for a request whose client has announced so many bytes. It waits briefly until
// all shares take at most limit bytes, then fails with ErrExhausted. Waiting, also later, ends with ctx.
func (l *Ledger) Reserve(ctx context.Context, announced, limit int64) (*Share, error) {
	s := &Share{ledger: l, ctx: ctx, limit: limit}
	n := min(announced, maxPromise)
	err := l.wait(reserveTimeout, &claim{share: s, n: n, take: func() {
		if n > smallBody {
			s.promised = n
			l.promised += n
			l.sum += n
		}
	}})
	if err != nil {
		return nil, err
	}
	if n > smallBody {
		s.timer = time.AfterFunc(promiseTime, s.endPromise)
	}
	return s, nil
}

// Add takes n bytes more, given back with the body. It waits for room, then fails with ErrExhausted.
func (s *Share) Add(n int64) error {
	if s == nil || n <= 0 {
		return nil
	}
	return s.ledger.wait(growTimeout, &claim{share: s, n: n, take: func() {
		if !s.ended { // else nobody would give it back
			s.hold(s.held + n)
		}
	}})
}

// endPromise counts only what has arrived.
func (s *Share) endPromise() {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	s.ledger.give(s.redeem(s.promised))
}

// redeem removes at most n bytes from the promise, and returns how many. It and hold need the Ledger locked.
func (s *Share) redeem(n int64) int64 {
	n = min(n, s.promised)
	s.promised -= n
	s.ledger.promised -= n
	return n
}

// hold makes n the number of bytes that the share holds, some of which may be promised.
func (s *Share) hold(n int64) {
	more := n - s.held
	s.held = n
	if more > 0 {
		s.ledger.sum += more - s.redeem(more)
	} else {
		s.ledger.give(-more)
	}
}

// alloc returns an empty slice for n bytes, which takes no memory yet. If there is no region its capacity
// is less: the caller has to replace it as the body grows. It is called once.
func (s *Share) alloc(n int) []byte {
	if n > smallBody+1 {
		s.ledger.mu.Lock()
		defer s.ledger.mu.Unlock()
		if s.region = s.ledger.takeRegion(n); s.region != nil {
			s.hold(s.region.touched)
			return s.region.bytes[:0:n]
		}
	}
	return make([]byte, 0, min(n, smallBody+1))
}

// reach waits until the first n bytes of the body may take memory.
func (s *Share) reach(n int64) error {
	if s.region != nil {
		n = inPages(n)
	}
	return s.Add(n - s.held)
}

// end notes that n bytes of the body have arrived and no more will, and returns the memory that they
// are in. When that is released, the share gives everything back.
func (s *Share) end(n int64) *Buffer {
	if s.timer != nil {
		s.timer.Stop()
	}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if s.region != nil {
		s.region.touched = max(s.region.touched, inPages(n))
		n = s.region.touched
	}
	s.hold(n)
	s.ledger.give(s.redeem(s.promised))
	giveBack := sync.OnceFunc(s.giveBack)
	m := &Buffer{free: giveBack}
	m.holds.Store(1)
	// a reader that is never closed must not hold the memory forever
	runtime.AddCleanup(m, func(giveBack func()) { giveBack() }, giveBack)
	return m
}

func (s *Share) giveBack() {
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	if s.region != nil {
		s.ledger.putRegion(s.region)
	}
	s.hold(0)
	s.ended = true
}

// ErrTooLarge is the error of a body that is larger than its limit.
var ErrTooLarge = errors.New("body too large")

// ReadBody reads a body of length bytes (-1: unknown), at most limit, and returns it with the memory that
// it is in, which is taken as the body arrives, not as it was announced. On an error, or if the reader
// panics, the share gives everything back. It is called once.
func (s *Share) ReadBody(r io.Reader, length, limit int64) (b []byte, m *Buffer, err error) {
	defer func() {
		if m == nil {
			s.end(s.held).Release()
		}
	}()
	if b, err = s.readAll(r, length, limit); err != nil {
		return nil, nil, err
	}
	n := cap(b)
	if s.region != nil {
		n = len(b)
	}
	return b, s.end(int64(n)), nil
}

func (s *Share) readAll(r io.Reader, length, limit int64) ([]byte, error) {
	if length < 0 {
		length = limit
	}
	size := int(min(length, math.MaxInt-1)) + 1 // so that the end is met without growing
	buf := s.alloc(size)
	for {
		end := min(cap(buf), len(buf)+min(max(len(buf), smallBody+1), 1<<20))
		if err := s.reach(int64(end)); err != nil {
			return nil, err
		}
		n, err := r.Read(buf[len(buf):end])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			return nil, ErrTooLarge
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return nil, err
		case len(buf) == cap(buf):
			buf = append(make([]byte, 0, min(size, 2*cap(buf))), buf...)
		}
	}
}

// Buffer is the memory that a body is in.
type Buffer struct {
	free  func() // is called when nothing holds it any more, possibly by any goroutine
	holds atomic.Int64
}

// Hold keeps the memory as it is until Release. It reports false if nothing held it any more.
func (b *Buffer) Hold() bool {
	for n := b.holds.Load(); n != 0; n = b.holds.Load() {
		if b.holds.CompareAndSwap(n, n+1) {
			return true
		}
	}
	return false
}

// Release ends a Hold. On a nil Buffer it does nothing.
func (b *Buffer) Release() {
	if b != nil && b.holds.Add(-1) == 0 {
		b.free()
	}
}
