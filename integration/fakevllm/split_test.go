package fakevllm

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestSplit(t *testing.T) {
	tests := []struct {
		raw  string
		want []string
	}{
		{`[]`, nil},
		{`{ }`, nil},
		{`[ 1 , "a" ]`, []string{`1`, `"a"`}},
		{`[[1,2],{"a":[3,4]}]`, []string{`[1,2]`, `{"a":[3,4]}`}},
		{`{"a" : 1, "b":{"c":2}}`, []string{`"a"`, `1`, `"b"`, `{"c":2}`}},
		{`["a,b:c]}", "\"", "\\", "\\\"", ""]`, []string{`"a,b:c]}"`, `"\""`, `"\\"`, `"\\\""`, `""`}},
	}
	for _, test := range tests {
		t.Run(test.raw, func(t *testing.T) {
			var got []string
			for _, part := range split([]byte(test.raw)) {
				got = append(got, string(part))
			}
			assert.Equal(t, test.want, got)
		})
	}
}

// The result is compared with encoding/json.
func FuzzParseBody(f *testing.F) {
	for _, seed := range []string{imagePrefill, `{"a":"\\","b":[{"c":"}"}],"\u0061":1}`, ` {} `, `{"a":1}x`, `[1]`, `{"":"\ud800"}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := parseBody(raw)
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(raw, &want))
		require.Len(t, got, len(want))
		for name, value := range want {
			require.Equal(t, string(value), string(got[name]))
		}
		_, _ = readPrompt(got, false) // must not panic
	})
}
