package epdhandler

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/memory"
)

// What engines have said in their errors over the years comes out in one form.
func TestEngineErrors(t *testing.T) {
	long := strings.Repeat("ä", maxMessage)
	for name, tc := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"vLLM":             {400, `{"error":{"message":"too <long>","type":"BadRequestError","param":"messages","code":400}}`, `{"error":{"message":"too <long>","type":"BadRequestError","param":"messages","code":400}}`},
		"vLLM, older":      {404, `{"object":"error","message":"no model","type":"NotFoundError","param":null,"code":404}`, `{"error":{"message":"no model","type":"NotFoundError","param":null,"code":404}}`},
		"vLLM, no key":     {401, `{"error":"Unauthorized"}`, `{"error":{"message":"Unauthorized","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
		"FastAPI":          {404, `{"detail":"Not Found"}`, `{"error":{"message":"Not Found","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
		"FastAPI, list":    {422, `{"detail":[{"loc":["body"],"msg":"missing"}]}`, `{"error":{"message":"the encode stage answered with status 422","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
		"text":             {500, `Internal Server Error`, `{"error":{"message":"the encode stage answered with status 500","type":"server_error","param":null,"code":"encode_failed"}}`},
		"nothing":          {503, ``, `{"error":{"message":"the encode stage answered with status 503","type":"server_error","param":null,"code":"encode_failed"}}`},
		"odd members":      {400, `{"error":{"message":7,"type":[],"param":{"a":1},"code":"c"}}`, `{"error":{"message":"the encode stage answered with status 400","type":"invalid_request_error","param":null,"code":"c"}}`},
		"redirect":         {307, `{"message":"x"}`, `{"error":{"message":"the encode stage answered with status 307","type":"server_error","param":null,"code":"encode_failed"}}`},
		"endless":          {400, `{"message":"` + long + `"}`, `{"error":{"message":"` + long[:maxMessage] + `…","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
		"error and detail": {400, `{"error":null,"detail":"x"}`, `{"error":{"message":"x","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := &answer{status: tc.status}
			_, _ = a.Write([]byte(tc.body))
			a.Header().Set("Retry-After", "3")
			w := httptest.NewRecorder()
			engineError("encode", tc.status, a).write(w)
			assert.Equal(t, tc.want, strings.TrimSpace(w.Body.String()))
			assert.True(t, json.Valid(w.Body.Bytes()))
			if tc.status < 400 {
				assert.Equal(t, http.StatusBadGateway, w.Code)
				return
			}
			assert.Equal(t, tc.status, w.Code)
			assert.Equal(t, "3", w.Header().Get("Retry-After"))
		})
	}
}

func TestAnswerIsBounded(t *testing.T) {
	a := new(answer)
	half := make([]byte, maxAnswer/2)
	for range 2 {
		_, err := a.Write(half)
		require.NoError(t, err)
	}
	_, err := a.Write([]byte("x"))
	require.ErrorIs(t, err, errAnswerTooLarge)
	f := judge(t.Context(), "prefill", &call{chosen: []string{"a"}, reached: true}, a, errBroke)
	assert.Equal(t, broken, f.reason)
	assert.Equal(t, errAnswerTooLarge, f.cause)
	assert.Equal(t, http.StatusBadGateway, f.verdict.status)
}

// What engines answer is memory of the request, until that ends.
func TestAnswersAreCounted(t *testing.T) {
	nothingHeld(t)
	ctx, leave := context.WithCancel(t.Context())
	room, err := memoryLedger.Reserve(ctx, 0, 4*miB)
	require.NoError(t, err)
	_, m, err := room.ReadBody(http.NoBody, 0, 0)
	require.NoError(t, err)
	before := memoryLedger.Held()
	small, large := &answer{room: room}, &answer{room: room}
	write := func(a *answer, n int) error {
		_, err := a.Write(make([]byte, n))
		return err
	}
	require.NoError(t, write(small, smallAnswer))
	got := memoryLedger.Held()
	assert.Equal(t, before, got, "nearly all are small")
	for range 16 {
		require.NoError(t, write(large, 64*kiB))
		got = memoryLedger.Held()
		assert.GreaterOrEqual(t, got, int64(large.body.Cap()))
	}
	assert.LessOrEqual(t, got, int64(4*large.body.Len()))
	leave()
	assert.ErrorIs(t, write(large, 4*miB), context.Canceled, "there is not so much, and who waits has left")
	m.Release()
	require.NoError(t, write(small, miB))
	nothingHeld(t)

	a := &answer{refused: memory.ErrExhausted}
	f := judge(t.Context(), "prefill", &call{chosen: []string{"a"}, reached: true}, a, errBroke)
	assert.Equal(t, overloaded, f.reason)
	assert.Equal(t, http.StatusServiceUnavailable, f.verdict.status)
	assert.Equal(t, "overloaded", f.verdict.Code)
}

// net/http quotes what it could not read, and an engine may have said anything.
func TestCausesHoldNoContent(t *testing.T) {
	err := caddyhttp.Error(http.StatusBadGateway, errors.New(`malformed HTTP status code "SECRET"`))
	f := judge(t.Context(), "encode", &call{chosen: []string{"a"}, reached: true}, new(answer), err)
	assert.Equal(t, broken, f.reason)
	assert.NotContains(t, f.cause.Error(), "SECRET")
}

func TestAnswerWithoutStatusIsOK(t *testing.T) {
	a := new(answer)
	_, _ = a.Write([]byte("{}"))
	assert.Nil(t, judge(t.Context(), "encode", &call{chosen: []string{"a"}, reached: true}, a, nil))
}

func TestInformationalAnswersAreNotTheAnswer(t *testing.T) {
	a := new(answer)
	a.WriteHeader(http.StatusEarlyHints)
	assert.Zero(t, a.status)
	a.WriteHeader(http.StatusOK)
	a.WriteHeader(http.StatusTeapot)
	assert.Equal(t, http.StatusOK, a.status)

	client := httptest.NewRecorder()
	w := &response{client: client, id: "id", silence: new(silence), done: func() {}, accept: func(int) bool { return true }}
	w.WriteHeader(http.StatusEarlyHints)
	assert.False(t, w.committed)
	w.Header().Set("X-Request-Id", "engine's")
	w.WriteHeader(http.StatusCreated)
	assert.False(t, w.committed, "it may still break off before its first byte")
	assert.False(t, w.close(false))
	assert.Equal(t, http.StatusCreated, client.Code)
	assert.Equal(t, []string{"id"}, client.Header()["X-Request-Id"])
}
