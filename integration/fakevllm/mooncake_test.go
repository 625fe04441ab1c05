package fakevllm

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// engineIDOf asks a bootstrap server for the id of its engine.
func engineIDOf(t *testing.T, e *Engine) string {
	t.Helper()
	res, err := http.Get(e.Bootstrap() + "/query")
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	id := regexp.MustCompile(`^\{"0":\{"engine_id":"([^"]+)",`).FindSubmatch(text)
	require.NotNil(t, id, "%s", text)
	return string(id[1])
}

func TestMooncakeContract(t *testing.T) {
	c := NewCluster()
	p, d := start(t, c, Options{Role: Prefill, Mooncake: true}), start(t, c, Options{Role: Decode, Mooncake: true, RequireKV: true})
	prefill := func(transfer, more string) reply {
		return post(t, p, completions, "r", `{"prompt":"a","stream":false,"max_tokens":1,"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false`+transfer+`}`+more+`}`)
	}
	decode := func(prompt, transfer, engine, server string) reply {
		return post(t, d, completions, "r", `{"prompt":"`+prompt+`","kv_transfer_params":{"do_remote_decode":false,"do_remote_prefill":true,"transfer_id":"`+transfer+`","remote_engine_id":"`+engine+`"`+server+`}}`)
	}
	const ignore = `,"ignore_eos":true`
	for _, transfer := range []string{"one", "two", "three", "four"} {
		a := prefill(`,"transfer_id":"`+transfer+`"`, ignore)
		accepted(t, p, a)
		assert.Contains(t, a.body, `"kv_transfer_params":null`)
	}
	for want, a := range map[string]reply{
		"must have a transfer_id":     prefill("", ignore),
		"one has been used before":    prefill(`,"transfer_id":"one"`, ignore),
		"ignore_eos":                  prefill(`,"transfer_id":"new"`, ""),
		`must not have "stop"`:        prefill(`,"transfer_id":"new"`, ignore+`,"stop":"."`),
		`not have "stop_token_ids"`:   prefill(`,"transfer_id":"new"`, ignore+`,"stop_token_ids":[1]`),
		"must have transfer_id, remo": decode("a", "one", engineIDOf(t, p), ""),
	} {
		assert.Equal(t, http.StatusBadRequest, a.status, want)
		assert.Contains(t, strings.ReplaceAll(a.body, `\"`, `"`), want)
	}

	id, server := engineIDOf(t, p), `,"remote_bootstrap_addr":"`+p.Bootstrap()+`"`
	assert.Equal(t, http.StatusOK, decode("a", "one", id, server).status)
	require.NoError(t, p.Restart())
	assert.NotEqual(t, id, engineIDOf(t, p))
	for want, a := range map[string]reply{
		"Internal server error":               decode("a", "two", id, server), // the KV is lost
		"is not that of the prefill":          decode("a", "three", engineIDOf(t, p), server),
		"unknown transfer_id none":            decode("a", "none", id, server),
		"kv_transfer_params missing":          post(t, d, completions, "r", `{"prompt":"a"}`),
		"remote_bootstrap_addr http://e:1 is": decode("a", "four", id, `,"remote_bootstrap_addr":"http://e:1"`),
	} {
		assert.Equal(t, http.StatusInternalServerError, a.status, want)
		assert.Contains(t, a.body, want)
	}

	p.Reset()
	accepted(t, p, prefill(`,"transfer_id":"five"`, ignore))
	assert.Contains(t, decode("b", "five", engineIDOf(t, p), server).body, "belong to another request")
	assert.Contains(t, decode("a", "five", engineIDOf(t, p), server).body, "spent transfer_id five")
	p.KillBootstrap()
	_, err := http.Get(p.Bootstrap() + "/query")
	require.Error(t, err)
}
