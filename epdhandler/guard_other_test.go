//go:build !linux

package epdhandler

func protect([]byte, bool) {} // there are no regions
