package fakevllm

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chatOf is a chat of these parts.
func chatOf(parts ...string) string {
	return `{"messages":[{"role":"user","content":["what is it?",` + strings.Join(parts, ",") + `]}]}`
}

// prefillOf is the prefill request of a chat.
func prefillOf(body string) string {
	return strings.TrimSuffix(body, "}") + `,"stream":false,"max_tokens":1,` + stub + `}`
}

func TestReferences(t *testing.T) {
	bad, failed := http.StatusBadRequest, http.StatusInternalServerError
	old := strings.NewReplacer // how a part differs from another
	tests := []struct {
		name      string
		encoded   []string // each by itself
		raw, sent []string // the client's parts, and what the engines get
		code      int
		message   string
	}{
		{"image", []string{partA}, []string{partPlain}, []string{refA}, 0, ""},
		{"video", []string{partVideo}, []string{partVideo}, []string{refVideo}, 0, ""},
		{"audio", []string{partAudio}, []string{partAudio}, []string{refAudio}, 0, ""},
		{"inline audio", []string{partInput}, []string{partInput}, []string{refInput}, 0, ""},
		{"all", []string{partA, partVideo, partAudio, partInput}, []string{partAudio, partA, partInput, partVideo, partA}, []string{refAudio, refA, refInput, refVideo, refA}, 0, ""},
		{"short form encoded", []string{`{"image_url":"https://a/a.png","uuid":"ua"}`}, []string{partPlain}, []string{refA}, 0, ""},
		{"an image stays", []string{partA, partB}, []string{partA, partB}, []string{refA, partB}, bad, "Mixing raw image and embedding inputs"},
		{"all stay", []string{partA, partAudio}, []string{partA, partAudio}, []string{partA, partAudio}, 0, ""},
		{"beside a ready embedding", []string{partAudio}, []string{partAudio, `{"image_embeds":"AA"}`}, []string{refAudio, `{"image_embeds":"AA"}`}, 0, ""},
		{"a ready embedding with a uuid", nil, []string{`{"image_embeds":"AA","uuid":"x"}`}, []string{`{"image_embeds":"AA","uuid":"x"}`}, 0, ""},
		{"ready tensors", nil, []string{`{"image_embeds":{"a":"AA","b":"AA"}}`}, []string{`{"image_embeds":{"a":"AA","b":"AA"}}`}, 0, ""},
		{"unknown uuid", []string{partB}, []string{partA}, []string{refA}, failed, `no embedding for uuid "ua"`},
		{"encoded without uuid", []string{partPlain}, []string{partA}, []string{refA}, failed, `no embedding for uuid "ua"`},
		{"other kind", []string{partA}, []string{partA}, []string{old("ub", "ua", "image", "audio").Replace(refB)}, failed, `no embedding for uuid "ua": no audio`},
		{"other shape", []string{partA}, []string{partA}, []string{old("[1,36,36]", "[1,36,37]").Replace(refA)}, failed, `the shape is {"image_grid_thw":[1,36,36]}, not {"image_grid_thw":[1,36,37]}`},
		{"other name", []string{partA}, []string{partA}, []string{old("grid_thw", "grid").Replace(refA)}, failed, "the shape is"},
		{"flattened too far", []string{partAudio}, []string{partAudio}, []string{old("[1296]", "1296").Replace(refAudio)}, failed, "the shape is"},
		{"not flattened", []string{partA}, []string{partA}, []string{old("[1,36,36]", "[[1,36,36]]").Replace(refA)}, bad, "want numbers and lists of numbers"},
		{"text in the shape", []string{partA}, []string{partA}, []string{old("[1,36,36]", `"1"`).Replace(refA)}, bad, "want numbers and lists of numbers"},
		{"empty shape", []string{partA}, []string{partA}, []string{`{"image_embeds":{},"uuid":"ua"}`}, bad, "want numbers and lists of numbers"},
		{"no uuid", []string{partA}, []string{partA}, []string{old(`,"uuid":"ua"`, "").Replace(refA)}, bad, "item 0 (image_embeds): uuid must be a non-empty string"},
		{"uuid no string", []string{partA}, []string{partA}, []string{old(`"ua"`, "1").Replace(refA)}, bad, "uuid must be a non-empty string"},
		{"media's uuid no string", []string{partA}, []string{partA}, []string{old(`"ua"`, "1").Replace(partA)}, bad, "uuid must be a non-empty string"},
		{"image beside referenced audio", []string{partA, partAudio}, []string{partA, partAudio}, []string{partA, refAudio}, bad, "rewritten wholly or not at all"},
		{"audio beside referenced audio", []string{partInput, partAudio}, []string{partInput, partAudio}, []string{partInput, refAudio}, bad, "Mixing raw audio and embedding inputs"},
		{"audio beside a referenced image", []string{partA, partAudio}, []string{partA, partAudio}, []string{refA, partAudio}, bad, "rewritten wholly or not at all"},
		{"video beside a referenced image", []string{partA, partVideo}, []string{partA, partVideo}, []string{refA, partVideo}, bad, "rewritten wholly or not at all"},
		{"a video without its timing", []string{partVideo}, []string{partVideo}, []string{old(`,"second_per_grid_ts":[1]`, "").Replace(refVideo)}, bad, "without its timing changes the answer"},
		{"uuid left out", []string{partA}, []string{partPlain}, []string{partPlain}, failed, "multimodal embedding missing: item 0 (image_url)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			encoder := start(t, c, Options{Role: Encode, Modern: true, Timing: true})
			prefiller, decoder := start(t, c, Options{Role: Prefill, Modern: true}), start(t, c, Options{Role: Decode, Modern: true})
			for _, part := range test.encoded {
				encodeOne(t, encoder, encodeParts(part))
			}
			sent := chatOf(test.sent...)
			prefilled, decoded := post(t, prefiller, chat, "r", prefillOf(sent)), post(t, decoder, chat, "r", sent)
			if test.message != "" {
				refused(t, prefiller, prefilled, test.code, test.message)
				refused(t, decoder, decoded, test.code, test.message)
				return
			}
			accepted(t, prefiller, prefilled)
			accepted(t, decoder, decoded)
			assert.Equal(t, answerTo(t, chatOf(test.raw...)), textOf(t, decoded, false))
		})
	}
}

