package memory

import (
	"math/bits"
	"os"
	"slices"
	"time"
)

// region is memory for a large body, outside of Go's heap. It takes memory only where it has been written,
// so a body need not be copied as it grows. It is free at once, not after the next garbage collection.
type region struct {
	bytes     []byte
	touched   int64 // bytes that have been written, and take memory
	idleSince time.Time
}

// regions are the idle ones, the one used last at the end. One that is used again need not be cleared,
// which takes about as long as reading the body from the network. The Ledger must be locked.
type regions struct {
	list    []*region
	touched int64
}

const (
	maxRegion = 1 << (30 + 10*(bits.UintSize/64)) // bytes of addresses, not of memory: a quarter of what 32 bits have, or 1 TiB
	maxIdle   = 64 << 20                          // bytes that idle regions may take
	idleTime  = 10 * time.Second                  // after which an idle region is unmapped

	// With huge pages a region takes up to hugePage more than what has been written, but new memory
	// costs a quarter of the CPU time. So only the part of a region beyond smallPart may have them.
	hugePage  = 2 << 20
	smallPart = 16 << 20
)

func inPages(n int64) int64 {
	page := int64(os.Getpagesize())
	if n > smallPart {
		page = hugePage
	}
	return (n + page - 1) / page * page
}

// takeRegion returns a region for n bytes, nil if there can be none.
func (l *Ledger) takeRegion(n int) *region {
	if n > maxRegion {
		return nil
	}
	size := 1 << bits.Len(uint(n-1)) // few sizes, so that regions fit again
	for i, r := range slices.Backward(l.idle.list) {
		if len(r.bytes) == size {
			l.idle.list = slices.Delete(l.idle.list, i, i+1)
			l.idle.touched -= r.touched
			if l.Guard != nil {
				l.Guard(r.bytes, false)
			}
			return r
		}
	}
	if bytes, err := mapMemory(size); err == nil {
		return &region{bytes: bytes}
	}
	return nil
}

// putRegion keeps a region for the next body, and unmaps the oldest ones if there are too many.
func (l *Ledger) putRegion(r *region) {
	if l.Guard != nil {
		l.Guard(r.bytes, true)
	}
	r.idleSince = time.Now()
	l.idle.list = append(l.idle.list, r)
	l.idle.touched += r.touched
	l.idle.drop(maxIdle)
	l.expireLater()
}

// expire unmaps the regions that have been idle for idleTime.
func (l *Ledger) expire() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r := &l.idle; len(r.list) > 0 && time.Since(r.list[0].idleSince) >= idleTime; {
		r.drop(r.touched - 1)
	}
	l.expiry = nil
	l.expireLater()
}

// expireLater calls expire when the oldest region has been idle for idleTime.
func (l *Ledger) expireLater() {
	if l.expiry == nil && len(l.idle.list) > 0 {
		l.expiry = time.AfterFunc(idleTime-time.Since(l.idle.list[0].idleSince), l.expire)
	}
}

// drop unmaps regions, oldest first, until they take no more than max bytes.
func (r *regions) drop(max int64) {
	n := 0
	for ; n < len(r.list) && r.touched > max; n++ {
		r.touched -= r.list[n].touched
		unmapMemory(r.list[n].bytes)
	}
	r.list = slices.Delete(r.list, 0, n)
}
