package epdhandler

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Header and body arrive whole and in order, whatever their sizes are in relation to the
// buffers on the way, one request after the other on the same connection.
func TestHeadersAndBodiesOfAnySize(t *testing.T) {
	received := make(chan string, 1)
	decode := engine(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // a health check
			return
		}
		body, err := io.ReadAll(r.Body)
		assert.NoError(t, err)
		assert.EqualValues(t, len(body), r.ContentLength)
		received <- r.Header.Get("X-Filler") + string(body)
		_, _ = io.WriteString(w, "{}")
	})
	port := freePort(t)
	serve(t, port, `,"retries":0`, pools{"encode": {decode}, "decode": {decode}})
	client := newClient(t, false)
	for _, filler := range []int{1, 2000, 4000, 4096, 5000, 9000, 14_000} {
		for _, size := range []int{100, tinyBodyHere - 1, tinyBodyHere, tinyBodyHere + 1, 4096, 10_000, 32 << 10, 70_000, 3 << 20} {
			body := `{"messages":[],"user":"`
			body += strings.Repeat("x", size-len(body)-2) + `"}`
			r, err := http.NewRequest(http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d%s", port, chatPath), strings.NewReader(body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Filler", strings.Repeat("f", filler))
			res, err := client.Do(r)
			require.NoError(t, err)
			_, _ = io.Copy(io.Discard, res.Body)
			require.NoError(t, res.Body.Close())
			require.Equal(t, http.StatusOK, res.StatusCode, "%d, %d", filler, size)
			require.True(t, strings.Repeat("f", filler)+body == <-received, "%d, %d", filler, size)
		}
	}
}

// tinyBodyHere is where bodies begin to be sent in another way.
const tinyBodyHere = 2 << 10

// On connections that requests share, nothing may wait for the body of one of them.
func TestSharedConnectionsAreLeftAlone(t *testing.T) {
	addr := engine(t, func(http.ResponseWriter, *http.Request) {})
	for version, own := range map[string]bool{"1.1": true, "h2c": false} {
		tr := &reverseproxy.HTTPTransport{Versions: []string{version}, Transport: &http.Transport{DialContext: new(net.Dialer).DialContext}}
		conn, err := newReplayTransport(tr).Transport.DialContext(t.Context(), "tcp", addr)
		require.NoError(t, err)
		_, is := conn.(*bodyConn)
		assert.Equal(t, own, is, version)
		require.NoError(t, conn.Close())
	}
}
