package media

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// planned is a plan with references, whose media items have the uuids u0, u1, … and go to
// encoders one by one.
func planned(t *testing.T, in string, trusted bool) *Plan {
	t.Helper()
	_, set, err := ParseChat([]byte(in), 10, trusted)
	require.NoError(t, err)
	p := &Plan{set: set, references: true}
	for i := range set.items {
		p.uuids = append(p.uuids, fmt.Sprint("u", i))
		p.original = append(p.original, i)
		p.Batches = append(p.Batches, []int{i})
	}
	return p
}

// referringTo is what encoders' answers with these references make; empty ones are missing.
func (p *Plan) referringTo(references []string) Encoded {
	answers := make([]Answer, len(references))
	for i, reference := range references {
		answers[i].items = make([]embedding, 1)
		if reference != "" {
			answers[i].items[0].reference = []byte(reference)
		}
	}
	return p.Encoded(answers)
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
		assert.Equal(t, want, string(object(flatten([]byte(in)))), in)
	}
}

// An encoder must say which entry of a batch is for which item.
func TestTold(t *testing.T) {
	const a, b = `{"metadata":{"s":[1]}%s}`, `{"metadata":{"s":[2]}%s}`
	at := func(entry, indices string) string { return fmt.Sprintf(entry, `,"item_indices":`+indices) }
	bare := func(entry string) string { return fmt.Sprintf(entry, "") }
	const one, two = `"image_embeds":{"s":[1]}`, `"image_embeds":{"s":[2]}`
	for name, tc := range map[string]struct {
		batch   []int
		entries string
		want    []string // nil: an error
	}{
		"positions":           {[]int{0, 1}, `{"x":` + at(a, "[1]") + `,"y":` + at(b, "[0]") + `}`, []string{two, one}},
		"one for both":        {[]int{0, 1}, `{"x":` + at(a, "[0,1]") + `}`, []string{one, one}},
		"uuids":               {[]int{0, 1}, `{"u1":` + bare(a) + `,"u0":` + bare(b) + `}`, []string{two, one}},
		"the only one":        {[]int{1}, `{"x":` + bare(a) + `}`, []string{one}},
		"nothing of one":      {[]int{0, 1}, `{"x":` + at(a, "[1]") + `}`, []string{"", one}},
		"nothing":             {[]int{0}, `{}`, []string{""}},
		"no shape":            {[]int{0}, `{"x":{"metadata":{}}}`, []string{""}},
		"another modality":    {[]int{0}, `{"x":` + fmt.Sprintf(a, `,"modality":"video"`) + `}`, []string{""}},
		"the same modality":   {[]int{0}, `{"x":` + fmt.Sprintf(a, `,"modality":"image"`) + `}`, []string{one}},
		"two for one":         {[]int{0}, `{"x":` + bare(a) + `,"y":` + bare(b) + `}`, []string{""}},
		"two of one":          {[]int{0}, `{"x":` + at(a, "[0]") + `,"y":` + at(b, "[1]") + `}`, []string{""}},
		"null is no position": {[]int{0}, `{"x":` + at(a, "null") + `}`, []string{one}},
		"of another":          {[]int{0, 1}, `{"x":` + at(a, "[2]") + `}`, nil},
		"negative":            {[]int{0}, `{"x":` + at(a, "[-1]") + `}`, nil},
		"given twice":         {[]int{0, 1}, `{"x":` + at(a, "[0]") + `,"y":` + at(b, "[0]") + `}`, nil},
		"twice in one":        {[]int{0, 1}, `{"x":` + at(a, "[0,0]") + `}`, nil},
		"ambiguous":           {[]int{0, 1}, `{"x":` + bare(a) + `,"y":` + bare(b) + `}`, nil},
		"one of two":          {[]int{0, 1}, `{"x":` + bare(a) + `}`, nil},
		"no list":             {[]int{0}, `{"x":` + at(a, `"0"`) + `}`, nil},
		"a fraction":          {[]int{0}, `{"x":` + at(a, `[0.5]`) + `}`, nil},
		"an entry as a list":  {[]int{0}, `{"x":[]}`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := planned(t, `{"messages":[{"content":[{"image_url":"a"},{"image_url":"b"}]}]}`, false)
			entries, err := body.MembersOf([]byte(tc.entries))
			require.NoError(t, err)
			items, err := p.embeddings(tc.batch, entries, nil)
			if tc.want == nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			var got []string
			for _, item := range items {
				got = append(got, string(item.reference))
			}
			assert.Equal(t, tc.want, got)
		})
	}
}

