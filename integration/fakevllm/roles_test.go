package fakevllm

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// encodeBody is an encode request with these messages.
func encodeBody(messages string) string {
	return `{"messages":` + messages + `,"max_tokens":1,"stream":false}`
}

func TestEncodeContract(t *testing.T) {
	image := `{"type":"image_url","image_url":{"url":"https://a/b.png"}}`
	one := `[{"role":"user","content":[` + image + `]}]`
	right := encodeBody(one)
	tests := []struct{ name, id, body, message string }{
		{"right", "a.B_c-9:12:0123ab", right, ""},
		{"all members", "r:0:abcdef", with(with(with(with(with(right, "model", `"fake"`), "mm_processor_kwargs", "{}"), "media_io_kwargs", "{}"), "priority", "1"), "session_id", `"s"`), ""},
		{"short form", "r:0:abcdef", encodeBody(`[{"role":"user","content":[{"image_url":"https://a/b.png"}]}]`), ""},
		{"client's id", "r", right, "must be parent:index:6 hex"},
		{"short suffix", "r:0:abcde", right, "must be parent:index:6 hex"},
		{"upper-case suffix", "r:0:ABCDEF", right, "must be parent:index:6 hex"},
		{"long parent", strings.Repeat("a", 142) + ":0:abcdef", right, "must be parent:index:6 hex"},
		{"strange parent", "a b:0:abcdef", right, "must be parent:index:6 hex"},
		{"other member", "r:0:abcdef", with(right, "temperature", "0"), `must not have "temperature"`},
		{"kv", "r:0:abcdef", with(right, "kv_transfer_params", "{}"), `must not have "kv_transfer_params"`},
		{"max_tokens missing", "r:0:abcdef", `{"messages":` + one + `,"stream":false}`, "max_tokens of an encode request must be 1"},
		{"max_tokens 2", "r:0:abcdef", `{"messages":` + one + `,"max_tokens":2,"stream":false}`, "max_tokens of an encode request must be 1"},
		{"stream missing", "r:0:abcdef", `{"messages":` + one + `,"max_tokens":1}`, "stream of an encode request must be false"},
		{"stream true", "r:0:abcdef", `{"messages":` + one + `,"max_tokens":1,"stream":true}`, "stream of an encode request must be false"},
		{"no message", "r:0:abcdef", encodeBody(`[]`), "exactly one message"},
		{"two messages", "r:0:abcdef", encodeBody(`[{"role":"user","content":[` + image + `]},{"role":"user","content":[]}]`), "exactly one message"},
		{"system", "r:0:abcdef", encodeBody(`[{"role":"system","content":[` + image + `]}]`), "exactly one message, of the user"},
		{"no part", "r:0:abcdef", encodeBody(`[{"role":"user","content":[]}]`), "exactly one content part, got 0"},
		{"two parts", "r:0:abcdef", encodeBody(`[{"role":"user","content":[` + image + `,` + image + `]}]`), "exactly one content part, got 2"},
		{"text beside it", "r:0:abcdef", encodeBody(`[{"role":"user","content":[{"type":"text","text":"a"},` + image + `]}]`), "exactly one content part, got 2"},
		{"only text", "r:0:abcdef", encodeBody(`[{"role":"user","content":"a"}]`), "must be media to encode"},
		{"an embedding", "r:0:abcdef", encodeBody(`[{"role":"user","content":[{"type":"image_embeds","image_embeds":"AA"}]}]`), "must be media to encode"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, Options{Role: Encode})
			a := post(t, e, chat, test.id, test.body)
			if test.message == "" {
				accepted(t, e, a)
				assert.Empty(t, textOf(t, a, false))
				assert.NotContains(t, a.body, "ec_transfer_params")
				return
			}
			refused(t, e, a, http.StatusBadRequest, test.message)
		})
	}
}

