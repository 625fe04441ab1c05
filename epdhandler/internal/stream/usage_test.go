package stream

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// edited passes an answer through e, cut into pieces at these places.
func edited(e *usageEdit, answer string, cuts ...int) string {
	var out bytes.Buffer
	to := func(p []byte) { out.Write(p) }
	from := 0
	for _, cut := range append(cuts, len(answer)) {
		piece := bytes.Clone([]byte(answer[from:cut]))
		e.write(piece, to)
		copy(piece, bytes.Repeat([]byte("#"), len(piece))) // the engine's buffer is used again
		from = cut
	}
	e.flush(to)
	return out.String()
}

// The number of cached tokens is replaced, or left out, and nothing else changes:
// neither a byte nor the length, however the answer is cut.
func TestUsage(t *testing.T) {
	t.Parallel()
	const usage = `"usage":{"prompt_tokens":9,"total_tokens":12,"completion_tokens":3,"prompt_tokens_details":%s}`
	whole := func(details string) string {
		return `{"id":"x","choices":[],` + fmt.Sprintf(usage, details) + `,"z":[1]}`
	}
	unlike := map[string]string{
		"no details":          whole(`null`),
		"null":                whole(`{"cached_tokens":null}`),
		"other details":       whole(`{"audio_tokens":5}`),
		"in content":          `{"choices":[{"message":{"content":"{\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":8192}}}"}}]}`,
		"in a choice":         `{"choices":[{"usage":{"prompt_tokens_details":{"cached_tokens":8192}}}]}`,
		"in an object":        `{"metrics":{"usage":{"prompt_tokens_details":{"cached_tokens":8192}}},"x":1}`,
		"in a list":           `{"usage":[{"prompt_tokens_details":{"cached_tokens":8192}}]}`,
		"other usage":         `{"usage":{"details":{"prompt_tokens_details":{"cached_tokens":8192}},"cached_tokens":8192}}`,
		"a value, not a name": `{"x":"usage","prompt_tokens_details":{"cached_tokens":8192}}`,
		"after usage":         `{"usage":{},"prompt_tokens_details":{"cached_tokens":8192},"usag":{"prompt_tokens_details":{"cached_tokens":8192}}}`,
		"nested":              whole(`{"multimodal_tokens":{"cached_tokens":8192}}`),
		"token as a name":     `{"choices":[{"logprobs":{"top_logprobs":[{"usage":-1.5,"prompt_tokens_details":{"cached_tokens":8192}}]}}]}`,
		"cut":                 whole(`{"cached_tokens":8192`)[:100],
		"no JSON":             `usage":{"prompt_tokens_details":{"cached_tokens":8192}}`,
		"brackets":            `]]}}{"usage":{"prompt_tokens_details":{"cached`,
		"large":               whole(`{"cached_tokens":8192,"x":"` + strings.Repeat("x", maxHeld) + `"}`),
	}
	for name, answer := range unlike {
		t.Run(name, func(t *testing.T) {
			for _, events := range []bool{false, true} {
				if events {
					answer = "data: " + answer + "\n\n: comment\n\ndata: [DONE]\n\n"
				}
				for cut := range len(answer) {
					require.Equal(t, answer, edited(&usageEdit{cached: 7, events: events}, answer, cut))
				}
			}
		})
	}
	for name, tc := range map[string]struct {
		details, want string
		cached        int
	}{
		"number":           {`{"cached_tokens":8192}`, `{"cached_tokens":6144}`, 6144},
		"fewer digits":     {`{"cached_tokens":8192}`, `{"cached_tokens":0   }`, 0},
		"more digits":      {`{"cached_tokens":92}`, `{                  }`, 6144},
		"unknown":          {`{"cached_tokens":8192}`, `{                    }`, -1},
		"unknown, first":   {`{"cached_tokens": 8192, "b":{"c":1}}`, `{                       "b":{"c":1}}`, -1},
		"unknown, last":    {`{"b":{"c":[1]} ,"cached_tokens":8192 }`, `{"b":{"c":[1]}                       }`, -1},
		"unknown, between": {`{"a":1,"cached_tokens":8192,"b":2}`, `{"a":1,                     "b":2}`, -1},
		"spaced":           {`{ "cached_tokens" : 8192 }`, `{ "cached_tokens" : 6144 }`, 6144},
	} {
		t.Run(name, func(t *testing.T) {
			answer, want := whole(tc.details), whole(tc.want)
			require.Len(t, want, len(answer))
			chunk := `{"choices":[{"delta":{"content":"\\\"} usage"}}],"usage":null}`
			stream := "data: " + chunk + "\n\n"
			for range 2 { // as with continuous_usage_stats
				stream += "data: " + answer + "\r\n\r\n"
			}
			stream += "data: [DONE]\n\n"
			for cut := range len(answer) {
				require.Equal(t, want, edited(&usageEdit{cached: tc.cached}, answer, cut, min(cut+3, len(answer))))
			}
			for cut := range len(stream) {
				require.Equal(t, strings.ReplaceAll(stream, answer, want), edited(&usageEdit{cached: tc.cached, events: true}, stream, cut, min(cut+9, len(stream))))
			}
			_, err := body.Parse([]byte(want))
			assert.NoError(t, err)
		})
	}
}

func FuzzUsage(f *testing.F) {
	f.Add(`{"usage":{"prompt_tokens_details":{"cached_tokens":8192}}}`, uint8(3), false)
	f.Add("data: {\"usage\":{\"prompt_tokens_details\":{\"cached_tokens\":8192}}}\n\n", uint8(9), true)
	f.Fuzz(func(t *testing.T, answer string, cut uint8, events bool) {
		at := min(int(cut), len(answer))
		got := edited(&usageEdit{cached: 7, events: events}, answer, at)
		assert.Len(t, got, len(answer))
		assert.Equal(t, edited(&usageEdit{cached: 7, events: events}, answer), got)
		if !strings.Contains(answer, "cached_tokens") && !strings.Contains(answer, `\`) {
			assert.Equal(t, answer, got)
		}
	})
}

// chunkEvent is as large as most chunks.
const chunkEvent = `data: {"id":"chatcmpl-5613e6b1-f0bf-43db-8d1a-f74bd250f423","object":"chat.completion.chunk","created":1795738541,"model":"Qwen/Qwen2.5-VL-3B-Instruct","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}` + "\n\n"

func BenchmarkUsage(b *testing.B) {
	chunk := []byte(chunkEvent)
	e := &usageEdit{cached: 7, events: true}
	n := 0
	to := func(p []byte) { n += len(p) }
	b.SetBytes(int64(len(chunk)))
	b.ReportAllocs()
	for b.Loop() {
		e.write(chunk, to)
	}
	if n != b.N*len(chunk) {
		b.Fatal("bytes are missing")
	}
}
