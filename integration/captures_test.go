package integration

import (
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

var update = flag.Bool("update", false, "write what is captured into the golden files")

// captures are requests whose sub-requests are compared, byte for byte, with the files
// in testdata/captures. What engines get is a contract: no change there may be
// accidental.
var captures = []struct {
	name, path, body string
	headers          []string
	prefill          bool
	handles          bool
	options          []string // for engines of vLLM 0.31.0
	push             bool     // encoders push embeddings
}{
	{name: "text", body: `{"model":"fake","messages":[{"role":"user","content":"What is EPD?"}]}`},
	{name: "text_prefill_stream", prefill: true, body: `{"model":"fake","messages":[{"role":"user","content":"What is EPD?"}],"stream":true,"stream_options":{"include_usage":true}}`},
	{name: "completion_prefill", prefill: true, path: "/v1/completions", body: `{"model": "fake", "prompt": "Once", "max_tokens": 16}`},
	{name: "image", body: chat("", text("What is this?"), image("AAAA"))},
	{name: "image_prefill", prefill: true, body: chat("", text("What is this?"), image("AAAA"))},
	{name: "short_forms", body: `{"model":"fake","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"image_url":{"url":"data:image/png;base64,AAAA"}},{"image_url":"file:///x.png"},{"input_audio":{"data":"BBBB","format":"flac"}},{"audio_url":"https://example.com/x.wav","image_url":null}]}]}`},
	{name: "all_kinds_prefill", prefill: true, body: chat("", image("AAAA"), `{"type":"audio_url","audio_url":{"url":"data:audio/wav;base64,BBBB"}}`, `{"type":"input_audio","input_audio":{"data":"CCCC","format":"wav"}}`, `{"type":"video_url","video_url":{"url":"https://example.com/x.mp4"}}`)},
	{name: "options_prefill", prefill: true, body: "{ \"mm_processor_kwargs\" : {\"num_crops\": 4},\n  \"model\": \"fake\", \"priority\": -1, \"session_id\": \"s\",\n  \"messages\": [ {\"content\": [ " + image("AAAA") + " ], \"role\": \"user\"} ],\n  \"media_io_kwargs\": {\"video\": {\"num_frames\": 8}}, \"temperature\": 1e-1 }\n"},
	{name: "limits_prefill", prefill: true, body: chat(`,"max_tokens":100,"max_completion_tokens":50,"min_tokens":2`, image("AAAA"))},
	{name: "tools_prefill", prefill: true, body: chat(`,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"required"`, image("AAAA"))},
	{name: "untrusted_prefill", prefill: true, body: `{"kv_transfer_params":{"remote_host":"evil"},"model":"fake","messages":[],"ec_transfer_params":{"a":1}}`,
		headers: []string{"X-Data-Parallel-Rank: 1", "Accept-Encoding: br", "Authorization: Bearer key", "X-Custom: kept"}},
	{name: "untrusted", body: `{"kv_transfer_params":{"remote_host":"evil"},"messages":[],"ec_transfer_params":{"a":1}}`},
	{name: "handles", handles: true, body: chat("", image("AAAA"), image("BBBB"))},
	{name: "handles_prefill", prefill: true, handles: true, body: chat("", image("AAAA"), image("BBBB"))},
	{name: "references", options: []string{"references"}, body: chat("", text("Which?"), image("AAAA"), image("BBBB"), image("AAAA"))},
	{name: "references_to_none", options: []string{"references"}, body: chat("", image("AAAA"), `{"type":"video_url","video_url":{"url":"https://example.com/x.mp4"}}`)},
	{name: "references_prefill", prefill: true, handles: true, options: []string{"references"}, body: chat("", image("AAAA"), `{"input_audio":{"data":"CCCC","format":"wav"},"uuid":"not his"}`)},
	{name: "batch", options: []string{"encode_batch 2"}, body: chat("", image("AAAA"), image("BBBB"), image("CCCC"))},
	{name: "push_prefill", prefill: true, push: true, options: []string{"references", "encode_batch 8"}, body: chat("", image("AAAA"), image("BBBB"), image("AAAA"))},
	{name: "references_batch_prefill", prefill: true, options: []string{"references", "encode_batch 8", "decode_has_embeddings"}, body: chat("", image("AAAA"), image("BBBB"), image("AAAA"))},
}

func TestCaptures(t *testing.T) {
	t.Parallel()
	for _, tc := range captures {
		t.Run(tc.name, func(t *testing.T) {
			prefills := 0
			if tc.prefill {
				prefills = 1
			}
			e := startEngines(t, 1, prefills, 1, func(o *fakevllm.Options) {
				o.Handles, o.Modern, o.KeepHandles = tc.handles, tc.options != nil, slices.Contains(tc.options, "decode_has_embeddings")
			}, consumers(fakevllm.Prefill, 2))
			options := tc.options
			if tc.push {
				options = append(options, e.pushing(fakevllm.Prefill, 2))
			}
			c := startCaddy(t, e.block(options...))
			path := chatPath
			if tc.path != "" {
				path = tc.path
			}
			r := c.doWith(t, c.client(t, false), http.MethodPost, path, tc.body, append(tc.headers, "X-Request-Id: golden", "User-Agent: golden")...)
			require.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
			e.assertContract(t)
			got := capture(c, e)

			file := filepath.Join("testdata", "captures", tc.name+".txt")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, string(want), got)
		})
	}
}

// capture formats all requests that engines got, with names for the values that differ
// in every run.
func capture(c *caddy, e *engines) string {
	_, port, _ := strings.Cut(c.addr, ":")
	var b strings.Builder
	for _, engine := range e.all() {
		requests := engine.Requests()
		slices.SortFunc(requests, func(x, y fakevllm.Request) int { return item(x) - item(y) })
		for _, r := range requests {
			fmt.Fprintf(&b, "=== %s\n%s %s %s\nHost: %s\n", engine.Name(), r.Method, r.Path, r.Proto, r.Host)
			for _, name := range slices.Sorted(maps.Keys(r.Header)) {
				fmt.Fprintf(&b, "%s: %s\n", name, strings.Join(r.Header[name], " | "))
			}
			fmt.Fprintf(&b, "\n%s\n", r.Body)
		}
	}
	out := strings.ReplaceAll(b.String(), "localhost:"+port, "localhost:PORT")
	for _, v := range volatile {
		out = v.pattern.ReplaceAllString(out, v.name)
	}
	return out
}

var volatile = []struct {
	pattern *regexp.Regexp
	name    string
}{
	{regexp.MustCompile(`golden-[0-9a-f]{12}`), "golden"},
	{regexp.MustCompile(`(golden:\d+:)[0-9a-f]{6}`), "${1}SIXHEX"},
	{regexp.MustCompile(`"remote_block_ids":\[[\d,]+\]`), `"remote_block_ids":[BLOCKS]`},
	{regexp.MustCompile(`("(?:remote_engine_id|remote_request_id|handle)"):"[^"]+"`), `$1:"OPAQUE"`},
	{regexp.MustCompile(`"transfer_id":"[0-9a-f]{32}"`), `"transfer_id":"FRESH"`},
	{regexp.MustCompile(`Content-Length: \d+\n`), ""}, // the engines check it
	{regexp.MustCompile(`("(?:remote_port|peer_port|size_bytes)"):\d+`), `$1:NUMBER`},
}

// item is the index of a media item in an encode request's id.
func item(r fakevllm.Request) int {
	parts := strings.Split(r.ID, ":")
	n, _ := strconv.Atoi(parts[len(parts)/2])
	return n
}
