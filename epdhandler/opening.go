package epdhandler

import (
	"bytes"
	"encoding/json"
	"net/http"
)

// maxOpening bounds what is held back of a stream. Its first events are far smaller,
// unless they have what a client asked for, such as the log probabilities of a prompt.
const maxOpening = 64 << 10

// opening is the beginning of a stream, held back until it shows whether decode has what
// it needs from other engines: vLLM gives a stream the status 200 and an event with the
// role before that, and the error, if there is one, in the event after it.
type opening struct {
	events []byte
	seen   int     // how much of events says nothing yet
	failed *answer // what the engine would have answered if it were no stream
}

// add takes what has come, and reports whether it shows that the stream has begun.
func (o *opening) add(p []byte) (begun bool) {
	if o.failed != nil {
		return false
	}
	o.events = append(o.events, p...)
	for {
		event, rest, whole := cutEvent(o.events[o.seen:])
		if !whole {
			return len(o.events) > maxOpening
		}
		if !bytes.HasPrefix(event, []byte(":")) { // a comment
			data, isData := bytes.CutPrefix(event, []byte("data:"))
			if !isData {
				return true
			}
			if o.failed = errorIn(data); o.failed != nil {
				return false
			}
			if !onlyRole(data) {
				return true
			}
		}
		o.seen = len(o.events) - len(rest)
	}
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

// errorIn returns the error that an event is, as an answer, or nil.
func errorIn(data []byte) *answer {
	data = bytes.TrimSpace(data)
	if !bytes.HasPrefix(data, []byte(`{"error"`)) {
		return nil
	}
	var event struct {
		Error struct {
			Code any `json:"code"`
		} `json:"error"`
	}
	if json.Unmarshal(data, &event) != nil {
		return nil
	}
	a := &answer{status: http.StatusInternalServerError, header: http.Header{"Content-Type": {"application/json"}}}
	if code, isNumber := event.Error.Code.(float64); isNumber && code >= 400 && code < 600 {
		a.status = int(code)
	}
	_, _ = a.body.Write(data)
	return a
}

// onlyRole reports whether a chunk has a role, and nothing that was generated.
func onlyRole(data []byte) bool {
	if !bytes.Contains(data, []byte(`"role"`)) {
		return false // most are cheaply told
	}
	var chunk struct {
		Choices []struct {
			Delta        map[string]any `json:"delta"`
			FinishReason any            `json:"finish_reason"`
		} `json:"choices"`
	}
	if json.Unmarshal(data, &chunk) != nil {
		return false
	}
	for _, c := range chunk.Choices {
		for name, value := range c.Delta {
			if name != "role" && value != nil && value != "" {
				return false
			}
		}
		if c.FinishReason != nil {
			return false
		}
	}
	return true
}
