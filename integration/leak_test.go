package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// usage is the resources of a Caddy that a leak would increase.
type usage struct {
	ours       []string // stacks of goroutines in epd_proxy or started by it: one for each handler when idle
	goroutines int
	files      int // descriptors, including connections
}

// An idle Caddy may have a few more of these than right after its start:
// health checks keep a connection to each engine, with two goroutines, and parts of
// Caddy start with the first request or reload.
const (
	spareFiles      = 12
	spareGoroutines = 2 * spareFiles
)

// assertNoLeaks closes all client connections and asserts that Caddy uses no more
// resources than after its start.
func (c *caddy) assertNoLeaks(t testing.TB) {
	t.Helper()
	c.hangUp()
	var now usage
	assert.Eventually(t, func() bool { // idle connections to engines live for 2.5s
		now = c.usage(t)
		return len(now.ours) <= len(c.idle.ours) && now.goroutines <= c.idle.goroutines+spareGoroutines && now.files <= c.idle.files+spareFiles
	}, waitLong, 100*time.Millisecond, "Caddy has leaked")
	t.Logf("goroutines: %d, were %d; files: %d, were %d", now.goroutines, c.idle.goroutines, now.files, c.idle.files)
	for _, stack := range now.ours[:min(len(now.ours), 3)] {
		t.Log(stack)
	}
}

// leakCheck is the pprof page with all goroutines.
const leakCheck = "/debug/pprof/goroutine?debug=2"

// usage asks the running process.
func (c *caddy) usage(t testing.TB) usage {
	t.Helper()
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.cmd.Process.Pid)) // only on Linux
	stacks := strings.Split(strings.TrimSpace(c.admin(t, leakCheck)), "\n\n")
	return usage{
		ours:       slices.DeleteFunc(slices.Clone(stacks), func(s string) bool { return !strings.Contains(s, "/epdhandler.") }),
		goroutines: len(stacks),
		files:      len(files),
	}
}

// admin gets a page of Caddy's admin endpoint on a new connection.
func (c *caddy) admin(t testing.TB, path string) string {
	t.Helper()
	res, err := c.adminClient().Get("http://127.0.0.1" + path)
	require.NoError(t, err)
	defer res.Body.Close()
	page, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, res.StatusCode, "%s", page)
	return string(page)
}

func (c *caddy) adminClient() *http.Client {
	socket := filepath.Join(filepath.Dir(c.config), "admin.sock")
	return &http.Client{Timeout: waitLong, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}