func TestConsumerNeedsTheEmbedding(t *testing.T) {
	encode := func(part, options string) string {
		return `{"messages":[{"role":"user","content":[` + part + `]}],"max_tokens":1,"stream":false` + options + `}`
	}
	long, short := `{"type":"image_url","image_url":{"url":"https://a/b.png"}}`, `{"image_url":"https://a/b.png"}`
	options := `,"mm_processor_kwargs":{"min_pixels":1, "max_pixels":2}`
	tests := []struct{ name, encoded, part, options, message string }{
		{"encoded", encode(long, ""), long, "", ""},
		{"encoded in the short form", encode(short, ""), long, "", ""},
		{"consumed in the short form", encode(long, ""), short, "", ""},
		{"escaped otherwise", encode(`{"image_url":"https:\/\/a/b.png"}`, ""), long, "", ""},
		{"same options, otherwise written", encode(long, options), long, `,"mm_processor_kwargs":{"max_pixels":2,"min_pixels":1}`, ""},
		{"null options are none", encode(long, ""), long, `,"mm_processor_kwargs":null`, ""},
		{"an embedding needs no encoder", encode(long, ""), `{"type":"image_embeds","image_embeds":"AA"}`, "", ""},
		{"same uuid", encode(`{"image_url":"https://a/b.png","uuid":"u"}`, ""), `{"image_url":"https://a/b.png","uuid":"u"}`, "", ""},
		{"other media", encode(`{"image_url":"https://a/c.png"}`, ""), long, "", "multimodal embedding missing: item 0 (image_url)"},
		{"other kind", encode(`{"video_url":"https://a/b.png"}`, ""), long, "", "multimodal embedding missing"},
		{"options on one side", encode(long, ""), long, options, "multimodal embedding missing"},
		{"options on the other side", encode(long, options), long, "", "multimodal embedding missing"},
		{"options of the other member", encode(long, `,"media_io_kwargs":{}`), long, `,"mm_processor_kwargs":{}`, "multimodal embedding missing"},
		{"uuid on one side", encode(`{"image_url":"https://a/b.png","uuid":"u"}`, ""), long, "", "multimodal embedding missing"},
		{"only one of two", encode(long, ""), long + `,{"image_url":"https://a/c.png"}`, "", "multimodal embedding missing: item 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			encoder, prefiller, decoder := start(t, c, Options{Role: Encode}), start(t, c, Options{Role: Prefill}), start(t, c, Options{Role: Decode})
			encodeOne(t, encoder, test.encoded)
			messages := `"messages":[{"role":"user","content":[` + test.part + `]}]` + test.options
			prefilled := post(t, prefiller, chat, "r", `{`+messages+`,"stream":false,"max_tokens":1,`+stub+`}`)
			decoded := post(t, decoder, chat, "r", `{`+messages+`}`)
			if test.message == "" {
				accepted(t, prefiller, prefilled)
				accepted(t, decoder, decoded)
				return
			}
			refused(t, prefiller, prefilled, http.StatusInternalServerError, test.message)
			refused(t, decoder, decoded, http.StatusInternalServerError, test.message)
		})
	}
}

func TestEmbeddingIsStoredOnlyAfterTheServiceTime(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Delay: patience}), start(t, c, Options{Role: Decode})
	postAsync(t, t.Context(), encoder, "r:0:abcdef", imageEncode)
	refused(t, decoder, post(t, decoder, chat, "r", imageChat), http.StatusInternalServerError, "multimodal embedding missing")
}

