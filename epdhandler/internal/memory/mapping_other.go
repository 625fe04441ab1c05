//go:build !linux

package memory

import "errors"

// mapMemory fails: bodies are received in ordinary memory.
func mapMemory(int) ([]byte, error) { return nil, errors.ErrUnsupported }

func unmapMemory([]byte) {}
