package epdhandler

import (
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestOpening(t *testing.T) {
	const (
		role    = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
		token   = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
		failure = `{"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}`
		failed  = "data: " + failure + "\n\n"
		done    = "data: [DONE]\n\n"
	)
	for name, tc := range map[string]struct {
		stream string
		held   string // what is held back when the stream is known to have begun
		status int    // of the error, if it is one
	}{
		"role, then a token":       {stream: role + token + done, held: role + token},
		"token":                    {stream: token + done, held: token},
		"text":                     {stream: `data: {"choices":[{"index":0,"text":"a"}]}` + "\n\n" + done, held: `data: {"choices":[{"index":0,"text":"a"}]}` + "\n\n"},
		"role and content":         {stream: strings.Replace(role, `""`, `"a"`, 1), held: strings.Replace(role, `""`, `"a"`, 1)},
		"role and end":             {stream: strings.Replace(role, `null`, `"stop"`, 1), held: strings.Replace(role, `null`, `"stop"`, 1)},
		"roles of two choices":     {stream: role + role + token, held: role + role + token},
		"comment":                  {stream: ": hello\n\n" + role + token, held: ": hello\n\n" + role + token},
		"nothing but the end":      {stream: done, held: done},
		"lines ended as in HTTP":   {stream: strings.ReplaceAll(role+token+done, "\n", "\r\n"), held: strings.ReplaceAll(role+token, "\n", "\r\n")},
		"other events":             {stream: "event: x\n" + failed, held: "event: x\n" + failed},
		"no JSON":                  {stream: `data: {"error` + "\n\n", held: `data: {"error` + "\n\n"},
		"role that is no object":   {stream: `data: "role"` + "\n\n", held: `data: "role"` + "\n\n"},
		"an event without its end": {stream: role + failed[:len(failed)-1]},
		"role without end":         {stream: role},
		"error after role":         {stream: role + failed + done, status: 500},
		"error":                    {stream: failed, status: 500},
		"error of the request":     {stream: strings.Replace(failed, "500", "400", 1), status: 400},
		"code that is no status":   {stream: strings.Replace(failed, "500", `"e"`, 1), status: 500},
		"code out of range":        {stream: strings.Replace(failed, "500", "200", 1), status: 500},
		"error, lines as in HTTP":  {stream: strings.ReplaceAll(role+failed, "\n", "\r\n"), status: 500},
	} {
		t.Run(name, func(t *testing.T) {
			for _, size := range []int{1, 7, len(tc.stream)} {
				o, held := new(opening), ""
				for rest := tc.stream; rest != "" && held == ""; {
					n := min(size, len(rest))
					if o.add([]byte(rest[:n])) {
						held = string(o.events)
					}
					rest = rest[n:]
				}
				if size == 1 || tc.held == "" {
					assert.Equal(t, tc.held, held)
				} else {
					assert.True(t, strings.HasPrefix(held, tc.held))
				}
				if tc.status == 0 {
					assert.Nil(t, o.failed)
				} else if assert.NotNil(t, o.failed) {
					assert.Equal(t, tc.status, o.failed.status)
					assert.Equal(t, http.Header{"Content-Type": {"application/json"}}, o.failed.header)
					assert.JSONEq(t, tc.stream[strings.Index(tc.stream, `{"error"`):strings.LastIndex(tc.stream, "}}")+2], o.failed.body.String())
				}
			}
		})
	}
}

// However large the first event is, only so much is held back.
func TestOpeningIsBounded(t *testing.T) {
	o, piece := new(opening), make([]byte, 1<<10)
	held := 0
	for !o.add(piece) {
		held += len(piece)
		if !assert.LessOrEqual(t, held, maxOpening) {
			return
		}
	}
	assert.Equal(t, maxOpening, held)
}

// An error is noticed however a stream is cut, and what was generated is none.
func TestFailureIn(t *testing.T) {
	const before, after = `data: {"choices":[{"delta":{"content":"a"}}]}` + "\n\n", "\n\ndata: [DONE]\n\n"
	for name, tc := range map[string]struct {
		event string
		want  int
	}{
		"error":            {`data: {"error": {"message": "x", "code": 500}}`, 500},
		"of the request":   {`data: {"error":{"message":"x","code":400}}`, 400},
		"without a code":   {`data: {"error":"x"}`, 500},
		"generated":        {`data: {"choices":[{"delta":{"content":"data: {\"error\": 1"}}]}`, 0},
		"nothing like one": {`data: {"errors":1}`, 0},
	} {
		t.Run(name, func(t *testing.T) {
			stream := before + tc.event + after
			for cut := range len(stream) {
				w, got := &response{}, 0
				for _, piece := range []string{stream[:cut], stream[cut:]} {
					if status := failureIn(w.end[:], []byte(piece)); got == 0 {
						got = status
					}
					w.keepEnd([]byte(piece))
				}
				if tc.want == 400 && got == 500 {
					continue // the cut is within the event
				}
				assert.Equal(t, tc.want, got, "cut at %d", cut)
			}
			assert.Equal(t, tc.want, failureIn(make([]byte, 16), []byte(stream)))
		})
	}
}
