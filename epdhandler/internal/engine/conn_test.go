package engine

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// bodyOfSize returns a body of so many bytes.
func bodyOfSize(t *testing.T, size int) (text string, segments *body.Segments) {
	t.Helper()
	text = `{"messages":[],"user":"`
	text += strings.Repeat("x", size-len(text)-2) + `"}`
	b, err := body.Parse([]byte(text))
	require.NoError(t, err)
	return text, b.Rewrite()
}

// Header and body arrive whole and in order, whatever their sizes are in relation to the
// buffers on the way, one request after the other on the same connection.
func TestHeadersAndBodiesOfAnySize(t *testing.T) {
	t.Parallel()
	received := make(chan string, 1)
	address := fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
		text, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		assert.EqualValues(t, len(text), r.ContentLength)
		received <- r.Header.Get("X-Filler") + string(text)
		_, _ = io.WriteString(w, "{}")
	})
	p, err := newPool(t, "decode", one(address))
	require.NoError(t, err)
	const tiny = 2 << 10 // where bodies begin to be sent in another way
	for _, filler := range []int{1, 2000, 4000, 4096, 5000, 9000, 14_000} {
		client := newClient(http.Header{"X-Filler": {strings.Repeat("f", filler)}})
		for _, size := range []int{100, tiny - 1, tiny, tiny + 1, 4096, 10_000, 32 << 10, 70_000, 3 << 20} {
			text, segments := bodyOfSize(t, size)
			a, w := send(t, p, client, Call{Body: segments})
			require.False(t, a.Failed(), "%d, %d: %v", filler, size, a.Cause)
			require.Equal(t, http.StatusOK, w.Code)
			require.True(t, strings.Repeat("f", filler)+text == <-received, "%d, %d", filler, size)
		}
	}
}

// Connections that requests share must not wait for the body of one of them.
func TestSharedConnectionsAreLeftAlone(t *testing.T) {
	t.Parallel()
	address := fakeEngine(t, func(http.ResponseWriter, *http.Request) {})
	for version, own := range map[string]bool{"1.1": true, "h2c": false} {
		tr := &reverseproxy.HTTPTransport{Versions: []string{version}, Transport: &http.Transport{DialContext: new(net.Dialer).DialContext}}
		conn, err := newReplayTransport(tr).Transport.DialContext(t.Context(), "tcp", address)
		require.NoError(t, err)
		_, is := conn.(*bodyConn)
		assert.Equal(t, own, is, version)
		require.NoError(t, conn.Close())
	}
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

// bodyConn depends on how net/http writes a request: its header with one Write, and its body,
// whose type it does not know, with one ReadFrom of what limits it. If this fails after an
// update of Go, look at transport.go: requests still arrive, but with more and smaller writes.
func TestNetHTTPWritesHeaderAndBodyApart(t *testing.T) {
	t.Parallel()
	address := fakeEngine(t, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	var conn *writes
	tr := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		conn = &writes{Conn: c}
		return conn, err
	}}
	defer tr.CloseIdleConnections()
	_, content := bodyOfSize(t, 10_000)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+address, nil)
	require.NoError(t, err)
	r.Body, r.ContentLength = content.Reader(), content.Len()
	require.IsType(t, new(body.Reader), r.Body)
	res, err := tr.RoundTrip(r)
	require.NoError(t, err)
	_ = res.Body.Close()
	assert.Equal(t, []string{"header", fmt.Sprintf("*body.Reader of %d", content.Len())}, conn.calls)
}
