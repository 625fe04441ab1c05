package engine

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// APIError is what an engine says in an answer that is an error, in the members that the OpenAI
// API has. Those that the answer lacks are empty.
type APIError struct {
	Message, Type string
	Param, Code   json.RawMessage
}

// So many bytes of an engine's message, and of a type, param or code, are passed on.
const maxMessage, maxName = 4 << 10, 256

// ErrorOf reads an answer that is an error. It has one of the forms that vLLM has had:
// {"error": {"message", "type", …}}, {"object": "error", "message", "type", …}, {"error": "…"}, or
// FastAPI's {"detail": …}. Of an answer with another status than 4xx or 5xx nothing is read.
func ErrorOf(status int, answer []byte) (e APIError) {
	if status < http.StatusBadRequest {
		return e
	}
	top := members(answer)
	detail := top
	if inner := members(top["error"]); inner != nil {
		detail = inner
	}
	e.Message = clip(cmp.Or(stringIn(detail["message"]), stringIn(top["error"]), stringIn(top["detail"])))
	for name, to := range map[string]*json.RawMessage{"param": &e.Param, "code": &e.Code} {
		if v := detail[name]; len(v) <= maxName && body.Given(v) && !body.IsObject(v) {
			*to = v
		}
	}
	if typ := stringIn(detail["type"]); len(typ) <= maxName {
		e.Type = typ
	}
	return e
}

// members returns the members of a JSON object, nil if it is none.
func members(object []byte) (m map[string]json.RawMessage) {
	_ = json.Unmarshal(object, &m)
	return m
}

// stringIn returns the string that a JSON value is, empty if it is none.
func stringIn(value []byte) (s string) {
	_ = json.Unmarshal(value, &s)
	return s
}

func clip(s string) string {
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage], "") + "…"
}