func TestReferenceHasTheOptions(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Modern: true}), start(t, c, Options{Role: Decode, Modern: true})
	encodeOne(t, encoder, with(encodeParts(partA), "mm_processor_kwargs", `{"a":1,"b":2}`))
	encodeOne(t, encoder, with(encodeParts(partA), "media_io_kwargs", `{"a":1}`))

	for _, options := range []string{`"mm_processor_kwargs":{"b":2,"a":1}`, `"media_io_kwargs":{"a":1}`} {
		body := `{` + options + `,` + chatOf(refA)[1:]
		a := post(t, decoder, chat, "r", body)
		accepted(t, decoder, a)
		assert.Equal(t, answerTo(t, strings.Replace(body, refA, partA, 1)), textOf(t, a, false))
	}
	refused(t, decoder, post(t, decoder, chat, "r", chatOf(refA)), http.StatusInternalServerError, "no embedding for uuid")
	refused(t, decoder, post(t, decoder, chat, "r", with(chatOf(refA), "mm_processor_kwargs", `{"a":1}`)), http.StatusInternalServerError, "no embedding for uuid")
}

func TestNoReferenceWithoutMetadata(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Modern: true, NoMetadata: true}), start(t, c, Options{Role: Decode, Modern: true})
	encodeOne(t, encoder, encodeParts(partA))
	refused(t, decoder, post(t, decoder, chat, "r", chatOf(refA)), http.StatusInternalServerError, "the shape is unknown")
	decoder.Reset()
	accepted(t, decoder, post(t, decoder, chat, "r", chatOf(partA)))
}

// An engine that is not modern treats a reference as an embedding.
func TestOldEngineKnowsNoReferences(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	a := post(t, e, chat, "r", chatOf(refA))
	accepted(t, e, a)
	assert.Equal(t, answerTo(t, chatOf(refA)), textOf(t, a, false))
}

