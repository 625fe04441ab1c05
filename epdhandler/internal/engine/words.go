package engine

import (
	"cmp"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// APIError is what an engine's error says, in the members of the OpenAI API. What it lacks is empty.
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
	type object = map[string]json.RawMessage
	top := as[object](answer)
	detail := top
	if inner := as[object](top["error"]); inner != nil {
		detail = inner
	}
	e.Message = cmp.Or(as[string](detail["message"]), as[string](top["error"]), as[string](top["detail"]))
	if len(e.Message) > maxMessage {
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage], "") + "…"
	}
	for name, to := range map[string]*json.RawMessage{"param": &e.Param, "code": &e.Code} {
		if v := detail[name]; len(v) <= maxName && body.Given(v) && !body.IsObject(v) {
			*to = v
		}
	}
	if typ := as[string](detail["type"]); len(typ) <= maxName {
		e.Type = typ
	}
	return e
}

// as returns a JSON value as a T, zero if it is none.
func as[T any](value []byte) (v T) {
	_ = json.Unmarshal(value, &v)
	return v
}
