package stream

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

// Events without content are held back, and an error that follows is an answer with its
// status, however the stream is written and cut into pieces.
func TestOpening(t *testing.T) {
	t.Parallel()
	const (
		role    = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n"
		token   = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
		failure = `{"error": {"message": "Internal server error", "type": "InternalServerError", "code": 500}}`
		failed  = "data: " + failure + "\n\n"
		old     = `{"object":"error","message":"no","type":"BadRequestError","param":null,"code":400}`
		done    = "data: [DONE]\n\n"
	)
	chunk := func(members string) string { return "data: {" + members + "}\n\n" }
	crlf := strings.NewReplacer("\n", "\r\n")
	cr := strings.NewReplacer("\n", "\r")
	for name, tc := range map[string]struct {
		stream string
		held   string // what is held back when the stream is known to have begun
		status int    // of the error, if it is one
		want   string // its body; empty: that of failed, with the status
	}{
		"role, then a token":     {stream: role + token + done, held: role + token},
		"token":                  {stream: token + done, held: token},
		"text":                   {stream: chunk(`"choices":[{"index":0,"text":"a"}]`) + done, held: chunk(`"choices":[{"index":0,"text":"a"}]`)},
		"text that is role":      {stream: chunk(`"choices":[{"text":"role"}]`) + done, held: chunk(`"choices":[{"text":"role"}]`)},
		"text that is an error":  {stream: chunk(`"choices":[{"text":"{\"error\":{}}"}]`) + done, held: chunk(`"choices":[{"text":"{\"error\":{}}"}]`)},
		"role and content":       {stream: strings.Replace(role, `""`, `"a"`, 1), held: strings.Replace(role, `""`, `"a"`, 1)},
		"role and end":           {stream: strings.Replace(role, `null`, `"stop"`, 1), held: strings.Replace(role, `null`, `"stop"`, 1)},
		"roles of two choices":   {stream: role + role + token, held: role + role + token},
		"role with token ids":    {stream: chunk(`"choices":[{"delta":{"role":"a"}}],"prompt_token_ids":[1],"usage":{"completion_tokens":0}`) + token, held: chunk(`"choices":[{"delta":{"role":"a"}}],"prompt_token_ids":[1],"usage":{"completion_tokens":0}`) + token},
		"token ids without text": {stream: chunk(`"choices":[{"text":"","token_ids":[1]}]`), held: chunk(`"choices":[{"text":"","token_ids":[1]}]`)},
		"call of a tool":         {stream: chunk(`"choices":[{"delta":{"tool_calls":[{"index":0}]}}]`), held: chunk(`"choices":[{"delta":{"tool_calls":[{"index":0}]}}]`)},
		"empty chunks":           {stream: chunk(`"choices":[]`) + chunk(`"choices":[{"text":""}]`) + chunk(`"choices":[{"delta":{"tool_calls":[],"content":null}}]`) + token, held: chunk(`"choices":[]`) + chunk(`"choices":[{"text":""}]`) + chunk(`"choices":[{"delta":{"tool_calls":[],"content":null}}]`) + token},
		"empty events":           {stream: "\n\ndata:\n\ndata\n\nid: 1\n\n" + token, held: "\n\ndata:\n\ndata\n\nid: 1\n\n" + token},
		"usage alone":            {stream: chunk(`"choices":[],"usage":{}`), held: chunk(`"choices":[],"usage":{}`)},
		"comment":                {stream: ": hello\n\n" + role + token, held: ": hello\n\n" + role + token},
		"nothing but the end":    {stream: done, held: done},
		"lines end with CRLF":    {stream: crlf.Replace(role + token + done), held: strings.TrimSuffix(crlf.Replace(role+token), "\n")},
		"lines end with CR":      {stream: cr.Replace(role + token + done), held: cr.Replace(role + token)},
		"no JSON":                {stream: `data: {"error` + "\n\n", held: `data: {"error` + "\n\n"},
		"role that is no object": {stream: `data: "role"` + "\n\n", held: `data: "role"` + "\n\n"},
		"error that is null":     {stream: chunk(`"error":null`), held: chunk(`"error":null`)},
		"chunk, error null":      {stream: chunk(`"error":null,"choices":[{"text":""}]`) + token, held: chunk(`"error":null,"choices":[{"text":""}]`) + token},
		"error that is a number": {stream: chunk(`"error":1`), held: chunk(`"error":1`)},
		"error of another case":  {stream: chunk(`"Error":{"code":400}`), held: chunk(`"Error":{"code":400}`)},
		"role without end":       {stream: role},
		"comment without end":    {stream: ": hello"},
		"nothing":                {stream: ""},
		"error after role":       {stream: role + failed + done, status: 500},
		"error after a comment":  {stream: ": hello\n\n" + role + ": hello\n" + failed + done, status: 500},
		"error":                  {stream: failed, status: 500},
		"error of the request":   {stream: strings.Replace(failed, "500", "400", 1), status: 400},
		"code that is no status": {stream: strings.Replace(failed, "500", `"e"`, 1), status: 500, want: strings.Replace(failure, "500", `"e"`, 1)},
		"code in a string":       {stream: strings.Replace(failed, "500", `"404"`, 1), status: 404, want: strings.Replace(failure, "500", `"404"`, 1)},
		"code out of range":      {stream: strings.Replace(failed, "500", "200", 1), status: 500, want: strings.Replace(failure, "500", "200", 1)},
		"code too large":         {stream: strings.Replace(failed, "500", "1e999", 1), status: 500, want: strings.Replace(failure, "500", "1e999", 1)},
		"error, CRLF":            {stream: crlf.Replace(role + failed), status: 500},
		"error, CR":              {stream: cr.Replace(role + failed), status: 500},
		"error, mixed line ends": {stream: strings.Replace(role, "\n\n", "\r\n\r", 1) + strings.Replace(failed, "\n\n", "\r\r\n", 1), status: 500},
		"error, LF then CRLF":    {stream: strings.Replace(role, "\n\n", "\n\r\n", 1) + failed, status: 500},
		"error without a space":  {stream: "data:" + failure + "\n\n", status: 500},
		"error with more spaces": {stream: "data:  \t" + failure + " \n\n", status: 500},
		"error of several lines": {stream: "data: " + strings.ReplaceAll(failure, ", ", ",\ndata: ") + "\n\n", status: 500, want: strings.ReplaceAll(failure, ", ", ",\n")},
		"error with a name":      {stream: "event: error\nid: 1\n" + failed, status: 500},
		"error after its name":   {stream: "data: " + failure + "\nevent: error\n\n", status: 500},
		"error with a mark":      {stream: "\ufeff" + failed, status: 500},
		"error of another order": {stream: chunk(`"id":1,"error":{"code":503}`), status: 503, want: `{"id":1,"error":{"code":503}}`},
		"error of old engines":   {stream: "data: " + old + "\n\n", status: 400, want: old},
		"error, a string":        {stream: chunk(`"error":"no"`), status: 500, want: `{"error":"no"}`},
		"error without its end":  {stream: role + failed[:len(failed)-1], status: 500},
		"error, not even a line": {stream: role + "data: " + failure, status: 500},
		"what follows the error": {stream: failed + token + failed, status: 500},
	} {
		t.Run(name, func(t *testing.T) {
			for cut := range len(tc.stream) + 1 {
				checkOpening(t, tc.held, tc.status, tc.stream[:cut], tc.stream[cut:])
			}
			o := checkOpening(t, tc.held, tc.status, strings.Split(tc.stream, "")...)
			if tc.status == 0 {
				return
			}
			want := tc.want
			if want == "" {
				want = strings.Replace(failure, "500", strconv.Itoa(tc.status), 1)
			}
			assert.Equal(t, http.Header{"Content-Type": {"application/json"}}, o.failed.Headers)
			assert.Equal(t, want, o.failed.Body.String())
		})
	}
}

