package epdhandler

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

func alloc(n int) ([]byte, error) { return make([]byte, 0, n), nil }

func TestReadAll(t *testing.T) {
	const limit = 3 * firstRead
	for _, size := range []int{0, 1, firstRead - 1, firstRead, firstRead + 1, limit - 1, limit} {
		data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		for name, r := range map[string]func(io.Reader) io.Reader{
			"as it is":      func(r io.Reader) io.Reader { return r },
			"end with data": iotest.DataErrReader,
			"in halves":     iotest.HalfReader,
		} {
			for _, length := range []int64{int64(size), -1} {
				got, err := readAll(r(bytes.NewReader(data)), length, limit, alloc)
				require.NoError(t, err, "%d bytes, length %d, %s", size, length, name)
				assert.True(t, bytes.Equal(data, got), "%d bytes, length %d, %s", size, length, name)
			}
		}
	}
	_, err := readAll(bytes.NewReader(make([]byte, limit+1)), -1, limit, alloc)
	assert.Equal(t, errBodyTooLarge, err)
	_, err = readAll(io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(io.ErrUnexpectedEOF)), 20, limit, alloc)
	assert.Equal(t, io.ErrUnexpectedEOF, err)
}

// A client that announces much and sends little holds only what it sent.
func TestReadAllTakesMemoryAsItComes(t *testing.T) {
	got, err := readAll(bytes.NewReader(make([]byte, 10)), 1<<30, 1<<30, alloc)
	require.NoError(t, err)
	assert.LessOrEqual(t, cap(got), firstRead+1)
}

func TestReadAllWithoutALimit(t *testing.T) {
	got, err := readAll(strings.NewReader("x"), -1, math.MaxInt64, alloc)
	require.NoError(t, err)
	assert.Equal(t, "x", string(got))
}
