//go:build !linux

package epdhandler

import "testing"

func leaveAccessible(*testing.T) {}
