package epdhandler

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
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

// No header of a client makes net/http send a request again and again: for one with an
// Idempotency-Key it would do so on every idle connection.
func TestNoHeaderRepeatsRequests(t *testing.T) {
	const idle = 8
	var (
		poisoned atomic.Int64
		held     sync.WaitGroup
	)
	decode := engine(t, func(w http.ResponseWriter, r *http.Request) {
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
		warm.Wait() // so many connections are idle now
		poisoned.Store(0)
		status, _, _ := post(t, port, chatPath, "poison", header)
		assert.Equal(t, http.StatusBadGateway, status, header)
		assert.LessOrEqual(t, poisoned.Load(), int64(2), header) // the connection may have been dead before
	}
}

// With Expect, the header goes before the body: the engine is to say whether it wants that.
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

// writes records how net/http writes to a connection.
type writes struct {
	net.Conn
	calls []string
}

// Write implements io.Writer.
func (w *writes) Write(p []byte) (int, error) {
	w.calls = append(w.calls, "header")
	return w.Conn.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *writes) ReadFrom(r io.Reader) (int64, error) {
	what := fmt.Sprintf("%T", r)
	if limited, ok := r.(*io.LimitedReader); ok {
		what = fmt.Sprintf("%T of %d", limited.R, limited.N)
	}
	w.calls = append(w.calls, what)
	return io.Copy(w.Conn, r)
}

// bodyConn lives on how net/http writes a request: its header with one Write, and its body,
// whose type it does not know, with one ReadFrom of what limits it. If this fails after an
// update of Go, look at conn.go: requests still arrive, but with more and smaller writes.
func TestNetHTTPWritesHeaderAndBodyApart(t *testing.T) {
	addr := engine(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	var conn *writes
	tr := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		conn = &writes{Conn: c}
		return conn, err
	}}
	defer tr.CloseIdleConnections()
	b, err := body.Parse([]byte(`{"user":"` + strings.Repeat("x", 10_000) + `"}`))
	require.NoError(t, err)
	content := b.Rewrite()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr, nil)
	require.NoError(t, err)
	r.Body, r.ContentLength = content.Reader(), content.Len()
	require.IsType(t, new(body.Reader), r.Body)
	res, err := tr.RoundTrip(r)
	require.NoError(t, err)
	_ = res.Body.Close()
	assert.Equal(t, []string{"header", fmt.Sprintf("*body.Reader of %d", content.Len())}, conn.calls)
}

// contextOf keeps the context of the requests that reverse_proxy gives to its transport.
type contextOf struct{ ctx context.Context }

// RoundTrip implements http.RoundTripper.
func (c *contextOf) RoundTrip(r *http.Request) (*http.Response, error) {
	c.ctx = r.Context()
	return nil, context.Canceled
}

// Caddy's names for what its transport finds in a request's context are not exported. If
// this fails after an update of Caddy, look at direct.go: questions to instances would not
// find their way.
func TestNamesThatCaddyDoesNotExport(t *testing.T) {
	h, err := load(t, `{"encode":{"upstreams":[{"dial":"a:1"}],"health_checks":{"active":{}}},"decode":{"upstreams":[{"dial":"d:1"}],"health_checks":{"active":{}}}}`)
	require.NoError(t, err)
	kept := new(contextOf)
	h.encode.handler.Transport = kept
	x := newExchange(h, httptest.NewRequest(http.MethodPost, chatPath, nil))
	_ = x.do(t.Context(), h.encode, &call{method: http.MethodPost, path: chatPath, clock: new(stream.Silence)}, new(stream.Answer))
	require.NotNil(t, kept.ctx)
	to, ok := kept.ctx.Value(dialInfoKey).(reverseproxy.DialInfo)
	assert.True(t, ok, "reverse_proxy.dial_info")
	assert.Equal(t, "a:1", to.Address)
	info, ok := caddyhttp.GetVar(kept.ctx, proxyProtocolVar).(reverseproxy.ProxyProtocolInfo)
	assert.True(t, ok, "reverse_proxy.proxy_protocol_info")
	assert.True(t, info.AddrPort.IsValid())
}
