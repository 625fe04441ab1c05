package epdhandler

import (
	"math/bits"
	"os"
	"slices"
	"time"
)

// region is memory for large bodies, outside of Go's heap. It takes memory only where
// something has been written, so that there is room for what a client has announced
// before it has come, without copying while it grows; and it is free at once, not when
// the garbage collector gets round to it.
type region struct {
	bytes   []byte
	touched int64 // bytes that have been written, and take memory
	idle    time.Time
}

// regions are those that nobody uses at the moment, the last one used at the end. To
// use one again saves the kernel clearing it, which takes about as long as reading the
// body from the network does. The lock is the ledger's.
type regions struct {
	list    []*region
	touched int64
	timer   *time.Timer
}

const (
	maxRegion = 1 << (30 + 10*(bits.UintSize/64)) // bytes of addresses, not of memory: a quarter of what 32 bits have, or 1 TiB
	maxIdle   = 64 << 20                          // bytes that idle regions may take
	idleTime  = 10 * time.Second                  // for which they are kept
)

// guard is told which regions are idle: tests make those inaccessible.
var guard func(region []byte, idle bool)

// Without huge pages a region takes what has been written. With them it takes up to
// hugePage more, and where it has never been used before it costs a quarter of the CPU time:
// so large bodies may have them.
const (
	hugePage  = 2 << 20
	smallPart = 16 << 20 // that a region begins with and that has none
)

// inPages is what n bytes of a region take.
func inPages(n int64) int64 {
	page := int64(os.Getpagesize())
	if n > smallPart {
		page = hugePage
	}
	return (n + page - 1) / page * page
}

// take returns a region for n bytes, nil if there can be none.
func (r *regions) take(n int) *region {
	if n > maxRegion {
		return nil
	}
	size := 1 << bits.Len(uint(n-1)) // so that they fit again
	for i, region := range slices.Backward(r.list) {
		if len(region.bytes) == size {
			r.list = slices.Delete(r.list, i, i+1)
			r.touched -= region.touched
			if guard != nil {
				guard(region.bytes, false)
			}
			return region
		}
	}
	bytes, err := mapMemory(size)
	if err != nil {
		return nil
	}
	return &region{bytes: bytes}
}

// put keeps a region for the next one who needs it.
func (r *regions) put(region *region) {
	region.idle = time.Now()
	if guard != nil {
		guard(region.bytes, true)
	}
	r.list = append(r.list, region)
	r.touched += region.touched
	r.drop(maxIdle)
	if r.timer == nil && len(r.list) > 0 {
		r.timer = time.AfterFunc(idleTime, r.expire)
	}
}

// drop gives regions back to the system until they take no more than max bytes.
func (r *regions) drop(max int64) {
	n := 0
	for ; n < len(r.list) && r.touched > max; n++ {
		r.touched -= r.list[n].touched
		unmapMemory(r.list[n].bytes)
	}
	r.list = slices.Delete(r.list, 0, n)
}

// expire gives back those that have not been used for long.
func (r *regions) expire() {
	memory.Lock()
	defer memory.Unlock()
	for len(r.list) > 0 && time.Since(r.list[0].idle) >= idleTime {
		r.drop(r.touched - 1)
	}
	r.timer = nil
	if len(r.list) > 0 {
		r.timer = time.AfterFunc(idleTime-time.Since(r.list[0].idle), r.expire)
	}
}
