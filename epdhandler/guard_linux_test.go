package epdhandler

import "syscall"

// In all tests, idle memory is inaccessible: an access to it faults, or a system call returns
// EFAULT. The race detector does not check memory outside of Go's heap.
func init() {
	testProcess.Memory.Guard = func(region []byte, idle bool) { protect(region, idle) }
}

// protect makes a region inaccessible, or accessible again.
func protect(region []byte, inaccessible bool) {
	access := syscall.PROT_READ | syscall.PROT_WRITE
	if inaccessible {
		access = syscall.PROT_NONE
	}
	if err := syscall.Mprotect(region, access); err != nil {
		panic(err)
	}
}
