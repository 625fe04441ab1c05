package memory

import (
	"bytes"
	"io"
	"math"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// readFrom reads a body, with all the memory that there is.
func readFrom(t *testing.T, r io.Reader, length, limit int64) ([]byte, error) {
	l := newLedger()
	s, err := l.Reserve(t.Context(), 0, 1<<40)
	require.NoError(t, err)
	got, m, err := s.ReadBody(r, length, limit)
	if err != nil {
		assert.Nil(t, m)
		l.assertEmpty(t)
		return got, err
	}
	t.Cleanup(func() {
		m.Release()
		l.assertEmpty(t)
	})
	return got, nil
}

func TestReadBody(t *testing.T) {
	t.Parallel()
	const limit = 3 * smallBody
	for _, size := range []int{0, 1, smallBody - 1, smallBody, smallBody + 1, limit - 1, limit} {
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		for name, r := range map[string]func(io.Reader) io.Reader{
			"as it is":      func(r io.Reader) io.Reader { return r },
			"end with data": iotest.DataErrReader,
			"in halves":     iotest.HalfReader,
		} {
			for _, length := range []int64{int64(size), -1} {
				got, err := readFrom(t, r(bytes.NewReader(data)), length, limit)
				require.NoError(t, err, "%d bytes, length %d, %s", size, length, name)
				assert.True(t, bytes.Equal(data, got), "%d bytes, length %d, %s", size, length, name)
			}
		}
	}
	_, err := readFrom(t, bytes.NewReader(make([]byte, limit+1)), -1, limit)
	assert.Equal(t, ErrTooLarge, err)
	_, err = readFrom(t, io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(io.ErrUnexpectedEOF)), 20, limit)
	assert.Equal(t, io.ErrUnexpectedEOF, err)
}

// A client that announces much and sends little holds only what it sent.
func TestReadBodyTakesMemoryAsItComes(t *testing.T) {
	t.Parallel()
	l := newLedger()
	s, err := l.Reserve(t.Context(), 1<<30, 1<<40)
	require.NoError(t, err)
	half, sent := io.Pipe()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, m, _ := s.ReadBody(half, 1<<30, 1<<30)
		m.Release()
	}()
	_, err = sent.Write(make([]byte, 10))
	require.NoError(t, err)
	held := l.Held()
	require.NoError(t, sent.Close())
	<-over
	assert.LessOrEqual(t, held, int64(2*smallBody))
}

func TestReadBodyWithoutALimit(t *testing.T) {
	t.Parallel()
	got, err := readFrom(t, strings.NewReader("x"), -1, math.MaxInt64)
	require.NoError(t, err)
	assert.Equal(t, "x", string(got))
}

// A reader may be a middleware's, and panic.
func TestReadBodyThatPanics(t *testing.T) {
	t.Parallel()
	l := newLedger()
	for _, length := range []int64{-1, miB} {
		s, err := l.Reserve(t.Context(), max(length, 0), 8*miB)
		require.NoError(t, err)
		assert.Panics(t, func() { _, _, _ = s.ReadBody(io.MultiReader(strings.NewReader("{"), panics{}), length, miB) })
		l.assertEmpty(t)
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error) { panic("no") }
