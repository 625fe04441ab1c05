//go:build !linux

package memory

var protectIdle func(region []byte, idle bool) // there are no regions
