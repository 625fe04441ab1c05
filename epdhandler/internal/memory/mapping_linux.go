package memory

import "syscall"

// mapMemory returns memory outside of Go's heap, which the kernel provides page by page as
// it is written.
func mapMemory(size int) ([]byte, error) {
	b, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE|syscall.MAP_NORESERVE)
	if err == nil {
		_ = syscall.Madvise(b[:min(size, smallPart)], syscall.MADV_NOHUGEPAGE) // fails where the kernel has no huge pages
	}
	return b, err
}

// unmapMemory gives it back to the system.
func unmapMemory(b []byte) { _ = syscall.Munmap(b) }
