package handover

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// Prefill hands over only what ended because of max_tokens. The bootstrap server is not asked for
// anything else.
func TestMooncakeNeedsLength(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	at := bootstrapServer(t, func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		_, _ = fmt.Fprint(w, `{"0":{"engine_id":"e"}}`)
	})
	prompt, err := body.Parse([]byte(`{"prompt":"x","stop":"x","min_tokens":2}`))
	require.NoError(t, err)
	m, sent := Mooncake{"p1:8002": at}, time.Now()
	request, read := m.Request(prompt, body.Remove(body.ECTransferParams))
	text := string(request.Bytes())
	for _, member := range []string{`"max_tokens":1`, `"ignore_eos":true`, `"do_remote_decode":true`, `"stream":false`} {
		assert.Contains(t, text, member)
	}
	for _, member := range []string{`"stop"`, `"min_tokens"`} {
		assert.NotContains(t, text, member)
	}
	for answer, handed := range map[string]bool{
		`{"choices":[{"finish_reason":"length"}],"usage":{"prompt_tokens_details":{"cached_tokens":3}}}`: true,
		`{"choices":[{"finish_reason":"stop"}]}`:                                                         false,
		`{"choices":[{"finish_reason":"tool_calls"}]}`:                                                   false,
		`{"choices":[]}`: false,
		`{}`:             false,
	} {
		blocks, err := read(t.Context(), []byte(answer), "p1:8002", sent)
		require.NoError(t, err)
		assert.Equal(t, handed, blocks.Params != nil, answer)
		assert.Equal(t, handed, blocks.Cached == 3, answer)
		assert.False(t, blocks.Made.Before(sent))
		if handed {
			assert.Regexp(t, `^\{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"[0-9a-f]{32}","remote_engine_id":"e","remote_bootstrap_addr":"`+at.Address+`"\}$`, string(blocks.Params))
		}
	}
	assert.EqualValues(t, 1, asked.Load())
	_, err = read(t.Context(), []byte(`nonsense`), "p1:8002", sent)
	require.Error(t, err)

	again, _ := m.Request(prompt, body.Remove(body.ECTransferParams))
	assert.NotEqual(t, text, string(again.Bytes()), "a fresh transfer_id")
}
