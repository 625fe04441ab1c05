package memory

import "sync/atomic"

// Buffer is the memory that a body is in.
type Buffer struct {
	free  func() // is called when nothing holds it any more, possibly by any goroutine
	holds atomic.Int64
}

// Hold keeps the memory as it is until Release is called. It reports false if
// nothing held it any more.
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
