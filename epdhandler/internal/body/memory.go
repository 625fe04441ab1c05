package body

import "sync/atomic"

// Memory is what the bytes of a body are in, if it is to be used for something else
// when nothing reads it any more. A nil Memory is ordinary memory.
type Memory struct {
	free func()
	held atomic.Int64 // by so many; 0: it is free
}

// NewMemory returns a Memory that is held once. free is called when it is not held any
// more, once and possibly by any goroutine.
func NewMemory(free func()) *Memory {
	m := &Memory{free: free}
	m.held.Store(1)
	return m
}

// Hold keeps the memory as it is until Release is called. It reports false if it is
// free already.
func (m *Memory) Hold() bool {
	if m == nil {
		return true
	}
	for {
		n := m.held.Load()
		if n == 0 {
			return false
		}
		if m.held.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends a Hold.
func (m *Memory) Release() {
	if m != nil && m.held.Add(-1) == 0 {
		m.free()
	}
}
