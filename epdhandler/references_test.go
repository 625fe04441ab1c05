package epdhandler

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/body"
)

// referring is an exchange whose media items have the uuids u0, u1, …
func referring(t *testing.T, in string) *exchange {
	t.Helper()
	return referringFor(t, in, false)
}

func referringFor(t *testing.T, in string, trusted bool) *exchange {
	t.Helper()
	b, err := body.ParseChat([]byte(in), 10, trusted)
	require.NoError(t, err)
	x := &exchange{h: &Handler{References: true}, body: b}
	for i := range b.Items {
		x.uuids = append(x.uuids, fmt.Sprint("u", i))
		x.original = append(x.original, i)
	}
	return x
}

func TestFlatten(t *testing.T) {
	for in, want := range map[string]string{
		`{"image_grid_thw":[[1,44,80]]}`:          `{"image_grid_thw":[1,44,80]}`,
		`{"a":[1296],"b":[[1],[2,3]],"c":7.50e1}`: `{"a":[1296],"b":[1,2,3],"c":7.50e1}`,
		`{"a":[]}`:                             `{"a":[]}`,
		`{"n":123456789012345678901234567890}`: `{"n":123456789012345678901234567890}`,
		`{}`:                                   "",
		`null`:                                 "",
		``:                                     "",
		`[1]`:                                  "",
		`{"a":"x"}`:                            "",
		`{"a":null}`:                           "",
		`{"a":[true]}`:                         "",
		`{"a":[[[1]]]}`:                        "",
		`{"a":[1],"b":{"c":1}}`:                "",
		`{"image_grid_thw":[[1,44,80]],"x":["y"]}`: "",
	} {
		assert.Equal(t, want, string(flatten([]byte(in))), in)
	}
}

// An encoder must say which entry is for which item.
func TestShapes(t *testing.T) {
	const a, b = `{"metadata":{"s":[1]}%s}`, `{"metadata":{"s":[2]}%s}`
	at := func(entry, indices string) string { return fmt.Sprintf(entry, `,"item_indices":`+indices) }
	bare := func(entry string) string { return fmt.Sprintf(entry, "") }
	for name, tc := range map[string]struct {
		batch   batch
		entries string
		want    []string // nil: an error
	}{
		"positions":           {batch{0, 1}, `{"x":` + at(a, "[1]") + `,"y":` + at(b, "[0]") + `}`, []string{`{"s":[2]}`, `{"s":[1]}`}},
		"one for both":        {batch{0, 1}, `{"x":` + at(a, "[0,1]") + `}`, []string{`{"s":[1]}`, `{"s":[1]}`}},
		"uuids":               {batch{0, 1}, `{"u1":` + bare(a) + `,"u0":` + bare(b) + `}`, []string{`{"s":[2]}`, `{"s":[1]}`}},
		"the only one":        {batch{1}, `{"x":` + bare(a) + `}`, []string{`{"s":[1]}`}},
		"nothing of one":      {batch{0, 1}, `{"x":` + at(a, "[1]") + `}`, []string{"", `{"s":[1]}`}},
		"nothing":             {batch{0}, `{}`, []string{""}},
		"no shape":            {batch{0}, `{"x":{"metadata":{}}}`, []string{""}},
		"of another":          {batch{0}, `{"x":` + at(a, "[1]") + `}`, nil},
		"negative":            {batch{0}, `{"x":` + at(a, "[-1]") + `}`, nil},
		"given twice":         {batch{0, 1}, `{"x":` + at(a, "[0]") + `,"y":` + at(b, "[0]") + `}`, nil},
		"twice in one":        {batch{0, 1}, `{"x":` + at(a, "[0,0]") + `}`, nil},
		"ambiguous":           {batch{0, 1}, `{"x":` + bare(a) + `,"y":` + bare(b) + `}`, nil},
		"one of two":          {batch{0, 1}, `{"x":` + bare(a) + `}`, nil},
		"two for one":         {batch{0}, `{"x":` + bare(a) + `,"y":` + bare(b) + `}`, nil},
		"no list":             {batch{0}, `{"x":` + at(a, `"0"`) + `}`, nil},
		"a fraction":          {batch{0}, `{"x":` + at(a, `[0.5]`) + `}`, nil},
		"an entry as a list":  {batch{0}, `{"x":[]}`, nil},
		"null is no position": {batch{0}, `{"x":` + at(a, "null") + `}`, []string{`{"s":[1]}`}},
	} {
		t.Run(name, func(t *testing.T) {
			x := &exchange{uuids: []string{"u0", "u1"}}
			entries, err := body.Entries([]byte(tc.entries))
			require.NoError(t, err)
			items, err := x.told(tc.batch, entries)
			if tc.want == nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			var got []string
			for _, item := range items {
				got = append(got, string(item.shape))
			}
			assert.Equal(t, tc.want, got)
		})
	}
}

