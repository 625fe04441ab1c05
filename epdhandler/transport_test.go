package epdhandler

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// post sends a chat request without media to Caddy in this process and returns the answer.
func post(t testing.TB, port int, path, mark string, headers ...string) (status int, answer string, header http.Header) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", port, path), strings.NewReader(`{"messages":[],"user":"`+mark+`"}`))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(text), res.Header
}

// No client header makes net/http repeat a request without limit: with an Idempotency-Key, it
// would repeat it on every idle connection.
func TestNoHeaderRepeatsRequests(t *testing.T) {
	const idle = 8
	var (
		poisoned atomic.Int64
		held     sync.WaitGroup
	)
	decode := fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		switch {
		case strings.Contains(string(text), "poison"):
			poisoned.Add(1)
			panic(http.ErrAbortHandler)
		case strings.Contains(string(text), "warm"):
			held.Done()
			held.Wait()
		}
		_, _ = io.WriteString(w, "{}")
	})
	port := freePort(t)
	serve(t, port, `,"retries":0`, pools{"encode": {decode}, "decode": {decode}})
	for _, header := range []string{"X-Request-Id: mine", "Idempotency-Key: x", "X-Idempotency-Key: x", "Connection: Upgrade, X-Other", "Upgrade: websocket", "Te: trailers", "Early-Data: 1"} {
		held.Add(idle)
		var warm sync.WaitGroup
		for range idle {
			warm.Go(func() { post(t, port, chatPath, "warm") })
		}
		warm.Wait() // this many connections are idle now
		poisoned.Store(0)
		status, _, _ := post(t, port, chatPath, "poison", header)
		assert.Equal(t, http.StatusBadGateway, status, header)
		assert.LessOrEqual(t, poisoned.Load(), int64(2), header) // at most one retry: the connection may have been dead before
	}
}

// With Expect, the header is sent before the body: the engine decides whether it wants the body.
func TestHeaderIsNotHeldBackFromExpect(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	heads := make(chan time.Duration, 1)
	start := make(chan time.Time, 1)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				r, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				if r.Method == http.MethodPost {
					heads <- time.Since(<-start)
					_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
					_, _ = io.Copy(io.Discard, r.Body)
				}
				_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
			}()
		}
	}()
	addr := listener.Addr().String()
	port := freePort(t)
	serve(t, port, fmt.Sprintf(`,"decode":{"upstreams":[{"dial":"%s"}],"headers":{"request":{"set":{"Expect":["100-continue"]}}},
		"transport":{"protocol":"http","expect_continue_timeout":"20s"}}`, addr), pools{"encode": {addr}})
	start <- time.Now()
	status, _, _ := post(t, port, chatPath, strings.Repeat("x", 5000))
	assert.Equal(t, http.StatusOK, status)
	assert.Less(t, <-heads, 10*time.Second)
}
