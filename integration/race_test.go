//go:build race

package integration

// buildFlags builds the Caddy under test with the race detector when the tests
// are built with it.
var buildFlags = []string{"-race"}