// What is referred to, what stays, and how it is named.
func TestRefer(t *testing.T) {
	const image, audio, video = `{"image_url":"i","detail":"low"}`, `{"type":"input_audio","input_audio":{"data":"d","format":"wav"}}`, `{"type":"video_url","video_url":{"url":"v"}}`
	named := func(part string, i int) string {
		return fmt.Sprintf(`%s,"uuid":"u%d"}`, strings.TrimSuffix(part, "}"), i)
	}
	reference := func(kind string, i int) string {
		return fmt.Sprintf(`{"type":"%s","%s":{"s":[1]},"uuid":"u%d"}`, kind, kind, i)
	}
	for name, tc := range map[string]struct {
		parts   []string
		told    []int
		options string
		want    []string
	}{
		"all":                         {[]string{image, video}, []int{0, 1}, "", []string{reference("image_embeds", 0), reference("video_embeds", 1)}},
		"one of two images":           {[]string{image, image}, []int{1}, "", []string{named(image, 0), reference("image_embeds", 1)}},
		"none":                        {[]string{image}, nil, "", []string{named(image, 0)}},
		"all, with audio":             {[]string{audio, image}, []int{0, 1}, "", []string{reference("audio_embeds", 0), reference("image_embeds", 1)}},
		"not all, with audio":         {[]string{audio, image}, []int{0}, "", []string{named(audio, 0), named(image, 1)}},
		"not the audio":               {[]string{audio, image}, []int{1}, "", []string{named(audio, 0), named(image, 1)}},
		"audio in video":              {[]string{video}, []int{0}, `,"mm_processor_kwargs":{"use_audio_in_video":true}`, []string{named(video, 0)}},
		"no audio in video":           {[]string{video}, []int{0}, `,"mm_processor_kwargs":{"use_audio_in_video":false}`, []string{reference("video_embeds", 0)}},
		"a client's uuid is left out": {[]string{`{"uuid":"mine","image_url":"i"}`, `{"image_url":"i","uuid":"mine"}`}, nil, "", []string{named(`{"image_url":"i"}`, 0), named(`{"image_url":"i"}`, 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			request := func(parts []string) string {
				return `{"messages":[{"role":"user","content":["before",` + strings.Join(parts, ` , `) + `]}]` + tc.options + `}`
			}
			x := referring(t, request(tc.parts))
			known := make([]encoded, len(tc.parts))
			for _, i := range tc.told {
				known[i].shape = []byte(`{"s":[1]}`)
			}
			assert.Equal(t, request(tc.want), string(x.refer(known).Rewrite().Bytes()))
		})
	}
}

// A trusted client's uuid that is none is replaced, not added to.
func TestReferToBadUUIDs(t *testing.T) {
	for _, uuid := range []string{`null`, `7`, `""`, `"u0"`, `{"a":1}`} {
		request := func(uuid string) string {
			return `{"messages":[{"content":[{"uuid": ` + uuid + ` ,"image_url":"i"}]}]}`
		}
		x := referringFor(t, request(uuid), true)
		assert.Equal(t, request(`"u0"`), string(x.refer(make([]encoded, 1)).Rewrite().Bytes()), uuid)
		x.named = x.body.Patched(x.names())
		assert.Contains(t, string(encodeBody(x.body, x.content(nil, batch{0}), nil).Bytes()), `[{"uuid": "u0" ,"image_url":"i"}]`, uuid)
	}
}

// FuzzReferences holds bodies with references against the same made with maps.
func FuzzReferences(f *testing.F) {
	f.Add([]byte(`{"messages":[{"content":[{"image_url":"a","uuid":"x"},{"type":"text"},{"uuid":"y","video_url":{"url":"b"}}]}]}`), uint8(0b01), false)
	f.Add([]byte(`{"stream":true,"messages":[{"content":[{"type":"audio_url","audio_url":"a"}]},{"content":[{"uuid":null,"image_url":"x"}]}],"kv_transfer_params":{}}`), uint8(0b11), true)
	f.Fuzz(func(t *testing.T, in []byte, told uint8, trusted bool) {
		if b, err := body.ParseChat(in, 8, trusted); err != nil || len(b.Items) > 8 {
			return
		}
		x := referringFor(t, string(in), trusted)
		want := decoded(t, x.body.Rewrite().Bytes())
		known := make([]encoded, len(x.body.Items))
		audio, all := false, true
		for i, item := range x.body.Items {
			if told&(1<<i) != 0 {
				known[i].shape = []byte(`{"s":[1]}`)
			}
			audio = audio || item.Kind == "audio_url" || item.Kind == "input_audio"
			all = all && known[i].shape != nil
		}
		raw := x.usesAudioInVideo() || audio && !all
		for i, item := range x.body.Items {
			content := want["messages"].([]any)[item.Message].(map[string]any)["content"].([]any)
			part := maps.Clone(content[item.Part].(map[string]any))
			if known[i].shape != nil && !raw {
				kind := embedKinds[item.Kind]
				part = map[string]any{"type": kind, kind: map[string]any{"s": []any{1.0}}}
			}
			part["uuid"] = x.uuids[i]
			if item.UUID != "" { // the trusted client's own
				part["uuid"] = content[item.Part].(map[string]any)["uuid"]
			}
			content[item.Part] = part
		}
		got := decoded(t, x.refer(known).Rewrite().Bytes())
		require.Equal(t, want, got)
		again, err := json.Marshal(got)
		require.NoError(t, err)
		_, err = body.ParseChat(again, 8, true)
		require.NoError(t, err)
	})
}
