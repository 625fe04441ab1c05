package body

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// A string can be cut at any place but in an escape.
func TestCut(t *testing.T) {
	t.Parallel()
	const raw, want = `ab\\\\\"\u0041\/ä\\u0041\n`, "ab\\\\\"A/ä\\u0041\n"
	for max := range len(raw) + 2 {
		n := Cut([]byte(raw), max)
		assert.LessOrEqual(t, n, max)
		assert.Greater(t, n, min(len(raw), max)-len(`\u0041`))
		assert.Equal(t, want, string(Unescape([]byte(raw[:n])))+string(Unescape([]byte(raw[n:]))))
	}
}

func TestUnescapedInPieces(t *testing.T) {
	t.Parallel()
	raw := strings.Repeat(`0123\u0041\\`, maxPiece/4)
	var got strings.Builder
	for piece := range Unescaped([]byte(raw)) {
		assert.LessOrEqual(t, len(piece), maxPiece)
		got.Write(piece)
	}
	assert.Equal(t, strings.Repeat(`0123A\`, maxPiece/4), got.String())
}