func TestTransferHandles(t *testing.T) {
	const otherEncode = `{"messages":[{"role":"user","content":[{"image_url":"https://a/c.png"}]}],"max_tokens":1,"stream":false}`
	// edit gets the encoder's ec_transfer_params and those of another item.
	tests := []struct {
		name    string
		edit    func(own, other string) string
		message string
	}{
		{"verbatim", func(own, _ string) string { return own }, ""},
		{"other shape and positions", func(own, _ string) string {
			return strings.NewReplacer(`"item_indices":[0]`, `"item_indices":[3]`, "[[1,36,36]]", "[1,36,36]").Replace(own)
		}, ""},
		{"null", func(_, _ string) string { return `null` }, "unknown or spent transfer handle: item 0"},
		{"empty", func(_, _ string) string { return `{}` }, "unknown or spent transfer handle: item 0"},
		{"not an object", func(_, _ string) string { return `[]` }, "ec_transfer_params: not a JSON object"},
		{"entry not an object", func(_, _ string) string { return `{"a":1}` }, "ec_transfer_params: a: not a JSON object"},
		{"unknown hash", func(_, _ string) string { return `{"ec_items":{}}` }, "ec_transfer_params: ec_items is no item"},
		{"another item's", func(_, other string) string { return other }, "is no item of this request"},
		{"another item's beside it", func(own, other string) string {
			return strings.TrimSuffix(own, "}") + "," + strings.TrimPrefix(other, "{")
		}, "is no item of this request"},
		{"unknown handle", func(own, _ string) string { return strings.Replace(own, `"handle":"`, `"handle":"0`, 1) }, "unknown or spent transfer handle"},
		{"altered", func(own, _ string) string { return strings.Replace(own, "127.0.0.1", "127.0.0.2", 1) }, "is not as issued"},
		{"curtailed", func(own, _ string) string { return strings.Replace(own, `"peer_host":"127.0.0.1",`, "", 1) }, "is not as issued"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			encoder, decoder := start(t, c, Options{Role: Encode, Handles: true}), start(t, c, Options{Role: Decode})
			own := member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params")
			other := member(t, encodeOne(t, encoder, otherEncode), "ec_transfer_params")
			a := post(t, decoder, chat, "r", with(imageChat, "ec_transfer_params", test.edit(own, other)))
			if test.message == "" {
				accepted(t, decoder, a)
				return
			}
			refused(t, decoder, a, http.StatusInternalServerError, test.message)
		})
	}
}

func TestTransferHandleServesOnce(t *testing.T) {
	c := NewCluster()
	encoder, prefiller := start(t, c, Options{Role: Encode, Handles: true}), start(t, c, Options{Role: Prefill})
	first := with(imagePrefill, "ec_transfer_params", member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params"))
	second := with(imagePrefill, "ec_transfer_params", member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params"))
	require.NotEqual(t, first, second)

	accepted(t, prefiller, post(t, prefiller, chat, "r", first))
	refused(t, prefiller, post(t, prefiller, chat, "r", first), http.StatusInternalServerError, "unknown or spent transfer handle")
	prefiller.Reset()
	accepted(t, prefiller, post(t, prefiller, chat, "r", second))
	refused(t, prefiller, post(t, prefiller, chat, "r", imagePrefill), http.StatusInternalServerError, "unknown or spent transfer handle")
}

// A failed request has spent its handles too: the transfer had begun.
func TestFailedConsumerSpendsHandles(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Handles: true}), start(t, c, Options{Role: Decode})
	ec := member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params")
	two := `{"messages":[{"role":"user","content":[{"image_url":"https://a/b.png"},{"image_url":"https://a/c.png"}]}]}`

	refused(t, decoder, post(t, decoder, chat, "r", with(two, "ec_transfer_params", ec)), http.StatusInternalServerError, "embedding missing: item 1")
	refused(t, decoder, post(t, decoder, chat, "r", with(imageChat, "ec_transfer_params", ec)), http.StatusInternalServerError, "unknown or spent")
}

// An item that occurs twice in a request is one embedding.
func TestOneHandleServesEqualItems(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Handles: true}), start(t, c, Options{Role: Decode})
	ec := member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params")
	twice := `{"messages":[{"role":"user","content":[{"image_url":"https://a/b.png"},{"image_url":"https://a/b.png"}]}]}`
	accepted(t, decoder, post(t, decoder, chat, "r", with(twice, "ec_transfer_params", ec)))
}

