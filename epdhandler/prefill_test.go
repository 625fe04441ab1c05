package epdhandler

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCachedTokens(t *testing.T) {
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
		kv, cached, err := transferParams([]byte(full))
		require.NoError(t, err)
		assert.NotNil(t, kv)
		assert.Equal(t, want, cached, answer)
	}
}
