package epdhandler

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// pools are the addresses of the engines of each stage.
type pools map[string][]string

// serve runs Caddy in this process, on a port of loopback over plain HTTP, with these options of
// the handler and engines. It replaces the previous configuration.
func serve(t testing.TB, port int, options string, engines pools) {
	t.Helper()
	for stage, addresses := range engines {
		dials := ""
		for _, a := range addresses {
			dials += fmt.Sprintf(`,{"dial":"%s"}`, a)
		}
		options += fmt.Sprintf(`,"%s":{"upstreams":[%s]}`, stage, dials[1:])
	}
	require.NoError(t, caddy.Load(fmt.Appendf(nil, `{
		"admin":{"disabled":true,"config":{"persist":false}},
		"logging":{"logs":{"default":{"writer":{"output":"discard"}}}},
		"storage":{"module":"file_system","root":"%s"},
		"apps":{"http":{"servers":{"s":{
			"listen":["127.0.0.1:%d"],"protocols":["h1","h2c"],"automatic_https":{"disable":true},
			"routes":[{"handle":[{"handler":"epd_proxy"%s}]}]}}}}}`, t.TempDir(), port, options), true))
	t.Cleanup(func() { _ = caddy.Stop() })
}

func freePort(t testing.TB) int {
	t.Helper()
	port, err := fakevllm.FreePort()
	require.NoError(t, err)
	return port
}

// fakeEngine starts a server with this handler, and returns its address.
func fakeEngine(t testing.TB, answer http.HandlerFunc) string {
	s := httptest.NewServer(answer)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// testProcess is the state that handlers share; it outlives every test.
var testProcess = new(process.Users).Use()

// newGeneration makes a request of a client, as Caddy's server passes it to a handler.
func newGeneration(h *Handler, r *http.Request, in *input) *generation {
	w := httptest.NewRecorder()
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server))
	x := &exchange{h: h, w: w, r: r, id: "test", report: newReport(process.New().Metrics, "test", telemetry.Chat)}
	return x.newGeneration(in)
}
