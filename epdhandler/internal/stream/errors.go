package stream

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// errorMark begins an event that is an error. In generated text the quotes would be escaped.
var errorMark = []byte(`data: {"error"`)

// errorStatus returns the status of an error event that begins in a piece of a stream, 0 if there is
// none, 500 if it is not complete in the piece. The bytes before the piece end with before.
func errorStatus(before, piece []byte) int {
	part := len(errorMark) - 1
	var seam [32]byte // end and begin of the two, without an allocation
	n := copy(seam[:], before[len(before)-part:])
	n += copy(seam[n:], piece[:min(part, len(piece))])
	if bytes.Contains(seam[:n], errorMark) {
		return http.StatusInternalServerError
	}
	at := bytes.Index(piece, errorMark)
	if at < 0 {
		return 0
	}
	var event json.RawMessage // only the first one
	_ = json.NewDecoder(bytes.NewReader(piece[at+len("data:"):])).Decode(&event)
	if a := errorAnswer(event); a != nil {
		return a.Status
	}
	return http.StatusInternalServerError
}

// errorAnswer returns the answer that an error event would be outside of a stream, nil if it
// is no error. An error has one of vLLM's forms: {"error": {"message", "code", …}} or {"object": "error", "message", "code", …}.
func errorAnswer(data []byte) *Answer {
	if !bytes.Contains(data, []byte(`"error"`)) {
		return nil // cheaper than parsing each event
	}
	event := members(data)
	detail := event
	switch inner := event["error"]; {
	case body.IsObject(inner):
		detail = members(inner)
	case len(inner) > len(`""`) && inner[0] == '"':
	case body.IsString(event["object"], "error"):
	default:
		return nil
	}
	a := &Answer{Status: http.StatusInternalServerError, Headers: http.Header{"Content-Type": {"application/json"}}}
	var code json.Number
	if json.Unmarshal(detail["code"], &code) == nil {
		if n, _ := code.Float64(); n >= 400 && n < 600 {
			a.Status = int(n)
		}
	}
	_, _ = a.Body.Write(bytes.TrimSpace(data))
	return a
}

// isEmpty reports whether an event is a chunk with nothing that was generated. It may have a role.
func isEmpty(data []byte) bool {
	if len(bytes.TrimSpace(data)) == 0 {
		return true
	}
	var chunk struct {
		Choices *[]map[string]any `json:"choices"`
		Usage   any               `json:"usage"`
	}
	if json.Unmarshal(data, &chunk) != nil || chunk.Choices == nil {
		return false
	}
	for _, c := range *chunk.Choices {
		delete(c, "index")
		if delta, isObject := c["delta"].(map[string]any); isObject {
			delete(delta, "role")
			delete(c, "delta")
			if !allEmpty(delta) {
				return false
			}
		}
		if !allEmpty(c) {
			return false
		}
	}
	return len(*chunk.Choices) > 0 || chunk.Usage == nil // with usage alone it is the last one
}

// allEmpty reports whether all members are null, or strings or lists of no length.
func allEmpty(members map[string]any) bool {
	for _, v := range members {
		list, isList := v.([]any)
		if v != nil && v != "" && (!isList || len(list) > 0) {
			return false
		}
	}
	return true
}

func members(object []byte) (m map[string]json.RawMessage) {
	_ = json.Unmarshal(object, &m)
	return m
}