// checkOpening adds these pieces and checks the result: the piece with which held ends is the
// one that begins the stream, or there is an error.
func checkOpening(t *testing.T, held string, status int, pieces ...string) *firstEvents {
	t.Helper()
	o, begun := new(firstEvents), false
	for _, p := range pieces {
		before := len(o.bytes)
		if begun = o.add([]byte(p)); begun {
			assert.True(t, strings.HasPrefix(string(o.bytes), held) && before < len(held), "begun with %q", o.bytes)
			break
		}
	}
	assert.Equal(t, held != "", begun, "%q", pieces)
	if !begun {
		o.end()
	}
	if status == 0 {
		assert.Nil(t, o.failed)
		if !begun {
			assert.Equal(t, strings.Join(pieces, ""), string(o.bytes))
		}
	} else if assert.NotNil(t, o.failed, "%q", pieces) {
		assert.Equal(t, status, o.failed.Status)
	}
	return o
}

// The result does not depend on how the stream is cut.
func FuzzOpening(f *testing.F) {
	for _, s := range []string{
		": a\n\ndata: {\"choices\":[{\"delta\":{\"role\":\"a\"}}]}\n\ndata: {\"error\":{\"code\":400}}\n\n", "\ufeffdata: {\"error\":\ndata:\"x\"}\r\n\rdata: {}\n\n",
		"event: error\rdata: {\"object\":\"error\",\"code\":\"503\"}\r\r", "data: {\"choices\":[{\"text\":\"role\"}]}\n\n", "data:\n\n\n\ndata: [DONE]",
	} {
		f.Add([]byte(s), uint16(3))
	}
	f.Fuzz(func(t *testing.T, stream []byte, cut uint16) {
		read := func(pieces ...[]byte) (begun bool, o *firstEvents) {
			o = new(firstEvents)
			for _, p := range pieces {
				if begun = o.add(p); begun {
					return true, o
				}
			}
			o.end()
			return false, o
		}
		at := int(cut) % (len(stream) + 1)
		begun, o := read(stream)
		for _, pieces := range [][][]byte{{stream[:at], stream[at:]}, bytes.SplitAfter(stream, nil)} {
			b, other := read(pieces...)
			assert.Equal(t, begun, b)
			assert.True(t, bytes.HasPrefix(stream, other.bytes))
			if assert.Equal(t, o.failed == nil, other.failed == nil) && o.failed != nil {
				assert.Equal(t, o.failed.Status, other.failed.Status)
				assert.Equal(t, o.failed.Body.String(), other.failed.Body.String())
			}
		}
	})
}

// However large the first event is, only so much is held back.
func TestOpeningIsBounded(t *testing.T) {
	t.Parallel()
	o, piece := new(firstEvents), make([]byte, 1<<10)
	held := 0
	for !o.add(piece) {
		held += len(piece)
		if !assert.LessOrEqual(t, held, maxOpening) {
			return
		}
	}
	assert.Equal(t, maxOpening, held)
}