// A video can be two things for an engine, itself and its sound, and a model may make more of it.
func TestToldOfVideos(t *testing.T) {
	const grid, timed, audio = `{"video_grid_thw":[[8,36,36]]}`, `{"video_grid_thw":[[8,36,36]],"second_per_grid_ts":[0.5]}`, `{"audio_feature_lengths":[1296]}`
	entry := func(name, modality string, at int, metadata string) string {
		if modality != "" {
			modality = `"modality":"` + modality + `",`
		}
		return fmt.Sprintf(`"%s":{%s"item_indices":[%d],"metadata":%s}`, name, modality, at, metadata)
	}
	for name, tc := range map[string]struct {
		sound     bool
		entries   string
		want      string
		transfers string // name:id
	}{
		"without its timing":         {false, entry("v", "", 0, grid), "", "v:0"},
		"with its timing":            {false, entry("v", "", 0, timed), `"video_embeds":{"video_grid_thw":[8,36,36],"second_per_grid_ts":[0.5]}`, "v:0"},
		"with the frames' times":     {false, entry("v", "video", 0, `{"timestamps":[0.25,1.5],"video_grid_thw":[2,36,36]}`), `"video_embeds":{"timestamps":[0.25,1.5],"video_grid_thw":[2,36,36]}`, "v:0"},
		"times only":                 {false, entry("v", "", 0, `{"timestamps":[0.25]}`), "", "v:0"},
		"another model's":            {false, entry("v", "", 0, `{"video_image_sizes":[1,2]}`), "", "v:0"},
		"several chunks":             {false, entry("a", "", 0, timed) + "," + entry("b", "", 1, timed), "", "a:0"},
		"sound, 0.33":                {true, entry("a", "audio", 1, audio) + "," + entry("v", "video", 0, timed), `"video_embeds":{"video_grid_thw":[8,36,36],"second_per_grid_ts":[0.5]},"audio_embeds":{"audio_feature_lengths":[1296]}`, "v:0 a:1"},
		"sound, without its timing":  {true, entry("a", "audio", 1, audio) + "," + entry("v", "video", 0, grid), "", "v:0 a:1"},
		"sound, before 0.33":         {true, entry("v", "", 0, timed) + "," + entry("a", "", 1, audio), "", "v:0 a:1"},
		"sound, the wrong way round": {true, entry("v", "video", 1, timed) + "," + entry("a", "audio", 0, audio), "", "a:0 v:1"},
		"sound, one entry":           {true, `"v":{"item_indices":[0,1],"metadata":` + timed + `}`, "", "v:0 v:1"},
		"sound that is missing":      {true, entry("v", "video", 0, timed), "", "v:0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := planned(t, fmt.Sprintf(`{"messages":[{"content":[{"video_url":"a"}]}],"mm_processor_kwargs":{"use_audio_in_video":%v}}`, tc.sound), false)
			ids, push := p.transfers([]int{0}, "tcp://x:1")
			assert.Equal(t, len(ids), strings.Count(string(push), "transfer_id"))
			assert.Len(t, ids, map[bool]int{false: 1, true: 2}[tc.sound])
			entries, err := body.MembersOf([]byte("{" + tc.entries + "}"))
			require.NoError(t, err)
			items, err := p.embeddings([]int{0}, entries, ids)
			require.NoError(t, err)
			assert.Equal(t, tc.want, string(items[0].reference))
			var got []string
			for _, transfer := range items[0].transfers {
				got = append(got, fmt.Sprintf("%s:%d", strings.Trim(string(transfer.Hash), `"`), slices.Index(ids, transfer.ID)))
			}
			assert.Equal(t, tc.transfers, strings.Join(got, " "))
		})
	}
}

