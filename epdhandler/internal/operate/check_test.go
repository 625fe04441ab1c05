package operate

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/engine"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/process"
)

func TestMismatches(t *testing.T) {
	t.Parallel()
	// "stage address model version"
	for name, tc := range map[string]struct{ engines, want []string }{
		"all the same":       {[]string{"encode e1 m 1", "encode e2 m 1", "decode d1 m 1"}, nil},
		"one is down":        {[]string{"encode e1 m 1", "encode e2 - -", "decode d1 m 1"}, nil},
		"a pool is down":     {[]string{"encode e1 - -", "prefill p1 m 1", "decode d1 m 1"}, nil},
		"models in a pool":   {[]string{"encode e1 m 1", "encode e2 n 1", "encode e3 m 1", "decode d1 m 1"}, []string{"engines serve different models: m (e1 e3 d1), n (e2)"}},
		"versions in a pool": {[]string{"encode e1 m 1", "decode d1 m 1", "decode d2 m 2"}, []string{"engines run different versions of vLLM: 1 (e1 d1), 2 (d2)"}},
		"unknown version":    {[]string{"encode e1 m 1", "decode d1 m 1", "decode d2 m -"}, nil},
		"versions of pools":  {[]string{"encode e1 m 1", "encode e2 m -", "decode d1 m 2"}, []string{"engines run different versions of vLLM: 1 (e1), 2 (d1)"}},
		"models of pools":    {[]string{"encode e1 m 1", "prefill p1 n 1", "decode d1 m 1"}, []string{"engines serve different models: m (e1 d1), n (p1)"}},
		"too old": {[]string{"encode e1 m 0.9.2", "decode d1 m 0.9.2"}, []string{
			"encode e1 runs vLLM 0.9.2, which knows no encoders: 0.11.1 is the first",
			"decode d1 runs vLLM 0.9.2, which knows no encoders: 0.11.1 is the first",
		}},
		"just too old": {[]string{"encode e1 m 0.11", "decode d1 m 0.11"}, []string{
			"encode e1 runs vLLM 0.11, which knows no encoders: 0.11.1 is the first",
			"decode d1 runs vLLM 0.11, which knows no encoders: 0.11.1 is the first",
		}},
		"just new enough": {[]string{"encode e1 m 0.11.1rc2.dev5", "decode d1 m 0.11.1rc2.dev5"}, nil},
		"in two pools": {[]string{"encode e1 m 1", "encode e1 m 1", "decode e1 m 1", "decode d1 m 1"}, []string{
			"e1 is in the pools encode and decode, but an engine has one role",
		}},
		"nobody in two pools": {[]string{"encode - - -", "decode - - -"}, nil},
		"everything": {[]string{"encode e1 m 1", "encode e2 n 2", "prefill p1 m 1", "decode d1 n 1"}, []string{
			"engines serve different models: m (e1 p1), n (e2 d1)",
			"engines run different versions of vLLM: 1 (e1 p1 d1), 2 (e2)",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var findings []finding
			for _, e := range tc.engines {
				f := strings.Fields(e)
				said := func(s string) string { return strings.Trim(s, "-") }
				at := engine.Target{Pool: &engine.Pool{Dispatcher: &dispatch.Dispatcher{Settings: dispatch.Settings{Stage: f[0]}}}}
				if dial := said(f[1]); dial != "" {
					at.Upstream = &reverseproxy.Upstream{Dial: dial}
				}
				findings = append(findings, finding{Target: at, models: said(f[2]), version: said(f[3])})
			}
			assert.Equal(t, tc.want, mismatches(findings))
		})
	}
}

func TestModelNames(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		`{"object":"list","data":[{"id":"b"},{"id":"a"}]}`: "a, b",
		`{"data":[{"id":"a\u001b[31m\u009b"}]}`:            "a[31m",
		`{"data":[]}`:                                      "",
		`{"error":"x"}`:                                    "",
		`[]`:                                               "",
		`<html>`:                                           "",
		`{"data":[{"id":1}]`:                               "",
	} {
		_, got := modelNames([]byte(answer))
		assert.Equal(t, want, got, answer)
	}
}

// vLLM answers what a check asks, if the request has the key. Prefill hands KV blocks over.
func vLLM(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/health":
	case r.Header.Get("Authorization") != "Bearer secret":
		w.WriteHeader(http.StatusUnauthorized)
	case r.URL.Path == "/v1/models":
		_, _ = fmt.Fprint(w, `{"data":[{"id":"m"}]}`)
	case r.URL.Path == "/version":
		_, _ = fmt.Fprint(w, `{"version":"0.12.0"}`)
	case r.URL.Path == "/v1/completions" && r.Header.Get("Content-Type") == "application/json":
		_, _ = fmt.Fprint(w, `{"kv_transfer_params":{"remote_engine_id":"x"}}`)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	p := process.New()
	well, other := fakeEngine(t, vLLM), fakeEngine(t, http.NotFound)
	site := &process.Site{
		Encode:  newPool(t, p, "encode", upstreams(well, other)),
		Prefill: newPool(t, p, "prefill", upstreams(fakeEngine(t, vLLM))),
		Decode:  newPool(t, p, "decode", upstreams(fakeEngine(t, vLLM), "127.0.0.1:1")),
	}
	var out strings.Builder
	assert.Equal(t, 2, check(t.Context(), &out, site, "secret"))
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	require.Len(t, lines, 5)
	for i, want := range []string{
		"up, vLLM 0.12.0, serves m",
		"/health answers 404: is that vLLM, and has it started well?",
		"up, vLLM 0.12.0, serves m",
		"up, vLLM 0.12.0, serves m",
		"connection refused: is it running, and at this address and port?",
	} {
		assert.Contains(t, lines[i], want)
	}

	site.Encode = newPool(t, p, "encode", upstreams(well))
	site.Decode = newPool(t, p, "decode", upstreams(well))
	out.Reset()
	assert.Equal(t, 4, check(t.Context(), &out, site, ""))
	assert.Equal(t, 3, strings.Count(out.String(), "answers 401: engines have --api-key"))
	assert.Contains(t, out.String(), well+" is in the pools encode and decode")
}

// The order of sites does not depend on the order in which they were provisioned.
func TestTextOfSites(t *testing.T) {
	t.Parallel()
	p := process.New()
	site := func(address string) *process.Site {
		return &process.Site{Encode: newPool(t, p, "encode", upstreams(address)), Decode: newPool(t, p, "decode", upstreams("d:1"))}
	}
	assert.Equal(t, textOf(site("a:1")), textOf(site("a:1")))
	assert.Less(t, textOf(site("a:1")), textOf(site("b:1")))
}
