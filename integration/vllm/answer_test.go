//go:build unix

package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/vllm/requests"
)

// answered returns the result of ask for this response of a server.
func answered(t *testing.T, status int, contentType, body string) answer {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	a, err := ask(t.Context(), server.Client(), server.URL, requests.AboutText(1))
	require.NoError(t, err)
	return a
}

func whole(t *testing.T, status int, body string) answer {
	return answered(t, status, "application/json", body)
}

func streamed(t *testing.T, events string) answer {
	return answered(t, http.StatusOK, "text/event-stream; charset=utf-8", events)
}

func TestDifference(t *testing.T) {
	const events = `data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}

data: {"id":"1","choices":[{"index":0,"delta":{"content":"a","tool_calls":[{"index":0,"id":"x","function":{"name":"f","arguments":"{"}}]},"token_ids":[1]}]}

data: {"id":"1","choices":[{"index":0,"delta":{"content":"b","tool_calls":[{"index":0,"function":{"arguments":"}"}}]},"token_ids":[2],"finish_reason":"stop"}]}

data: {"id":"1","choices":[],"usage":{"prompt_tokens":3}}

data: [DONE]

`
	for name, c := range map[string]struct {
		want, got answer
		differ    string
	}{
		"the same, ids and times apart": {
			want: whole(t, 200, `{"id":"1","created":1,"choices":[{"message":{"content":"a","tool_calls":[{"id":"x"}]}}]}`),
			got:  whole(t, 200, `{"id":"2","created":2,"choices":[{"message":{"content":"a","tool_calls":[{"id":"y"}]}}],"kv_transfer_params":null}`),
		},
		"another text": {
			want:   whole(t, 200, `{"choices":[{"message":{"content":"a"}}]}`),
			got:    whole(t, 200, `{"choices":[{"message":{"content":"b"}}]}`),
			differ: `choices[0].message.content: "b", not "a"`,
		},
		"a member more": {
			want:   whole(t, 200, `{"usage":{}}`),
			got:    whole(t, 200, `{"usage":{},"kv_transfer_params":{"do_remote_prefill":true}}`),
			differ: `kv_transfer_params: {"do_remote_prefill":true}, not null`,
		},
		"a choice less": {
			want:   whole(t, 200, `{"choices":[{},{}]}`),
			got:    whole(t, 200, `{"choices":[{}]}`),
			differ: `choices: [{}], not [{},{}]`,
		},
		"nearly the same numbers": {
			want: whole(t, 200, `{"logprob":-1.5}`),
			got:  whole(t, 200, `{"logprob":-1.5001}`),
		},
		"other numbers": {
			want:   whole(t, 200, `{"logprob":-1.5}`),
			got:    whole(t, 200, `{"logprob":-1.51}`),
			differ: `logprob: -1.51, not -1.5`,
		},
		"another status": {
			want:   whole(t, 200, `{}`),
			got:    whole(t, 400, `{"error":{"message":"no"}}`),
			differ: `status: 400, not 200: {"error":{"message":"no"}}`,
		},
		"errors with other words": {
			want: whole(t, 400, `{"error":{"message":"no"}}`),
			got:  whole(t, 400, `{"error":{"message":"never"}}`),
		},
		"an error of another form": {
			want:   whole(t, 400, `{"error":{"message":"no"}}`),
			got:    whole(t, 400, `no`),
			differ: `error: not in OpenAI's form: "no"`,
		},
		"the same stream in other pieces": {
			want: streamed(t, events),
			got: streamed(t, `data: {"id":"2","choices":[{"index":0,"delta":{"role":"assistant","content":"ab","tool_calls":[{"index":0,"id":"y","function":{"name":"f","arguments":"{}"}}]},"token_ids":[1,2],"finish_reason":"stop"}]}

data: {"id":"2","choices":[],"usage":{"prompt_tokens":3}}

data: [DONE]

`),
		},
		"choices of a stream in another order": {
			want: streamed(t, "data: {\"choices\":[{\"index\":1,\"text\":\"b\"}]}\n\ndata: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\ndata: [DONE]\n\n"),
			got:  streamed(t, "data: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"index\":1,\"text\":\"b\"}]}\n\ndata: [DONE]\n\n"),
		},
		"another token": {
			want:   streamed(t, events),
			got:    streamed(t, `data: {"id":"2","choices":[{"index":0,"delta":{"role":"assistant","content":"ab","tool_calls":[{"index":0,"id":"y","function":{"name":"f","arguments":"{}"}}]},"token_ids":[1,3],"finish_reason":"stop"}],"usage":{"prompt_tokens":3}}`+"\n\ndata: [DONE]\n\n"),
			differ: `choices[0].token_ids[1]: 3, not 2`,
		},
		"another type": {
			want:   answer{Status: 200, Type: "application/json"},
			got:    answer{Status: 200, Type: "text/plain"},
			differ: `type: "text/plain", not "application/json"`,
		},
		"an id less": {
			want:   whole(t, 200, `{"choices":[{"message":{"tool_calls":[{"id":"x"}]}}]}`),
			got:    whole(t, 200, `{"choices":[{"message":{"tool_calls":[{}]}}]}`),
			differ: `choices[0].message.tool_calls[0].id: null, not "…"`,
		},
		"ids that change": {
			want:   streamed(t, "data: {\"id\":\"1\"}\n\ndata: {\"id\":\"1\"}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {\"id\":\"1\"}\n\ndata: {\"id\":\"2\"}\n\ndata: [DONE]\n\n"),
			differ: "end of the stream: the id changes, not [DONE]",
		},
		"usage twice": {
			want:   streamed(t, "data: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {\"choices\":[],\"usage\":{}}\n\ndata: {\"choices\":[],\"usage\":{}}\n\ndata: [DONE]\n\n"),
			differ: "end of the stream: usage twice, not [DONE]",
		},
		"content after the end of a choice": {
			want:   streamed(t, "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[{\"index\":0,\"text\":\"a\"}]}\n\ndata: [DONE]\n\n"),
			differ: "end of the stream: a choice goes on after its finish_reason, not [DONE]",
		},
		"an event after the end": {
			want:   streamed(t, "data: {}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {}\n\ndata: [DONE]\n\ndata: {}\n\n"),
			differ: "end of the stream: an event after [DONE], not [DONE]",
		},
		"events without an end": {
			want:   streamed(t, "data: {}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {}\ndata: [DONE]\n\n"),
			differ: "end of the stream: two events without an empty line between them, not [DONE]",
		},
		"a stream that breaks off": {
			want:   streamed(t, "data: {}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {}\n\n"),
			differ: "end of the stream: no [DONE], not [DONE]",
		},
		"a stream that fails": {
			want:   streamed(t, "data: {}\n\ndata: [DONE]\n\n"),
			got:    streamed(t, "data: {\"error\":{\"message\":\"no\"}}\n\ndata: [DONE]\n\n"),
			differ: "end of the stream: error event, not [DONE]",
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.differ, difference(c.want, c.got))
		})
	}
}

