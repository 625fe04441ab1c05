package epdhandler

import (
	"sync"
	"sync/atomic"
)

// each calls do for the numbers below n, for so many at a time. A call that returns false
// is the last one of its goroutine.
func each(n, atATime int, do func(i int) bool) {
	var (
		wg    sync.WaitGroup
		taken atomic.Int64
	)
	for range min(n, atATime) {
		wg.Go(func() {
			for i := int(taken.Add(1)) - 1; i < n && do(i); i = int(taken.Add(1)) - 1 {
			}
		})
	}
	wg.Wait()
}