func TestKVOfReferences(t *testing.T) {
	tests := []struct {
		name               string
		prefilled, decoded string
		message            string
	}{
		{"references on both sides", chatOf(refA, refB), chatOf(refA, refB), ""},
		{"media in decode", chatOf(refA, refB), chatOf(partA, partB), ""},
		{"media without uuid in decode", chatOf(refA), chatOf(partPlain), ""},
		{"media in prefill", chatOf(partA), chatOf(refA), ""},
		{"other order", chatOf(refA, refB), chatOf(refB, refA), "kv blocks belong to another request"},
		{"one less", chatOf(refA, refB), chatOf(refA), "kv blocks belong to another request"},
		{"other media", chatOf(refA), chatOf(partB), "kv blocks belong to another request"},
		{"other text", chatOf(refA), strings.Replace(chatOf(refA), "what", "who", 1), "kv blocks belong to another request"},
		{"text elsewhere", chatOf(refA), `{"messages":[{"role":"user","content":[` + refA + `,"what is it?"]}]}`, "kv blocks belong to another request"},
		{"more in the message", chatOf(refA), strings.Replace(chatOf(refA), `"role"`, `"name":"n","role"`, 1), "kv blocks belong to another request"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			encoder := start(t, c, Options{Role: Encode, Modern: true, Timing: true})
			prefiller, decoder := start(t, c, Options{Role: Prefill, Modern: true}), start(t, c, Options{Role: Decode, Modern: true, RequireKV: true})
			encodeOne(t, encoder, encodeParts(partA, partB))
			kv := member(t, post(t, prefiller, chat, "r", prefillOf(test.prefilled)), "kv_transfer_params")
			a := post(t, decoder, chat, "r", with(test.decoded, "kv_transfer_params", kv))
			if test.message == "" {
				accepted(t, decoder, a)
				return
			}
			refused(t, decoder, a, http.StatusInternalServerError, test.message)
		})
	}
}

func TestReferencesWithHandles(t *testing.T) {
	failed := http.StatusInternalServerError
	for _, noIndices := range []bool{false, true} {
		c := NewCluster()
		encoder := start(t, c, Options{Role: Encode, Modern: true, Handles: true, NoItemIndices: noIndices})
		decoder := start(t, c, Options{Role: Decode, Modern: true})
		encoded := func() string { return member(t, encodeOne(t, encoder, encodeParts(partA)), "ec_transfer_params") }
		right := with(chatOf(refA, refA), "ec_transfer_params", encoded())
		accepted(t, decoder, post(t, decoder, chat, "r", right))
		refused(t, decoder, post(t, decoder, chat, "r", right), failed, "unknown or spent transfer handle")
		refused(t, decoder, post(t, decoder, chat, "r", chatOf(refA)), failed, "unknown or spent transfer handle")

		wrongKey := strings.NewReplacer(hashOf(t, partA), "ua", `"ua"`, `"`+hashOf(t, partA)+`"`).Replace(encoded())
		refused(t, decoder, post(t, decoder, chat, "r", with(chatOf(refA), "ec_transfer_params", wrongKey)), failed, "")
		decoder.SetFault(Fault{Kind: Status, Times: 1, Spend: true, Message: "embedding could not be delivered"})
		spent := with(chatOf(refA), "ec_transfer_params", encoded())
		require.Equal(t, failed, post(t, decoder, chat, "r", spent).status)
		refused(t, decoder, post(t, decoder, chat, "r", spent), failed, "unknown or spent transfer handle")
	}
}

// An entry that has only a shape may be passed on or not.
func TestEntriesWithoutHandles(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode, Modern: true}), start(t, c, Options{Role: Decode, Modern: true})
	ec := member(t, encodeOne(t, encoder, encodeParts(partA)), "ec_transfer_params")
	accepted(t, decoder, post(t, decoder, chat, "r", with(chatOf(refA), "ec_transfer_params", ec)))
	accepted(t, decoder, post(t, decoder, chat, "r", with(chatOf(partA), "ec_transfer_params", ec)))
	accepted(t, decoder, post(t, decoder, chat, "r", chatOf(refA)))

	for entries, message := range map[string]string{
		`{"ua":{}}`:                                    "ua is no item of this request",
		`{"` + hashOf(t, partA) + `":{"x":1}}`:         "unknown or spent transfer handle",
		`{"` + hashOf(t, partB) + `":{"metadata":{}}}`: "is no item of this request",
	} {
		refused(t, decoder, post(t, decoder, chat, "r", with(chatOf(refA), "ec_transfer_params", entries)), http.StatusInternalServerError, message)
	}
}

