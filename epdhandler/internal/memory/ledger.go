// Package memory bounds the memory that request bodies take, and provides it outside of Go's heap where
// the system can. It must not know what is in a body, nor what HTTP is.
package memory

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// DefaultLimit is half of the memory that the process may use.
func DefaultLimit() int64 {
	n, err := memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)()
	if err != nil {
		return 2 << 30
	}
	return int64(min(n, 1<<62)) / 2
}

// ErrExhausted is the error of a reservation that did not get memory in time.
var ErrExhausted = errors.New("the bodies of other requests hold all the memory")

// A new request is rejected early. One whose body has begun to arrive waits longer, not to lose that.
const (
	reserveTimeout = 200 * time.Millisecond
	growTimeout    = 10 * time.Second
)

// Ledger counts the memory of all bodies, and keeps idle regions to use them again. The zero value is
// ready to use. A Ledger must not be copied.
type Ledger struct {
	// Guard is called, with the Ledger locked, with a region that becomes idle or is used again. It is
	// for tests, which make idle memory inaccessible, and must not be set while the Ledger is used.
	Guard func(region []byte, idle bool)

	mu       sync.Mutex
	sum      int64    // bytes that are held or promised
	promised int64    // part of sum: bytes that clients have announced and not sent yet
	claims   []*claim // that wait, oldest first
	idle     regions
	expiry   *time.Timer // calls expire; nil: no region is idle
}

// claim is a request for n bytes more.
type claim struct {
	share   *Share
	n       int64
	take    func()        // counts the bytes, with the Ledger locked
	granted chan struct{} // closed after take
}

// Held returns how many bytes bodies hold. What clients have only announced is not included.
func (l *Ledger) Held() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sum - l.promised
}

// give counts n bytes less, and grants claims for which there is room. It and grant need the Ledger locked.
func (l *Ledger) give(n int64) {
	if n > 0 {
		l.sum -= n
		l.claims = slices.DeleteFunc(l.claims, l.grant)
	}
}

func (l *Ledger) grant(c *claim) bool {
	reserved := min(c.share.promised, c.n) // counted already, by the same share
	missing := l.sum - reserved + c.n - c.share.limit
	if missing > 0 {
		return false
	}
	if missing+l.idle.touched > 0 {
		l.idle.drop(0)
	}
	c.take()
	close(c.granted)
	return true
}

// wait waits until a claim is granted, the timeout is over, or the request of the claim ends.
func (l *Ledger) wait(timeout time.Duration, c *claim) error {
	c.granted = make(chan struct{})
	l.mu.Lock()
	if l.grant(c) {
		l.mu.Unlock()
		return nil
	}
	l.claims = append(l.claims, c)
	l.mu.Unlock()

	ctx, cancel := context.WithTimeoutCause(c.share.ctx, timeout, ErrExhausted)
	defer cancel()
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i := slices.Index(l.claims, c)
	if i < 0 { // granted at the same moment
		return nil
	}
	l.claims = slices.Delete(l.claims, i, i+1)
	return context.Cause(ctx)
}

// Headroom makes Go's garbage collector run less often. It allocates 8 MiB once in the process,
// which are never written, so they take addresses but no memory, and count towards GOMEMLIMIT.
// (Measured: small requests cost a sixth less CPU time, and with more than 8 MiB hardly less.)
//
// The collector runs when the heap has grown by GOGC percent of what was live. Bodies are outside of
// the heap, so that is a few MiB, and under load the collector would run after every few MiB of
// allocations. GOGC, GOMEMLIMIT and debug.SetGCPercent belong to the operator and to Caddy, and stay.
func Headroom() { _ = headroom() }

var headroom = sync.OnceValue(func() []byte { return make([]byte, 8<<20) })
