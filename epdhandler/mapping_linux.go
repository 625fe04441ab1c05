package epdhandler

import "syscall"

// mapMemory returns memory that the system provides where it is written, and when.
func mapMemory(size int) ([]byte, error) {
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err == nil {
		_ = syscall.Madvise(b[:min(size, smallPart)], syscall.MADV_NOHUGEPAGE) // fails where the kernel has none
	}
	return b, err
}

// unmapMemory gives it back.
func unmapMemory(b []byte) { _ = syscall.Munmap(b) }
