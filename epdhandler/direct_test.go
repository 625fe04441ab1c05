package epdhandler

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// echo answers with what it was asked.
func echo(w http.ResponseWriter, r *http.Request) {
	_, _ = fmt.Fprintf(w, "%s %s%s %s%s", r.Method, r.Host, r.URL.Path, r.Header.Get("Authorization"), r.Header.Get("Idempotency-Key"))
}

// encoders provisions a handler with this pool and returns what there is to ask in it.
func encoders(t *testing.T, pool string) []target {
	t.Helper()
	h, err := load(t, `{"encode":`+pool+`,"decode":{"upstreams":[{"dial":"localhost:1"}],"health_checks":{"active":{}}}}`)
	require.NoError(t, err)
	return targets(t.Context(), h.encode)
}

// A question goes the way that the pool's block says.
func TestAsk(t *testing.T) {
	plain := engine(t, echo)
	secure := httptest.NewTLSServer(http.HandlerFunc(echo))
	t.Cleanup(secure.Close)
	socket := filepath.Join(t.TempDir(), "engine.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	local := &httptest.Server{Listener: listener, Config: &http.Server{Handler: http.HandlerFunc(echo)}}
	local.Start()
	t.Cleanup(local.Close)
	_, port, err := net.SplitHostPort(plain)
	require.NoError(t, err)
	t.Setenv("EPD_TEST_ENGINE", plain)

	for name, tc := range map[string]struct{ pool, host, authorization string }{
		"plain":       {`"upstreams":[{"dial":"` + plain + `"}]`, plain, "client's"},
		"TLS":         {`"upstreams":[{"dial":"` + secure.Listener.Addr().String() + `"}],"transport":{"protocol":"http","tls":{"insecure_skip_verify":true}}`, secure.Listener.Addr().String(), "client's"},
		"unix":        {`"upstreams":[{"dial":"unix/` + socket + `"}]`, "localhost", "client's"},
		"placeholder": {`"upstreams":[{"dial":"{env.EPD_TEST_ENGINE}"}]`, plain, "client's"},
		"dynamic":     {`"dynamic_upstreams":{"source":"a","name":"127.0.0.1","port":"` + port + `"}`, plain, "client's"},
		"header_up":   {`"upstreams":[{"dial":"` + plain + `"}],"headers":{"request":{"set":{"Authorization":["pool's {http.reverse_proxy.upstream.port}"]}}}`, plain, "pool's " + port},
	} {
		t.Run(name, func(t *testing.T) {
			all := encoders(t, `{`+tc.pool+`,"health_checks":{"active":{}}}`)
			require.Len(t, all, 1)
			q := question{method: http.MethodPost, path: "/x", header: http.Header{"Authorization": {"client's"}}, timeout: time.Minute}
			for range 2 { // on a connection that is there
				r := all[0].ask(t.Context(), q)
				require.NoError(t, r.err)
				assert.Equal(t, http.StatusOK, r.status)
				assert.Equal(t, fmt.Sprintf("POST %s/x %s", tc.host, tc.authorization), string(r.body))
			}
			assert.Equal(t, http.Header{"Authorization": {"client's"}}, q.header)
		})
	}
}

func TestAskIsBounded(t *testing.T) {
	large := engine(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxReply+1)) })
	silent := engine(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	half := engine(t, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	all := encoders(t, `{"upstreams":[{"dial":"`+large+`"},{"dial":"`+silent+`"},{"dial":"`+half+`"}],"health_checks":{"active":{}}}`)
	q := question{method: http.MethodGet, path: "/", timeout: 100 * time.Millisecond}

	r := all[0].ask(t.Context(), question{method: http.MethodGet, path: "/", timeout: time.Minute})
	require.NoError(t, r.err)
	assert.Len(t, r.body, maxReply)
	for _, slow := range all[1:] {
		assert.ErrorIs(t, slow.ask(t.Context(), q).err, context.DeadlineExceeded)
	}
}

func TestTargets(t *testing.T) {
	const one, other = `{"dial":"localhost:1"}`, `{"dial":"localhost:2"}`
	off := `,"health_checks":{"active":{}}}`
	h, err := load(t, `{"encode":{"upstreams":[`+one+`,`+other+`,`+one+`]`+off+`,
		"prefill":{"dynamic_upstreams":{"source":"a","name":"nowhere.invalid","port":"1"}`+off+`,
		"decode":{"dynamic_upstreams":{"source":"a","name":"nowhere.invalid","port":"1"},"upstreams":[`+one+`]`+off+`}`)
	require.NoError(t, err)

	var got []string
	for _, target := range targets(t.Context(), append(h.pools(), h.encode)...) {
		got = append(got, target.pool.stage+" "+target.address())
		assert.Equal(t, target.address() == "", target.err != nil)
		if target.err != nil {
			assert.Equal(t, target.err, target.ask(t.Context(), question{}).err)
		}
	}
	// each once, and what is written down where a name is not known
	assert.Equal(t, []string{"encode localhost:1", "encode localhost:2", "prefill ", "decode localhost:1"}, got)
}
