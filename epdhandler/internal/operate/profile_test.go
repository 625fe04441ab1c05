package operate

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
)

func TestProfiles(t *testing.T) {
	t.Parallel()
	p := process.New()
	asked := make(chan *http.Request, 10)
	says := func(status int, text string) string {
		return fakeEngine(t, func(w http.ResponseWriter, r *http.Request) {
			asked <- r
			w.WriteHeader(status)
			_, _ = w.Write([]byte(text))
		})
	}
	const dead = "127.0.0.1:1"
	encode := newPool(t, p, "encode", upstreams(says(404, `{"detail":"Not Found"}`), dead))
	decode := newPool(t, p, "decode", upstreams(says(500, `{"error":{"message":"the disk is full"}}`), says(502, "<html>"), says(307, `{"message":"x"}`)))
	encode.Logger, decode.Logger = zap.NewNop(), zap.NewNop()
	r := httptest.NewRequest(http.MethodPost, "/start_profile", nil)
	r.Header.Set("Authorization", "Bearer secret")
	r.Header.Set("X-Other", "y")

	all := Profile(t.Context(), ProfileQuestion(r, "/start_profile"), true, encode, decode)
	assert.False(t, all.Some())
	assert.Equal(t, "decode#1 the disk is full, decode#2 the decode stage answered with status 502, "+
		"decode#3 the decode stage answered with status 307, encode#1 not available, encode#2 no answer", all.String())
	got := <-asked
	assert.Equal(t, "POST /start_profile", got.Method+" "+got.URL.Path)
	assert.Equal(t, "Bearer secret", got.Header.Get("Authorization"))
	assert.Empty(t, got.Header.Get("X-Other"))

	core, logs := observer.New(zap.InfoLevel)
	all.Log(zap.New(core), "id")
	require.Equal(t, 5, logs.FilterMessage("profiling failed").Len())
	failed := logs.FilterField(zap.String("upstream", "encode#2")).All()
	require.Len(t, failed, 1)
	assert.Equal(t, "dial tcp encode#2: connect: connection refused", failed[0].ContextMap()["error"])

	all = Profile(t.Context(), ProfileQuestion(r, "/stop_profile"), false, newPool(t, p, "encode", upstreams(dead)), newPool(t, p, "decode", upstreams(says(200, ""))))
	assert.True(t, all.Some())
	refused := dead + " dial tcp " + dead + ": connect: connection refused"
	assert.Equal(t, refused, all.String())
	w := httptest.NewRecorder()
	all.Write(w, http.StatusOK)
	assert.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	assert.JSONEq(t, `{"encode":[{"upstream":"`+dead+`","result":"`+strings.TrimPrefix(refused, dead+" ")+`"}],"decode":[{"upstream":"`+all[1].Upstream+`","status":200,"result":"ok"}]}`, w.Body.String())
}

func TestFromHere(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		host    string
		tls     bool
		origins []string
		want    bool
	}{
		{"a.example", false, nil, true},
		{"a.example", false, []string{"http://a.example"}, true},
		{"a.example:80", false, []string{"http://a.example"}, true},
		{"a.example:443", true, []string{"HTTPS://A.example"}, true},
		{"a.example:8443", true, []string{"https://a.example:8443"}, true},
		{"a.example:8443", true, []string{"https://a.example"}, false},
		{"a.example", true, []string{"http://a.example"}, false},
		{"a.example", false, []string{"http://b.example"}, false},
		{"a.example", false, []string{"null"}, false},
		{"a.example", false, []string{""}, false},
		{"a.example", false, []string{"http://a.example", "http://b.example"}, false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/start_profile", nil)
		r.Host = tc.host
		if tc.tls {
			r.TLS = new(tls.ConnectionState)
		}
		if tc.origins != nil {
			r.Header["Origin"] = tc.origins
		}
		assert.Equal(t, tc.want, FromHere(r), "%v", tc)
	}
}
