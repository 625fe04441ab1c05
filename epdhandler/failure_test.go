package epdhandler

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/stream"
)

// The error formats of all versions of vLLM are converted to one form.
func TestEngineErrors(t *testing.T) {
	long := strings.Repeat("ä", 4<<10)
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
		"endless":          {400, `{"message":"` + long + `"}`, `{"error":{"message":"` + long[:4<<10] + `…","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
		"error and detail": {400, `{"error":null,"detail":"x"}`, `{"error":{"message":"x","type":"invalid_request_error","param":null,"code":"encode_failed"}}`},
	} {
		t.Run(name, func(t *testing.T) {
			a := &stream.Answer{Status: tc.status}
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