func TestKeepHandles(t *testing.T) {
	c := NewCluster()
	encoder, prefiller := start(t, c, Options{Role: Encode, Handles: true}), start(t, c, Options{Role: Prefill})
	decoder := start(t, c, Options{Role: Decode, KeepHandles: true})
	ec := member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params")
	kv := member(t, post(t, prefiller, chat, "r", with(imagePrefill, "ec_transfer_params", ec)), "kv_transfer_params")
	accepted(t, decoder, post(t, decoder, chat, "r", with(with(imageChat, "kv_transfer_params", kv), "ec_transfer_params", ec)))
}

// A request without media is served as usual.
func TestModernText(t *testing.T) {
	tests := []struct{ name, path, body string }{
		{"text", chat, textChat},
		{"parts", chat, `{"messages":[{"role":"system","content":"a"},{"role":"user","content":["b",{"type":"text","text":"c"}]}]}`},
		{"completion", completions, textPrompt},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := NewCluster()
			prefiller, decoder := start(t, c, Options{Role: Prefill, Modern: true}), start(t, c, Options{Role: Decode, Modern: true})
			kv := member(t, post(t, prefiller, test.path, "r", prefillOf(test.body)), "kv_transfer_params")
			a := post(t, decoder, test.path, "r", with(test.body, "kv_transfer_params", kv))
			accepted(t, decoder, a)
			assert.Equal(t, answerTo(t, test.body), textOf(t, a, false))
		})
	}
}

// A consumer with shared storage that lacks an embedding encodes media itself, and crashes on a
// reference: vLLM 0.32.0.
func TestMissingEmbedding(t *testing.T) {
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Modern: true})
	decoder := start(t, c, Options{Role: Decode, Modern: true, ECExample: true})
	encoder.SetFault(Fault{Kind: Forget, Times: 1})
	assert.Contains(t, encodeOne(t, encoder, encodeParts(partA)).body, "image_grid_thw")
	accepted(t, decoder, post(t, decoder, chat, "r", chatOf(partA)))
	_, err := try(newRequest(t, decoder, chat, "r", chatOf(refA)))
	require.Error(t, err, "it is dead")
	require.NoError(t, decoder.Restart())
	encodeOne(t, encoder, encodeParts(partA))
	accepted(t, decoder, post(t, decoder, chat, "r", chatOf(refA)))
}

// A video whose sound is used is two items, which vLLM 0.33 distinguishes and can refer to.
func TestSound(t *testing.T) {
	const option, value = "mm_processor_kwargs", `{"use_audio_in_video":true}`
	const ref = `{"type":"video_embeds","video_embeds":{"video_grid_thw":[8,36,36],"second_per_grid_ts":[1]},"audio_embeds":{"audio_feature_lengths":[1296]},"uuid":"uv"}`
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Modern: true, Modalities: true, Timing: true})
	prefiller := start(t, c, Options{Role: Prefill, Modern: true, Modalities: true})
	decoder := start(t, c, Options{Role: Decode, Modern: true, Modalities: true})
	answer := encodeOne(t, encoder, with(encodeParts(partVideo), option, value)).body
	assert.Regexp(t, `"item_indices":\[0\],"modality":"video"`, answer)
	assert.Regexp(t, `"item_indices":\[1\],"modality":"audio"`, answer)

	raw, sent := with(chatOf(partVideo), option, value), with(chatOf(ref), option, value)
	prefilled := post(t, prefiller, chat, "r", prefillOf(sent))
	accepted(t, prefiller, prefilled)
	decoded := post(t, decoder, chat, "r", with(raw, "kv_transfer_params", member(t, prefilled, "kv_transfer_params")))
	accepted(t, decoder, decoded)
	assert.Equal(t, answerTo(t, raw), textOf(t, decoded, false))
	assert.NotEqual(t, answerTo(t, chatOf(partVideo)), textOf(t, decoded, false))
}
