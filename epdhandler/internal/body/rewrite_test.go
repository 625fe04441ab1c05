package body

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRewrite(t *testing.T) {
	for name, tc := range map[string]struct {
		in    string
		edits []Edit
		want  string
	}{
		"nothing":               {` { "model" : 1 , "x":2 } `, nil, `{ "model" : 1 , "x":2 }`},
		"empty, nothing":        {`{ }`, nil, `{}`},
		"empty, set":            {`{ }`, []Edit{Set("stream", "false"), Set("max_tokens", "1")}, `{"stream":false,"max_tokens":1}`},
		"set what is there":     {`{"a":1, "stream" : true ,"b":2}`, []Edit{Set("stream", "false")}, `{"a":1, "stream" : false ,"b":2}`},
		"set what is not":       {`{"a":1 }`, []Edit{Set("stream", []byte("false"))}, `{"a":1 ,"stream":false}`},
		"remove the only one":   {`{"stream":1}`, []Edit{Remove("stream")}, `{}`},
		"remove what is not":    {`{"a":1}`, []Edit{Remove("stream")}, `{"a":1}`},
		"remove the first":      {`{"stream":1 , "a":1}`, []Edit{Remove("stream")}, `{ "a":1}`},
		"remove the last":       {`{"a":1, "stream":1}`, []Edit{Remove("stream")}, `{"a":1}`},
		"remove in the middle":  {`{"a":1,"stream":1,"b":2}`, []Edit{Remove("stream")}, `{"a":1,"b":2}`},
		"remove neighbours":     {`{"a":1,"stream":1,"model":2,"b":2}`, []Edit{Remove("stream"), Remove("model")}, `{"a":1,"b":2}`},
		"remove the last two":   {`{"a":1,"stream":1,"model":2}`, []Edit{Remove("model"), Remove("stream")}, `{"a":1}`},
		"remove all":            {`{"stream":1,"model":2}`, []Edit{Remove("model"), Remove("stream")}, `{}`},
		"remove all, add":       {`{"stream":1,"model":2}`, []Edit{Remove("model"), Remove("stream"), Set("max_tokens", "1")}, `{"max_tokens":1}`},
		"remove last, add":      {`{"a":1,"stream":1}`, []Edit{Remove("stream"), Set("max_tokens", "1")}, `{"a":1,"max_tokens":1}`},
		"set beside removed":    {`{"stream":1,"model":2,"max_tokens":3}`, []Edit{Set("model", "0"), Remove("stream"), Remove("max_tokens")}, `{"model":0}`},
		"two set":               {`{"stream":1,"model":2}`, []Edit{Set("model", "0"), Set("stream", "0")}, `{"stream":0,"model":0}`},
		"escaped name":          {`{"str\u0065am":1,"a":1}`, []Edit{Remove("stream")}, `{"a":1}`},
		"only at the top level": {`{"a":{"stream":1},"stream":2}`, []Edit{Remove("stream")}, `{"a":{"stream":1}}`},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Parse([]byte(tc.in))
			require.NoError(t, err)
			got := b.Rewrite(tc.edits...)
			assert.Equal(t, tc.want, string(got.Bytes()))
			assert.EqualValues(t, len(tc.want), got.Len())
		})
	}
}

func TestSegments(t *testing.T) {
	big := strings.Repeat("0123456789", smallBody/10)
	for name, parts := range map[string][]string{
		"none":    {},
		"empties": {"", "", ""},
		"small":   {"a", "", "bc"},
		"large":   {"a", big, "", "b", big, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var in [][]byte
			for _, p := range parts {
				in = append(in, []byte(p))
			}
			s := Join(in...)
			want := []byte(strings.Join(parts, ""))
			assert.EqualValues(t, len(want), s.Len())
			assert.Equal(t, want, append([]byte{}, s.Bytes()...))
			for range 2 { // it can be read again
				require.NoError(t, iotest.TestReader(s.Reader(), want))
			}
			half := s.Reader()
			_, _ = io.CopyN(io.Discard, half, s.Len()/2)
			whole, err := io.ReadAll(s.Reader())
			require.NoError(t, err)
			assert.True(t, bytes.Equal(want, whole), "readers disturb each other")
		})
	}
}
