package fakevllm

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Content parts for modern engines. The values of the uuids do not matter, as long as
// they are the same in all requests.
const (
	partA     = `{"type":"image_url","image_url":{"url":"https://a/a.png"},"uuid":"ua"}`
	partB     = `{"type":"image_url","image_url":{"url":"https://a/b.png"},"uuid":"ub"}`
	partPlain = `{"type":"image_url","image_url":{"url":"https://a/a.png"}}`
	partVideo = `{"type":"video_url","video_url":{"url":"https://a/v.mp4"},"uuid":"uv"}`
	partAudio = `{"type":"audio_url","audio_url":{"url":"https://a/s.wav"},"uuid":"us"}`
	partInput = `{"type":"input_audio","input_audio":{"data":"AAAA","format":"wav"},"uuid":"ui"}`

	refA     = `{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,36,36]},"uuid":"ua"}`
	refB     = `{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,36,36]},"uuid":"ub"}`
	refVideo = `{"type":"video_embeds","video_embeds":{"video_grid_thw":[8,36,36],"second_per_grid_ts":[1]},"uuid":"uv"}`
	refAudio = `{"type":"audio_embeds","audio_embeds":{"audio_feature_lengths":[1296]},"uuid":"us"}`
	refInput = `{"type":"audio_embeds","audio_embeds":{"audio_feature_lengths":[1296]},"uuid":"ui"}`
)

// encodeParts is an encode request for these parts.
func encodeParts(parts ...string) string {
	return encodeBody(`[{"role":"user","content":[` + strings.Join(parts, ",") + `]}]`)
}

// hashOf is the engines' hash of a part.
func hashOf(t *testing.T, part string) string {
	t.Helper()
	o, err := parseObject([]byte(encodeParts(part)))
	require.NoError(t, err)
	p, err := readPrompt(o, false)
	require.NoError(t, err)
	return p.items[0].hash
}

func TestModernEncodeContract(t *testing.T) {
	tests := []struct {
		name    string
		most    int
		body    string
		message string
	}{
		{"one without uuid", 0, imageEncode, ""},
		{"several images", 0, encodeParts(partA, partB, partPlain, partA), ""},
		{"as many as allowed", 2, encodeParts(partA, partB), ""},
		{"a video", 1, encodeParts(partVideo), ""},
		{"audio", 1, encodeParts(partAudio), ""},
		{"inline audio", 1, encodeParts(partInput), ""},
		{"null uuid", 0, encodeParts(`{"image_url":"https://a/a.png","uuid":null}`), ""},
		{"null transfers", 0, with(encodeParts(partA), "ec_transfer_params", "null"), ""},
		{"too many", 2, encodeParts(partA, partB, partPlain), "at most 2 items here, got 3"},
		{"two videos", 0, encodeParts(partVideo, partVideo), "only images may share an encode request"},
		{"a video beside an image", 0, encodeParts(partA, partVideo), "only images may share an encode request"},
		{"audio beside an image", 0, encodeParts(partAudio, partA), "only images may share an encode request"},
		{"no part", 0, encodeParts(), "must be media to encode"},
		{"text beside it", 0, encodeParts(`{"type":"text","text":"a"}`, partA), "must be media to encode"},
		{"an embedding", 0, encodeParts(`{"type":"image_embeds","image_embeds":"AA"}`), "must be media to encode"},
		{"a reference", 0, encodeParts(partA, refB), "must be media to encode"},
		{"two messages", 0, encodeBody(`[{"role":"user","content":[` + partA + `]},{"role":"user","content":[]}]`), "exactly one message"},
		{"uuid not a string", 0, encodeParts(`{"image_url":"https://a/a.png","uuid":7}`), "uuid must be a non-empty string"},
		{"empty uuid", 0, encodeParts(partB, `{"image_url":"https://a/a.png","uuid":""}`), "item 1 (image_url): uuid must be a non-empty string"},
		{"kv", 0, with(encodeParts(partA), "kv_transfer_params", "{}"), `must not have "kv_transfer_params"`},
		{"max_tokens 2", 0, strings.Replace(encodeParts(partA), `"max_tokens":1`, `"max_tokens":2`, 1), "max_tokens of an encode request must be 1"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := startAlone(t, Options{Role: Encode, Modern: true, MaxBatch: test.most})
			a := post(t, e, chat, "r:0:abcdef", test.body)
			if test.message == "" {
				accepted(t, e, a)
				assert.Contains(t, a.body, `"ec_transfer_params":{"`)
				return
			}
			refused(t, e, a, http.StatusBadRequest, test.message)
		})
	}
}

