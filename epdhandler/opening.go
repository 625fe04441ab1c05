package epdhandler

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// maxOpening bounds what is held back of a stream. Its first events are far smaller,
// unless they have what a client asked for, such as the log probabilities of a prompt.
const maxOpening = 64 << 10

// opening is the beginning of a stream, held back while it says nothing. vLLM gives a
// stream the status 200 before it has begun to work on the request. If that fails, the
// first event is the error; or, in a chat, the second one, after an event with the role.
type opening struct {
	events []byte  // all that has come
	said   int     // how many events have come to their end
	failed *answer // what the engine would have answered if it were no stream

	line    int    // where the line begins that has not ended yet
	scanned int    // there is no end of a line between line and here
	data    []byte // of the event that has not ended yet
	cr      bool   // the last line ended with CR; LF may follow
}

// add takes what has come, and reports whether it shows that the stream has begun.
func (o *opening) add(p []byte) (begun bool) {
	if o.failed != nil {
		return false
	}
	o.events = append(o.events, p...)
	for {
		data, whole := o.next()
		if !whole {
			return len(o.events) > maxOpening
		}
		o.said++
		if o.failed = errorIn(data); o.failed != nil {
			return false
		}
		if !saysNothing(data) {
			return true
		}
	}
}

// end takes the end of the stream for that of an event which has none.
func (o *opening) end() {
	n := len(o.events)
	o.add([]byte("\n\n"))
	o.events = o.events[:n]
}

// next returns the data of the next event, if it has come to its end.
func (o *opening) next() (data []byte, whole bool) {
	for {
		line, whole := o.nextLine()
		if !whole {
			return nil, false
		}
		if len(line) == 0 && o.data != nil {
			data, o.data = bytes.TrimSuffix(o.data, []byte("\n")), nil
			return data, true
		}
		if value, isData := bytes.CutPrefix(line, []byte("data:")); isData {
			o.data = append(append(o.data, bytes.TrimPrefix(value, []byte(" "))...), '\n')
		}
	}
}

// nextLine returns the next line, if it has come to its end: LF, CR, or both.
func (o *opening) nextLine() (line []byte, whole bool) {
	if o.cr && o.line < len(o.events) {
		if o.cr = false; o.events[o.line] == '\n' {
			o.line++
		}
	}
	o.scanned = max(o.scanned, o.line)
	n := bytes.IndexAny(o.events[o.scanned:], "\r\n")
	if n < 0 {
		o.scanned = len(o.events)
		return nil, false
	}
	end := o.scanned + n
	line = o.events[o.line:end]
	if o.line == 0 {
		line = bytes.TrimPrefix(line, []byte("\ufeff"))
	}
	o.line, o.cr = end+1, o.events[end] == '\r'
	return line, true
}

// cutEvent cuts the first event off.
func cutEvent(events []byte) (event, rest []byte, whole bool) {
	if event, rest, whole = bytes.Cut(events, []byte("\n\n")); whole {
		return event, rest, true
	}
	return bytes.Cut(events, []byte("\r\n\r\n"))
}

// failureMark begins an event that is an error. Within what was generated the quotes
// would be escaped.
var failureMark = []byte(`data: {"error"`)

// failureIn returns the status of an error that begins in a piece of a stream, or 0. What
// came before the piece ends in before.
func failureIn(before, piece []byte) int {
	part := len(failureMark) - 1
	var seam [32]byte // of the two; no allocation for each piece
	n := copy(seam[:], before[len(before)-part:])
	n += copy(seam[n:], piece[:min(part, len(piece))])
	if bytes.Contains(seam[:n], failureMark) {
		return http.StatusInternalServerError // what follows comes later
	}
	at := bytes.Index(piece, failureMark)
	if at < 0 {
		return 0
	}
	event, _, _ := cutEvent(piece[at:])
	if a := errorIn(event[len("data:"):]); a != nil {
		return a.status
	}
	return http.StatusInternalServerError
}

// errorIn returns the error that an event is, as an answer, or nil. It has one of vLLM's
// forms: {"error": {"message", "code", …}} or {"object": "error", "message", "code", …}.
func errorIn(data []byte) *answer {
	if !bytes.Contains(data, []byte(`"error"`)) {
		return nil // most are cheaply told
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
	a := &answer{status: http.StatusInternalServerError, header: http.Header{"Content-Type": {"application/json"}}}
	var code json.Number
	if json.Unmarshal(detail["code"], &code) == nil {
		if n, _ := code.Float64(); n >= 400 && n < 600 {
			a.status = int(n)
		}
	}
	_, _ = a.body.Write(bytes.TrimSpace(data))
	return a
}

// saysNothing reports whether an event is a chunk without anything that was generated:
// it may have a role.
func saysNothing(data []byte) bool {
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
	return len(*chunk.Choices) > 0 || chunk.Usage == nil // else it is the end
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