func TestPrefillContract(t *testing.T) {
	bad, failed := http.StatusBadRequest, http.StatusInternalServerError
	body := func(rest string) string { return `{` + textMessages + `,` + rest + `}` }
	toolPrefill := with(textPrefill, "tools", oneTool)
	tests := []struct {
		name, path, body string
		code             int
		message          string
	}{
		{"right", chat, textPrefill, 0, ""},
		{"completion", completions, `{"prompt":"a","stream":false,"max_tokens":1,` + stub + `}`, 0, ""},
		{"max_completion_tokens 1", chat, with(textPrefill, "max_completion_tokens", "1"), 0, ""},
		{"min_tokens 1", chat, with(textPrefill, "min_tokens", "1"), 0, ""},
		{"tool_choice none", chat, with(textPrefill, "tool_choice", `"none"`), 0, ""},
		{"tool_choice auto", chat, with(toolPrefill, "tool_choice", `"auto"`), 0, ""},
		{"no kv", chat, body(`"stream":false,"max_tokens":1`), bad, "kv_transfer_params of a prefill request must be"},
		{"more in kv", chat, strings.Replace(textPrefill, `"remote_port":null`, `"remote_port":null,"x":1`, 1), bad, "kv_transfer_params of a prefill request must be"},
		{"less in kv", chat, strings.Replace(textPrefill, `,"remote_port":null`, ``, 1), bad, "kv_transfer_params of a prefill request must be"},
		{"stale kv", chat, strings.Replace(textPrefill, `"remote_port":null`, `"remote_port":1`, 1), bad, "kv_transfer_params of a prefill request must be"},
		{"stream", chat, body(`"stream":true,"max_tokens":1,` + stub), bad, "stream of a prefill request must be false"},
		{"no stream", chat, body(`"max_tokens":1,` + stub), bad, "stream of a prefill request must be false"},
		{"stream_options", chat, with(textPrefill, "stream_options", `{"include_usage":true}`), bad, "Stream options"},
		{"max_tokens", chat, body(`"stream":false,"max_tokens":16,` + stub), bad, "max_tokens of a prefill request must be 1, got 16"},
		{"no max_tokens", chat, body(`"stream":false,` + stub), bad, "max_tokens of a prefill request must be 1"},
		{"max_completion_tokens", chat, with(textPrefill, "max_completion_tokens", "16"), bad, "max_completion_tokens of a prefill request must be 1, got 16"},
		{"min_tokens", chat, with(textPrefill, "min_tokens", "5"), bad, "min_tokens must be less than or equal to max_tokens=1, got 5."},
		{"min_tokens in a string", chat, with(textPrefill, "min_tokens", `" 5 "`), bad, "min_tokens"},
		{"min_tokens null", chat, with(textPrefill, "min_tokens", "null"), bad, "min_tokens"},
		{"tool_choice required", chat, with(toolPrefill, "tool_choice", `"required"`), failed, "guided output cannot finish in one token"},
		{"tool_choice named", chat, with(toolPrefill, "tool_choice", `{"type":"function","function":{"name":"f"}}`), failed, "guided output cannot finish in one token"},
		{"unknown transfers", chat, with(textPrefill, "ec_transfer_params", `{"a":{}}`), failed, "ec_transfer_params: a is no item"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, Options{Role: Prefill})
			a := post(t, e, test.path, "r", test.body)
			if test.message == "" {
				accepted(t, e, a)
				return
			}
			refused(t, e, a, test.code, test.message)
		})
	}
}

