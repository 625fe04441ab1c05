package operate

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

func TestStatus(t *testing.T) {
	t.Parallel()
	p := process.New()
	s := &process.Site{
		Encode:    newPool(t, p, "encode", upstreams("e:1")),
		Prefill:   newPool(t, p, "prefill", `{"dynamic_upstreams":{"source":"a","name":"nowhere.invalid","port":"1"}}`),
		Decode:    newPool(t, p, "decode", upstreams("d:1"), dispatch.Settings{Limit: 1, QueueSize: 3}),
		MaxMemory: 100,
	}
	s.Gate = dispatch.NewGate(s.Decode.Dispatcher, time.Second)
	p.Enlist(s)
	for range 3 { // the last one waits
		place, err := s.Gate.Join()
		require.NoError(t, err)
		if place.Passes() {
			t.Cleanup(s.Gate.Leave)
		}
	}
	occupy(t, s.Decode, new(dispatch.Turn))
	at := s.Encode.Instance("e:1")
	at.Answered(2 * time.Second)
	at.HandedOver(true, true)
	at.Failed(telemetry.Broken)

	got := StatusOf(t.Context(), p)
	text, err := json.Marshal(got)
	require.NoError(t, err)
	when, err := json.Marshal(got.Handlers[0].Pools[0].Upstreams[0].LastFailure.At)
	require.NoError(t, err)
	assert.JSONEq(t, `{"handlers":[{"pools":[
		{"stage":"encode","health":"unknown","in_flight":0,"waiting":0,"upstreams":[
			{"name":"encode#1","address":"e:1","healthy":null,"ejected":false,"in_flight":0,"answers":1,"time_to_first_byte":{"p50":2,"p95":2},
				"recent_failures":1,"last_failure":{"at":`+string(when)+`,"reason":"broken"},"handoffs":{"blocks":1,"none":0}}]},
		{"stage":"prefill","health":"unknown","in_flight":0,"waiting":0,"upstreams":[]},
		{"stage":"decode","health":"unknown","in_flight":1,"limit":1,"waiting":1,"queue_size":3,"upstreams":[
			{"name":"decode#1","address":"d:1","healthy":null,"ejected":false,"in_flight":1,"answers":0,"time_to_first_byte":{"p50":0,"p95":0},"recent_failures":0}]}
	]}],"memory":{"held":0,"limit":100}}`, string(text))
}

// Without a handler there is a status, as JSON and for browsers, and nothing to profile.
func TestAdminWithoutHandlers(t *testing.T) {
	t.Parallel()
	serve := func(method, path, accept string) (*httptest.ResponseRecorder, error) {
		for _, route := range (adminAPI{}).Routes() {
			if route.Pattern == path {
				w, r := httptest.NewRecorder(), httptest.NewRequest(method, path, nil)
				r.Header.Set("Accept", accept)
				return w, route.Handler.ServeHTTP(w, r)
			}
		}
		return nil, nil
	}
	w, err := serve(http.MethodGet, "/epd/status", "*/*")
	require.NoError(t, err)
	assert.JSONEq(t, `{"handlers":[],"memory":{"held":0,"limit":0}}`, w.Body.String())
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))

	w, err = serve(http.MethodGet, "/epd/status", "text/html,*/*")
	require.NoError(t, err)
	assert.Equal(t, "text/html; charset=utf-8", w.Header().Get("Content-Type"))
	assert.Contains(t, w.Body.String(), "<!doctype html>")

	for _, tc := range []struct {
		method, path string
		status       int
	}{
		{http.MethodPost, "/epd/status", http.StatusMethodNotAllowed},
		{http.MethodGet, "/epd/start_profile", http.StatusMethodNotAllowed},
		{http.MethodPost, "/epd/start_profile", http.StatusNotFound},
		{http.MethodPost, "/epd/stop_profile", http.StatusNotFound},
	} {
		w, err := serve(tc.method, tc.path, "")
		var failure caddy.APIError
		require.ErrorAs(t, err, &failure)
		assert.Equal(t, tc.status, failure.HTTPStatus)
		assert.Equal(t, tc.status == http.StatusMethodNotAllowed, w.Header().Get("Allow") != "")
	}
}