// What is referred to, what stays, and how it is named.
func TestRefer(t *testing.T) {
	const image, audio, video = `{"image_url":"i","detail":"low"}`, `{"type":"input_audio","input_audio":{"data":"d","format":"wav"}}`, `{"type":"video_url","video_url":{"url":"v"}}`
	named := func(part string, i int) string {
		return fmt.Sprintf(`%s,"uuid":"u%d"}`, strings.TrimSuffix(part, "}"), i)
	}
	reference := func(kind, more string, i int) string {
		return fmt.Sprintf(`{"type":"%s","%s":{"s":[1]}%s,"uuid":"u%d"}`, kind, kind, more, i)
	}
	const own = `,"detail":"low"` // which the chat template may look at
	for name, tc := range map[string]struct {
		parts   []string
		told    []int
		options string
		want    []string
	}{
		"all":                 {[]string{image, video}, []int{0, 1}, "", []string{reference("image_embeds", own, 0), reference("video_embeds", "", 1)}},
		"one of two images":   {[]string{image, image}, []int{1}, "", []string{named(image, 0), named(image, 1)}}, // an engine does not take both
		"not the video":       {[]string{image, video}, []int{0}, "", []string{named(image, 0), named(video, 1)}}, // Omni's processor does not take both
		"none":                {[]string{image}, nil, "", []string{named(image, 0)}},
		"all, with audio":     {[]string{audio, image}, []int{0, 1}, "", []string{reference("audio_embeds", "", 0), reference("image_embeds", own, 1)}},
		"not all, with audio": {[]string{audio, image}, []int{0}, "", []string{named(audio, 0), named(image, 1)}},
		"not the audio":       {[]string{audio, image}, []int{1}, "", []string{named(audio, 0), named(image, 1)}},
		"not all, with sound": {[]string{video, image}, []int{1}, `,"mm_processor_kwargs":{"use_audio_in_video":true}`, []string{named(video, 0), named(image, 1)}},
		"all, with sound":     {[]string{video, image}, []int{0, 1}, `,"mm_processor_kwargs":{"use_audio_in_video":true}`, []string{reference("video_embeds", "", 0), reference("image_embeds", own, 1)}},
		"sound of no video":   {[]string{image, audio}, []int{0}, `,"mm_processor_kwargs":{"use_audio_in_video":true}`, []string{named(image, 0), named(audio, 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			request := func(parts []string) string {
				return `{"messages":[{"role":"user","content":["before",` + strings.Join(parts, ` , `) + `]}]` + tc.options + `}`
			}
			p := planned(t, request(tc.parts), false)
			references := make([]string, len(tc.parts))
			for _, i := range tc.told {
				references[i] = fmt.Sprintf(`"%s":{"s":[1]}`, embeds(p.set.items[i].Modality()))
			}
			encoded := p.referringTo(references)
			assert.Equal(t, request(tc.want), string(encoded.Body.Rewrite().Bytes()))
			assert.Equal(t, len(tc.told) == len(tc.parts), encoded.Refers)
			media := encoded.WithoutReferences()
			assert.Equal(t, string(p.patched(nil).Rewrite().Bytes()), string(media.Body.Rewrite().Bytes()), "an engine may have died of them")
			assert.False(t, media.Refers)
		})
	}
}

// A trusted client's uuid that is none is replaced, not added to.
func TestReferToBadUUIDs(t *testing.T) {
	for _, uuid := range []string{`null`, `7`, `""`, `{"a":1}`} {
		request := func(uuid string) string {
			return `{"messages":[{"content":[{"uuid": ` + uuid + ` ,"image_url":"i"}]}]}`
		}
		p := planned(t, request(uuid), true)
		assert.Equal(t, request(`"u0"`), string(p.referringTo([]string{""}).Body.Rewrite().Bytes()), uuid)
		encode, _ := p.Request(0, "")
		assert.Contains(t, string(encode.Bytes()), `[{"type":"image_url","image_url":{"url":"i"},"uuid":"u0"}]`, uuid)
	}
}
