package engine

import (
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/dispatch"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
	"github.com/caddy-epd/caddy-epd/epdhandler/internal/telemetry"
)

// What ended a call decides why it failed.
func TestJudge(t *testing.T) {
	t.Parallel()
	full, untaken := dispatch.BusyError{Why: "full"}, errors.New("too large")
	exhausted := fmt.Errorf("answer: %w", memory.ErrExhausted)
	asked := []string{"a:1"}
	for name, tc := range map[string]struct {
		a       Attempt
		status  int
		untaken error
		want    telemetry.Reason
		code    int
		cause   error
	}{
		"answer":          {a: Attempt{Chosen: asked, Reached: true}, status: 200, code: 200},
		"error":           {a: Attempt{Chosen: asked, Reached: true}, status: 503, want: telemetry.BadStatus, code: 503, cause: StatusError(503)},
		"queue is full":   {a: Attempt{fault: full, Err: dispatch.ErrNobody}, want: telemetry.Overloaded, cause: full},
		"policy panicked": {a: Attempt{fault: assert.AnError, Err: dispatch.ErrNobody}, want: telemetry.Broken, cause: assert.AnError},
		"nobody":          {a: Attempt{Err: dispatch.ErrNobody}, want: telemetry.Unavailable, cause: dispatch.ErrNobody},
		"refused":         {a: Attempt{Chosen: asked, Err: assert.AnError}, want: telemetry.Refused, cause: assert.AnError},
		"handle_response": {a: Attempt{Chosen: asked, Reached: true, Err: caddyhttp.Error(http.StatusNotFound, assert.AnError)}, want: telemetry.BadStatus, code: 404, cause: assert.AnError},
		"not taken":       {a: Attempt{Chosen: asked, Reached: true, Err: ErrBroke}, status: 200, untaken: untaken, want: telemetry.Broken, cause: untaken},
		"no memory":       {a: Attempt{Chosen: asked, Reached: true, Err: ErrBroke}, status: 200, untaken: exhausted, want: telemetry.Overloaded, cause: exhausted},
		"no HTTP": {a: Attempt{Chosen: asked, Reached: true, Err: caddyhttp.Error(http.StatusBadGateway, errors.New(`malformed HTTP status code "SECRET"`))},
			want: telemetry.Broken, cause: errors.New("malformed HTTP")},
		"broke off": {a: Attempt{Chosen: asked, Reached: true, Err: ErrBroke}, want: telemetry.Broken, cause: ErrBroke},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.a.Judge(t.Context(), tc.status, tc.untaken)
			assert.Equal(t, tc.want, tc.a.Reason)
			assert.Equal(t, tc.code, tc.a.Status)
			assert.Equal(t, tc.cause, tc.a.Cause)
		})
	}
}
