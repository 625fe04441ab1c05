package body

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A hook reads the value of its member in the same pass, and can blank members in it.
func TestHooks(t *testing.T) {
	t.Parallel()
	const in = `{"input":[{"a":"x","b":null},{"b":1,"c":2}],"model":"m","content":"text"}`
	for _, tc := range []struct{ blanked, want string }{
		{"b", `{"input":[{"a":"x"         },{      "c":2}],"model":"m","content":"text"}`},
		{"c", `{"input":[{"a":"x","b":null},{"b":1      }],"model":"m","content":"text"}`},
	} {
		var texts []string
		input := func(s *Scanner) error {
			return s.List(func(int) error {
				var around Range
				err := s.Object(func(m Member) error {
					if around.Start > 0 && around.Empty() {
						around.End = m.Before
					}
					if string(m.Name) == tc.blanked {
						around = Range{m.Before, m.Before}
					}
					if s.Peek() != '"' {
						return s.Value()
					}
					text, err := s.Text()
					texts = append(texts, string(s.Slice(text)))
					return err
				})
				if around.Start > 0 {
					if around.Empty() {
						around.End = s.Pos() - 1
					}
					s.Blank(around)
				}
				return err
			})
		}
		content := func(s *Scanner) error {
			text, err := s.Text()
			texts = append(texts, string(s.Slice(text)))
			return err
		}
		b, err := Parse([]byte(in), Hook{"input", input}, Hook{"content", content})
		require.NoError(t, err)
		assert.Equal(t, []string{"x", "text"}, texts)
		assert.Equal(t, tc.want, string(b.Rewrite().Bytes()))
		assert.Equal(t, `"m"`, string(b.Value("model")))
	}
}

func TestHooksFail(t *testing.T) {
	t.Parallel()
	own := errors.New("no list")
	hook := Hook{"input", func(s *Scanner) error {
		if s.Peek() != '[' {
			return own
		}
		return s.List(func(int) error { return s.Value() })
	}}
	_, err := Parse([]byte(`{"input":{}}`), hook)
	assert.Equal(t, own, err)
	_, err = Parse([]byte(`{"input":[1,]}`), hook)
	assert.ErrorContains(t, err, "not valid JSON")
	_, err = Parse([]byte(`{"other":{}}`), hook)
	assert.NoError(t, err)
}