func TestDecodeContract(t *testing.T) {
	bad, failed := http.StatusBadRequest, http.StatusInternalServerError
	whole := func(kv string) string { return with(textChat, "kv_transfer_params", kv) }
	tests := []struct {
		name      string
		requireKV bool
		body      func(kv string) string
		code      int
		message   string
	}{
		{"right", true, whole, 0, ""},
		{"otherwise written", true, func(kv string) string { return `{ "kv_transfer_params": ` + kv + ` , ` + textMessages + `}` }, 0, ""},
		{"other sampling", true, func(kv string) string { return with(whole(kv), "temperature", `0.5`) }, 0, ""},
		{"no kv, none needed", false, func(string) string { return textChat }, 0, ""},
		{"empty kv, none needed", false, func(string) string { return whole(`{}`) }, 0, ""},
		{"no kv", true, func(string) string { return textChat }, failed, "kv_transfer_params missing"},
		{"null kv", true, func(string) string { return whole(`null`) }, failed, "kv_transfer_params missing"},
		{"empty kv", true, func(string) string { return whole(`{ }`) }, failed, "kv_transfer_params missing"},
		{"the prefill's stub", false, func(string) string { return textPrefill }, bad, "do_remote_decode is true"},
		{"not an object", false, func(string) string { return whole(`7`) }, failed, "unknown or already freed kv blocks"},
		{"unknown blocks", false, func(string) string { return whole(`{"remote_block_ids":[99]}`) }, failed, "unknown or already freed kv blocks: 99"},
		{"altered", false, func(kv string) string {
			return whole(strings.Replace(kv, `"remote_host":"127`, `"remote_host":"128`, 1))
		}, failed, "not as issued"},
		{"transfers beside kv", false, func(kv string) string { return with(whole(kv), "ec_transfer_params", `{}`) }, bad, "ec_transfer_params beside kv_transfer_params"},
		{"other messages", false, func(kv string) string { return strings.Replace(whole(kv), "hello", "bye", 1) }, failed, "kv blocks belong to another request"},
		{"other options", false, func(kv string) string { return with(whole(kv), "mm_processor_kwargs", `{"a":1}`) }, failed, "kv blocks belong to another request"},
		{"other tools", false, func(kv string) string { return with(whole(kv), "tools", oneTool) }, failed, "kv blocks belong to another request"},
		{"unknown transfers", false, func(string) string { return with(textChat, "ec_transfer_params", `{"a":{}}`) }, failed, "ec_transfer_params: a is no item"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			prefiller, decoder := start(t, c, Options{Role: Prefill}), start(t, c, Options{Role: Decode, RequireKV: test.requireKV})
			kv := member(t, post(t, prefiller, chat, "r", textPrefill), "kv_transfer_params")
			a := post(t, decoder, chat, "r", test.body(kv))
			if test.message == "" {
				accepted(t, decoder, a)
				assert.Equal(t, answerTo(t, textChat), textOf(t, a, false))
				return
			}
			refused(t, decoder, a, test.code, test.message)
		})
	}
}

func TestKVServesOnce(t *testing.T) {
	c := NewCluster()
	prefiller, decoder := start(t, c, Options{Role: Prefill}), start(t, c, Options{Role: Decode})
	body := with(textChat, "kv_transfer_params", member(t, post(t, prefiller, chat, "r", textPrefill), "kv_transfer_params"))

	accepted(t, decoder, post(t, decoder, chat, "r", body))
	refused(t, decoder, post(t, decoder, chat, "r", body), http.StatusInternalServerError, "unknown or already freed kv blocks")
}

// KV that the wrong request has read is no longer there for the right one.
func TestWrongRequestSpendsKV(t *testing.T) {
	c := NewCluster()
	prefiller, decoder := start(t, c, Options{Role: Prefill}), start(t, c, Options{Role: Decode})
	kv := member(t, post(t, prefiller, chat, "r", textPrefill), "kv_transfer_params")

	wrong := with(imageChat, "kv_transfer_params", kv)
	refused(t, decoder, post(t, decoder, chat, "r", wrong), http.StatusInternalServerError, "kv blocks belong to another request")
	right := with(textChat, "kv_transfer_params", kv)
	refused(t, decoder, post(t, decoder, chat, "r", right), http.StatusInternalServerError, "unknown or already freed kv blocks")
}

func TestPrefillIssuesFreshBlocks(t *testing.T) {
	e := startAlone(t, Options{Role: Prefill})
	first := member(t, post(t, e, chat, "r", textPrefill), "kv_transfer_params")
	second := member(t, post(t, e, chat, "s", textPrefill), "kv_transfer_params")
	a, err := parseObject([]byte(first))
	require.NoError(t, err)
	b, err := parseObject([]byte(second))
	require.NoError(t, err)
	assert.NotEqual(t, string(a["remote_block_ids"]), string(b["remote_block_ids"]))
	assert.Equal(t, a["remote_engine_id"], b["remote_engine_id"])
	assert.Equal(t, `"chatcmpl-r"`, string(a["remote_request_id"]))
	assert.Equal(t, "true", string(a["do_remote_prefill"]))
	assert.Equal(t, "false", string(a["do_remote_decode"]))
}
