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

// readFrom reads a body, with all the memory that there is.
func readFrom(t *testing.T, r io.Reader, length, limit int64) ([]byte, error) {
	room, err := newShare(t.Context(), 0, 1<<40)
	require.NoError(t, err)
	got, err := readAll(r, length, limit, room)
	m := room.arrived(int64(len(got)))
	t.Cleanup(m.Release)
	return got, err
}

func TestReadAll(t *testing.T) {
	const limit = 3 * smallUpload
	for _, size := range []int{0, 1, smallUpload - 1, smallUpload, smallUpload + 1, limit - 1, limit} {
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
	assert.Equal(t, errBodyTooLarge, err)
	_, err = readFrom(t, io.MultiReader(bytes.NewReader(make([]byte, 10)), iotest.ErrReader(io.ErrUnexpectedEOF)), 20, limit)
	assert.Equal(t, io.ErrUnexpectedEOF, err)
}

// A client that announces much and sends little holds only what it sent.
func TestReadAllTakesMemoryAsItComes(t *testing.T) {
	before, _ := held()
	announced, err := newShare(t.Context(), 1<<30, 1<<40)
	require.NoError(t, err)
	half, sent := io.Pipe()
	over := make(chan struct{})
	go func() {
		defer close(over)
		_, _ = readAll(half, 1<<30, 1<<30, announced)
		announced.arrived(0).Release()
	}()
	_, err = sent.Write(make([]byte, 10))
	require.NoError(t, err)
	after, _ := held()
	require.NoError(t, sent.Close())
	<-over
	assert.LessOrEqual(t, after-before, int64(2*smallUpload))
}

func TestReadAllWithoutALimit(t *testing.T) {
	got, err := readFrom(t, strings.NewReader("x"), -1, math.MaxInt64)
	require.NoError(t, err)
	assert.Equal(t, "x", string(got))
}
