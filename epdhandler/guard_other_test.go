//go:build !linux

package epdhandler

func protect([]byte, bool) {} // memory is not in regions here
