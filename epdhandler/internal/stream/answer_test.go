package stream

import (
	"errors"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const kiB = 1 << 10

func TestAnswerIsBounded(t *testing.T) {
	t.Parallel()
	a := new(Answer)
	half := make([]byte, maxAnswer/2)
	for range 2 {
		_, err := a.Write(half)
		require.NoError(t, err)
	}
	_, err := a.Write([]byte("x"))
	require.ErrorIs(t, err, ErrTooLarge)
	assert.Equal(t, ErrTooLarge, a.Err)
}

// limitedMemory is memory for so many bytes.
type limitedMemory struct{ taken, limit int64 }

var errFull = errors.New("full")

func (m *limitedMemory) Add(n int64) error {
	if m.taken+n > m.limit {
		return errFull
	}
	m.taken += n
	return nil
}

// An answer takes memory as it grows. Small ones are not counted.
func TestAnswersAreCounted(t *testing.T) {
	t.Parallel()
	m := &limitedMemory{limit: 4 << 20}
	small, large := &Answer{Memory: m}, &Answer{Memory: m}
	write := func(a *Answer, n int) error {
		_, err := a.Write(make([]byte, n))
		return err
	}
	require.NoError(t, write(small, smallAnswer))
	assert.Zero(t, m.taken)
	for range 16 {
		require.NoError(t, write(large, 64*kiB))
		assert.GreaterOrEqual(t, m.taken, int64(large.Body.Cap()))
	}
	assert.LessOrEqual(t, m.taken, int64(4*large.Body.Len()))
	assert.ErrorIs(t, write(large, 4<<20), errFull)
	assert.ErrorIs(t, write(large, 1), errFull, "the answer has a gap")
}

func TestStatusOfAnAnswer(t *testing.T) {
	t.Parallel()
	a := new(Answer)
	a.WriteHeader(http.StatusEarlyHints)
	assert.Zero(t, a.Status)
	a.WriteHeader(http.StatusOK)
	a.WriteHeader(http.StatusTeapot)
	assert.Equal(t, http.StatusOK, a.Status)

	a = new(Answer)
	_, _ = a.Write([]byte("{}"))
	assert.Equal(t, http.StatusOK, a.Status)
}
