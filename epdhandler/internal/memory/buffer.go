package memory

import "sync/atomic"

// Buffer is the memory that a body is in.
type Buffer struct {
	free  func()
	holds atomic.Int64 // 0: it is free
}

// newBuffer returns a Buffer that is held once. free is called when it is not held any
// more, once and possibly by any goroutine.
func newBuffer(free func()) *Buffer {
	b := &Buffer{free: free}
	b.holds.Store(1)
	return b
}

// Hold keeps the memory as it is until Release is called. It reports false if it is
// free already.
func (b *Buffer) Hold() bool {
	for {
		n := b.holds.Load()
		if n == 0 {
			return false
		}
		if b.holds.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends a Hold. On a nil Buffer it does nothing.
func (b *Buffer) Release() {
	if b != nil && b.holds.Add(-1) == 0 {
		b.free()
	}
}
