package handover

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

func TestCachedTokens(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]int{
		`{}`:             -1,
		`{"usage":null}`: -1,
		`{"usage":{"prompt_tokens_details":null}}`:                        -1,
		`{"usage":{"prompt_tokens_details":{"cached_tokens":0}}}`:         0,
		`{"usage":{"prompt_tokens_details":{"cached_tokens":5}}}`:         5,
		`{"usage":{"prompt_tokens_details":{"cached_tokens":"x"}}}`:       -1,
		`{"kv_transfer_params":{"a":1,"remote_prefill_cached_tokens":6}}`: 6,
	} {
		full := strings.Replace(answer, "{", `{"kv_transfer_params":{"a":1},`, 1)
		if strings.Contains(answer, "kv_") || answer == "{}" {
			full = strings.Replace(answer, "{}", `{"kv_transfer_params":{"a":1}}`, 1)
		}
		blocks, err := readNIXL(t.Context(), []byte(full), "", time.Time{})
		require.NoError(t, err)
		assert.NotNil(t, blocks.Params)
		assert.Equal(t, want, blocks.Cached, answer)
	}
}

func TestNIXL(t *testing.T) {
	t.Parallel()
	prompt, err := body.Parse([]byte(`{"messages":[],"stream":true,"stream_options":{},"max_completion_tokens":9,"n":1,"min_tokens":3,"tool_choice":"required"}`))
	require.NoError(t, err)
	request, read := NIXL{}.Request(prompt, body.Set(body.ECTransferParams, `{"a":1}`))
	var got map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(request.Bytes(), &got))
	want := map[string]json.RawMessage{"kv_transfer_params": json.RawMessage(stub)}
	for name, value := range map[string]string{"messages": "[]", "stream": "false", "max_tokens": "1", "max_completion_tokens": "1", "n": "1", "tool_choice": `"none"`, "ec_transfer_params": `{"a":1}`} {
		want[name] = json.RawMessage(value)
	}
	assert.Equal(t, want, got)

	for answer, want := range map[string]string{
		`{"kv_transfer_params":{"a":1}}`: `{"a":1}`,
		`{"kv_transfer_params":{ }}`:     "",
		`{"kv_transfer_params":null}`:    "",
		`{}`:                             "",
	} {
		blocks, err := read(t.Context(), []byte(answer), "p:1", time.Now())
		require.NoError(t, err)
		assert.Equal(t, want, string(blocks.Params), answer)
		assert.Equal(t, want != "", Answers([]byte(answer)), answer)
	}
	for _, answer := range []string{`{"kv_transfer_params":7}`, `nonsense`} {
		_, err := read(t.Context(), []byte(answer), "p:1", time.Now())
		require.Error(t, err)
		assert.False(t, Answers([]byte(answer)))
	}
}

// A probe is a request that prefill would get of a client's.
func TestProbe(t *testing.T) {
	t.Parallel()
	var got map[string]any
	require.NoError(t, json.Unmarshal(Probe(`m"`, "one two"), &got))
	assert.Equal(t, `m"`, got["model"])
	assert.Equal(t, "one two", got["prompt"])
	assert.EqualValues(t, 1, got["max_tokens"])
	assert.Equal(t, true, got["kv_transfer_params"].(map[string]any)["do_remote_decode"])
}

func TestFinishReason(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]bool{
		`{"choices":[{"finish_reason":"stop"}]}`:   true,
		`{"choices":[{"finish_reason":"length"}]}`: false,
		`{"choices":[{}]}`:                         false,
		`{"choices":[]}`:                           false,
		`[]`:                                       false,
	} {
		assert.Equal(t, want, FinishReason([]byte(answer)) == "stop", answer)
	}
}