// A reason applies only to its own requests and outcomes.
func TestReason(t *testing.T) {
	late := answer{Status: 200, Failed: failedEvent, Body: map[string]any{}}
	early := whole(t, 400, `{"error":{"message":"no"}}`)
	assert.NotEmpty(t, reason("", "a broken regex (stream)", late, early))
	assert.Empty(t, reason("", "a broken regex", late, early), "not streamed")
	assert.Empty(t, reason("", "a broken regex (stream)", late, whole(t, 500, `{"error":{"message":"no"}}`)))
	assert.Empty(t, reason("", "text (stream)", late, early))
}

// Names select requests and find their answers, so they are unique.
func TestNamesAreUnique(t *testing.T) {
	for _, m := range models {
		seen := map[string]bool{}
		for _, q := range requests.Both(m.list(releases[0], "")) {
			assert.False(t, seen[q.Name], "%s: %s", m.name, q.Name)
			seen[q.Name] = true
		}
	}
	for _, f := range faults {
		assert.NotEmpty(t, f.topology.decode, f.name)
	}
}

func TestReleases(t *testing.T) {
	assert.True(t, release("0.32.0").since("0.31.0"))
	assert.True(t, release("0.31.0").since("0.31.0"))
	assert.False(t, release("0.9.2").since("0.31.0"))
	assert.True(t, release("0.11.1").since(""))
}

// Each release can be installed, and is run at night.
func TestReleasesAreComplete(t *testing.T) {
	nightly, err := os.ReadFile("../../.github/workflows/nightly.yml")
	require.NoError(t, err)
	for _, r := range releases {
		requirements, err := os.ReadFile("requirements/" + string(r) + ".txt")
		require.NoError(t, err)
		assert.Contains(t, string(requirements), "\nvllm-cpu=="+string(r)+"\n")
		assert.Contains(t, string(nightly), "-releases "+string(r)+"\n")
	}
}
