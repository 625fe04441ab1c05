package engine

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// All forms of errors that vLLM has had are read.
func TestErrorOf(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", maxMessage)
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for name, tc := range map[string]struct {
		status int
		answer string
		want   APIError
	}{
		"vLLM":             {400, `{"error":{"message":"too <long>","type":"BadRequestError","param":"messages","code":400}}`, APIError{"too <long>", "BadRequestError", raw(`"messages"`), raw("400")}},
		"vLLM, older":      {404, `{"object":"error","message":"no model","type":"NotFoundError","param":null,"code":404}`, APIError{"no model", "NotFoundError", nil, raw("404")}},
		"vLLM, no key":     {401, `{"error":"Unauthorized"}`, APIError{Message: "Unauthorized"}},
		"FastAPI":          {404, `{"detail":"Not Found"}`, APIError{Message: "Not Found"}},
		"FastAPI, list":    {422, `{"detail":[{"loc":["body"],"msg":"missing"}]}`, APIError{}},
		"text":             {500, `Internal Server Error`, APIError{}},
		"nothing":          {503, ``, APIError{}},
		"odd members":      {400, `{"error":{"message":7,"type":[],"param":{"a":1},"code":"c"}}`, APIError{Code: raw(`"c"`)}},
		"redirect":         {307, `{"message":"x"}`, APIError{}},
		"endless":          {400, `{"message":"` + long + `","type":"` + long + `","code":"` + long + `"}`, APIError{Message: long[:maxMessage] + "…"}},
		"error and detail": {400, `{"error":null,"detail":"x"}`, APIError{Message: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			assert.Equal(t, tc.want, ErrorOf(tc.status, []byte(tc.answer)))
		})
	}
}
