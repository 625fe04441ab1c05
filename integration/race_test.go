//go:build race

package integration

// buildFlags enables the race detector in the Caddy under test if the tests have it
// enabled.
var buildFlags = []string{"-race"}
