package integration

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// dial opens a connection for hand-made HTTP/1.1.
func (c *caddy) dial(t *testing.T) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", c.addr, &tls.Config{RootCAs: c.roots, ServerName: "localhost"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// announce sends the request line and headers of a request.
func announce(t *testing.T, conn io.Writer, id string, size int) {
	t.Helper()
	_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-Id: %s\r\nContent-Length: %d\r\n\r\n", chatPath, id, size)
	require.NoError(t, err)
}

// A body that takes too long is not waited for. After one that is fast enough, the connection
// is kept.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("body_timeout 500ms"))
	body := chat("", text("x"))

	conn := c.dial(t)
	r := bufio.NewReader(conn)
	for range 2 {
		announce(t, conn, "quick", len(body))
		_, err := io.WriteString(conn, body)
		require.NoError(t, err)
		res, err := http.ReadResponse(r, nil)
		require.NoError(t, err)
		_, _ = io.Copy(io.Discard, res.Body)
		assert.Equal(t, http.StatusOK, res.StatusCode)
	}
	announce(t, conn, "slow", len(body))
	_, err := io.WriteString(conn, body[:10])
	require.NoError(t, err)
	if res, err := http.ReadResponse(r, nil); err == nil { // or the connection is closed at once
		assert.Equal(t, http.StatusRequestTimeout, res.StatusCode)
	}

	half, rest := io.Pipe()
	defer rest.Close()
	go func() { _, _ = io.WriteString(rest, body[:10]) }()
	req, err := http.NewRequest(http.MethodPost, c.URL+chatPath, half)
	require.NoError(t, err)
	req.Header.Set("X-Request-Id", "slow")
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Client.Do(req)
	if err == nil {
		_ = res.Body.Close()
		assert.Equal(t, http.StatusRequestTimeout, res.StatusCode)
	}
	for _, e := range c.entries(t, 2, func(e entry) bool { return e.str("epd", "request_id") == "slow" }) {
		assert.Equal(t, 408.0, e.at("status"))
	}
	e.assertRequests(t, 0, 0, 2)
}

// A client that does not read its answer holds an engine only as long as Caddy's
// server allows.
func TestClientDoesNotRead(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddyWith(t, "servers {\ntimeouts {\nwrite_idle 300ms\n}\n}", e.block())
	body := stream(chat("", text(strings.Repeat("much to say ", 50_000))))

	conn := c.dial(t)
	announce(t, conn, "http1", len(body))
	_, err := io.WriteString(conn, body)
	require.NoError(t, err)
	assert.Equal(t, "client_closed", c.access(t, "http1").str("epd", "outcome"))

	res, err := c.send(t.Context(), c.Client, http.MethodPost, chatPath, body, "X-Request-Id: http2")
	require.NoError(t, err)
	assert.Equal(t, "client_closed", c.access(t, "http2").str("epd", "outcome"))
	_ = res.Body.Close()

	require.Eventually(t, func() bool { return busy(e.decode...) == 0 }, 10*time.Second, time.Millisecond)
	assert.Empty(t, c.lines(), "reported as a failure of the engine")
}

// If the memory is in use, requests are rejected before their bodies are read. A large
// Content-Length takes no memory until the body arrives.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("max_memory 16MiB", "max_body_size 8MiB"))
	for range 20 { // together more than max_memory
		conn := c.dial(t)
		announce(t, conn, "liar", 8<<20)
		_, err := io.WriteString(conn, "{")
		require.NoError(t, err)
	}
	big := func(mark string) string { return chat("", text(mark), image(strings.Repeat("QUJD", 1<<19))) }
	require.Eventually(t, func() bool { // Content-Length counts at first
		r := c.post(t, big("x"))
		return r.StatusCode == http.StatusOK
	}, waitLong, tick)

	// as many requests as fit are held
	setFault(fault{Kind: fakevllm.Hang, Match: "HELD"}, e.decode...)
	defer setFault(fault{}, e.decode...)
	refused := make(chan int, 16)
	require.Eventually(t, func() bool {
		before := busy(e.decode...)
		go func() {
			res, err := c.send(t.Context(), c.Client, http.MethodPost, chatPath, big("HELD"))
			if err == nil {
				_ = res.Body.Close()
				refused <- res.StatusCode
			}
		}()
		require.Eventually(t, func() bool { return len(refused) > 0 || busy(e.decode...) > before }, waitLong, time.Millisecond)
		return len(refused) > 0
	}, waitLong, time.Millisecond)
	assert.Equal(t, http.StatusServiceUnavailable, <-refused)
	assert.NotZero(t, busy(e.decode...))

	conn := c.dial(t)
	announce(t, conn, "refused", 8<<20)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(2*time.Second)))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	assert.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	assert.Regexp(t, "^[1-5]$", res.Header.Get("Retry-After"))
	answer, _ := io.ReadAll(res.Body)
	assert.Contains(t, string(answer), `"code":"overloaded"`)
	assert.Equal(t, 0.0, c.access(t, "refused").at("bytes_read"))
	assert.NotEmpty(t, c.failure(t, "refused").str("error"))
}
