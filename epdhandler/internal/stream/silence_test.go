package stream

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

// Time in a queue does not count, and a stream may last as long as it keeps sending.
func TestSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, s, cancel := Watch(t.Context(), Limit{"start", 10 * time.Second}, Limit{"idle", 5 * time.Second})
		defer cancel()
		pass := func(d time.Duration) error {
			time.Sleep(d)
			synctest.Wait()
			return context.Cause(ctx)
		}
		assert.NoError(t, pass(9*time.Second))
		s.Pause()
		assert.NoError(t, pass(time.Hour))
		s.Resume()
		assert.NoError(t, pass(9*time.Second))
		for range 10 {
			s.heard()
			assert.NoError(t, pass(4*time.Second))
		}
		assert.Equal(t, context.DeadlineExceeded, pass(2*time.Second))
		assert.EqualError(t, s.Expired(), "nothing came for 5s (idle)")
	})
}

func TestNoLimit(t *testing.T) {
	t.Parallel()
	s := new(Silence)
	s.Pause()
	s.heard()
	s.Resume()
	assert.Nil(t, s.timer)
}
