package epdhandler

import (
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"github.com/stretchr/testify/assert"
)

func TestMismatches(t *testing.T) {
	// "stage address model version"
	for name, tc := range map[string]struct{ engines, want []string }{
		"all the same":       {[]string{"encode e1 m 1", "encode e2 m 1", "decode d1 m 1"}, nil},
		"one is down":        {[]string{"encode e1 m 1", "encode e2 - -", "decode d1 m 1"}, nil},
		"a pool is down":     {[]string{"encode e1 - -", "prefill p1 m 1", "decode d1 m 1"}, nil},
		"models in a pool":   {[]string{"encode e1 m 1", "encode e2 n 1", "encode e3 m 1", "decode d1 m 1"}, []string{"the instances of encode serve different models: m (e1 e3), n (e2)"}},
		"versions in a pool": {[]string{"encode e1 m 1", "decode d1 m 1", "decode d2 m 2"}, []string{"the instances of decode run different versions of vLLM: 1 (d1), 2 (d2)"}},
		"unknown version":    {[]string{"encode e1 m 1", "decode d1 m 1", "decode d2 m -"}, nil},
		"versions of pools":  {[]string{"encode e1 m 1", "encode e2 m -", "decode d1 m 2"}, []string{"the pools run different versions of vLLM: 1 (encode), 2 (decode)"}},
		"models of pools":    {[]string{"encode e1 m 1", "prefill p1 n 1", "decode d1 m 1"}, []string{"the pools serve different models: m (encode decode), n (prefill)"}},
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
			"the instances of encode serve different models: m (e1), n (e2)",
			"the pools serve different models: m (prefill), n (decode)",
			"the instances of encode run different versions of vLLM: 1 (e1), 2 (e2)",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var findings []finding
			for _, e := range tc.engines {
				f := strings.Fields(e)
				said := func(s string) string { return strings.Trim(s, "-") }
				at := target{pool: &pool{stage: f[0]}}
				if dial := said(f[1]); dial != "" {
					at.upstream = &reverseproxy.Upstream{Dial: dial}
				}
				findings = append(findings, finding{target: at, models: said(f[2]), version: said(f[3])})
			}
			assert.Equal(t, tc.want, mismatches(findings))
		})
	}
}

func TestModelNames(t *testing.T) {
	for answer, want := range map[string]string{
		`{"object":"list","data":[{"id":"b"},{"id":"a"}]}`: "a, b",
		`{"data":[{"id":"a\u001b[31m\u009b"}]}`:            "a[31m",
		`{"data":[]}`:                                      "",
		`{"error":"x"}`:                                    "",
		`[]`:                                               "",
		`<html>`:                                           "",
		`{"data":[{"id":1}]`:                               "",
	} {
		assert.Equal(t, want, modelNames([]byte(answer)), answer)
	}
}