func TestModernEncodeAnswer(t *testing.T) {
	const metadata = `"metadata":{"image_grid_thw":[[1,36,36]]}`
	a, b, plain := hashOf(t, partA), hashOf(t, partB), hashOf(t, partPlain)
	require.NotEqual(t, a, plain, "the uuid is part of the hash")
	tests := []struct {
		name    string
		options Options
		parts   []string
		want    string
	}{
		{"one", Options{}, []string{partA}, `{"` + a + `":{` + metadata + `,"item_indices":[0]}}`},
		{"equal ones", Options{}, []string{partA, partB, partA}, `{"` + a + `":{` + metadata + `,"item_indices":[0,2]},"` + b + `":{` + metadata + `,"item_indices":[1]}}`},
		{"equal media, other uuid", Options{}, []string{partPlain, partA}, `{"` + plain + `":{` + metadata + `,"item_indices":[0]},"` + a + `":{` + metadata + `,"item_indices":[1]}}`},
		{"audio", Options{}, []string{partInput}, `{"` + hashOf(t, partInput) + `":{"metadata":{"audio_feature_lengths":[1296]},"item_indices":[0]}}`},
		{"no indices", Options{NoItemIndices: true}, []string{partA, partPlain}, `{"ua":{` + metadata + `},"` + plain + `":{` + metadata + `}}`},
		{"no metadata", Options{NoMetadata: true}, []string{partA}, `{"` + a + `":{"metadata":{},"item_indices":[0]}}`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.options.Role, test.options.Modern = Encode, true
			e := startAlone(t, test.options)
			assert.JSONEq(t, test.want, member(t, encodeOne(t, e, encodeParts(test.parts...)), "ec_transfer_params"))
		})
	}
}

func TestModernHandles(t *testing.T) {
	e := startAlone(t, Options{Role: Encode, Modern: true, Handles: true})
	ec := member(t, encodeOne(t, e, encodeParts(partA, partB, partA)), "ec_transfer_params")
	all, err := parseObject([]byte(ec))
	require.NoError(t, err)
	require.Len(t, all, 2)
	assert.Regexp(t, `^\{"metadata":\{"image_grid_thw":\[\[1,36,36\]\]\},"item_indices":\[0,2\],"peer_host":"127.0.0.1","peer_port":\d+,"size_bytes":\d+,"handle":"[0-9a-f]{32}"\}$`, string(all[hashOf(t, partA)]))
}

func TestOneUUIDStandsForOneItem(t *testing.T) {
	e := startAlone(t, Options{Role: Encode, Modern: true})
	encodeOne(t, e, encodeParts(partA))
	encodeOne(t, e, encodeParts(partA))
	encodeOne(t, e, with(encodeParts(strings.Replace(partA, "a.png", "b.png", 1)), "mm_processor_kwargs", `{"a":1}`))
	encodeOne(t, e, encodeParts(strings.Replace(partVideo, "uv", "ua", 1)))
	other := encodeParts(partB, strings.Replace(partA, "a.png", "b.png", 1))
	refused(t, e, post(t, e, chat, "r:0:abcdef", other), http.StatusInternalServerError, `uuid "ua" stands for other media already`)
}
