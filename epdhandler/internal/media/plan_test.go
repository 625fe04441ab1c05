package media

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestPlan(t *testing.T) {
	t.Parallel()
	const a, b, c, video = `{"image_url":"a"}`, `{"image_url":"b"}`, `{"image_url":"c"}`, `{"video_url":"a"}`
	const again = `{"type":"image_url","image_url":{"url":"\u0061","detail":"low"}}` // a, written differently
	const named = `{"image_url":"a","uuid":"u"}`
	for name, tc := range map[string]struct {
		parts   []string
		options Options
		want    [][]int
	}{
		"one by one":                {[]string{a, b, a}, Options{}, [][]int{{0}, {1}, {2}}},
		"together":                  {[]string{a, b, c}, Options{BatchSize: 2}, [][]int{{0, 1}, {2}}},
		"others alone":              {[]string{a, video, b}, Options{BatchSize: 8}, [][]int{{1}, {0, 2}}},
		"over encoders":             {[]string{a, b, c}, Options{BatchSize: 8, Encoders: 3}, [][]int{{0}, {1}, {2}}},
		"over few encoders":         {[]string{a, b, c}, Options{BatchSize: 8, Encoders: 2}, [][]int{{0, 1}, {2}}},
		"equal ones once":           {[]string{a, b, again, video, video}, Options{References: true}, [][]int{{0}, {1}, {3}}},
		"equal ones twice, pushed":  {[]string{a, again}, Options{References: true, Pushed: true}, [][]int{{0}, {1}}},
		"a client may name equally": {[]string{a, named, named}, Options{References: true}, [][]int{{0}, {1}, {2}}},
		"nothing":                   {nil, Options{References: true}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, set, err := ParseChat([]byte(chat(tc.parts...)), 8, true)
			require.NoError(t, err)
			assert.Equal(t, tc.want, set.Plan(tc.options).Batches)
		})
	}
}

// uuids differ where engines would make something else of the media.
func TestUUIDs(t *testing.T) {
	t.Parallel()
	uuid := func(salt, options string) string {
		_, set, err := ParseChat([]byte(`{"messages":[{"content":[{"image_url":"a"}]}]`+options+`}`), 1, false)
		require.NoError(t, err)
		return set.identify(salt)[0]
	}
	same := uuid("", "")
	assert.Len(t, same, 64)
	assert.Equal(t, same, uuid("", `,"model":"m","mm_processor_kwargs":{},"media_io_kwargs":null`))
	for _, other := range []string{
		uuid("salt", ""), uuid("", `,"mm_processor_kwargs":{"num_crops":4}`), uuid("", `,"media_io_kwargs":{"num_crops":4}`),
	} {
		assert.NotEqual(t, same, other)
	}
}

// Consumers get what all encoders have said, and a trusted client's own.
func TestHandles(t *testing.T) {
	t.Parallel()
	for _, trusted := range []bool{false, true} {
		_, set, err := ParseChat([]byte(`{"messages":[{"content":[{"image_url":"a"},{"image_url":"b"}]}],"ec_transfer_params":{"own":0}}`), 2, trusted)
		require.NoError(t, err)
		plan := set.Plan(Options{})
		var answers []Answer
		for i, said := range []string{`{"ec_transfer_params":{"a":1,"b":{}}}`, `{"ec_transfer_params":{"b":2}}`} {
			answer, err := plan.Read(i, []byte(said), nil)
			require.NoError(t, err)
			answers = append(answers, answer)
		}
		want := `{"a":1,"b":2}`
		if trusted {
			want = `{"own":0,"a":1,"b":2}`
		}
		encoded := plan.Encoded(answers)
		assert.Equal(t, want, string(encoded.Handles))
		assert.Same(t, set.body, encoded.Body)
		assert.Equal(t, encoded, encoded.WithoutReferences())
		assert.Equal(t, trusted, plan.Encoded(make([]Answer, 2)).Handles != nil, "its own only")
	}
}
