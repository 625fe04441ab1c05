package stream

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	roleEvent  = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}` + "\n\n"
	tokenEvent = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	errorEvent = `data: {"error":{"message":"no","code":503}}` + "\n\n"
	doneEvent  = "data: [DONE]\n\n"
	usage      = `{"usage":{"prompt_tokens_details":{"cached_tokens":8192}}}`
)

// scenario is an answer of an engine, and what is to become of it.
type scenario struct {
	status  int
	header  http.Header
	pieces  []string
	ending  Ending
	refused bool // the status is not accepted
	cached  *int

	want   Result // but for Held
	held   int    // status of Held; 0: the client has the answer
	err    error  // of Held
	client string // what the client has
}

// An answer goes to the client with its real status, or is held as a whole.
func TestResponse(t *testing.T) {
	t.Parallel()
	events := http.Header{"Content-Type": {"text/event-stream; charset=utf-8"}}
	compressed := http.Header{"Content-Type": {eventStream}, "Content-Encoding": {"gzip"}}
	object := http.Header{"Content-Type": {"application/json"}}
	six := 6
	for name, tc := range map[string]scenario{
		"nothing":                      {},
		"object":                       {status: 200, header: object, pieces: []string{"{", "}"}, want: Result{Status: 200}, client: "{}"},
		"object without a header":      {pieces: []string{"{}"}, held: 200},
		"object, cut":                  {status: 200, header: object, pieces: []string{"{"}, ending: Cut, want: Result{Status: 200, Cut: true}, client: "{"},
		"object, not framed":           {status: 200, header: object, pieces: []string{"{}"}, ending: Unframed, want: Result{Status: 200}, client: "{}"},
		"no body":                      {status: 201, want: Result{Status: 201}},
		"cut before its first byte":    {status: 200, header: object, ending: Cut, held: 200},
		"not accepted":                 {status: 503, header: object, pieces: []string{"{}"}, refused: true, held: 503},
		"error that is accepted":       {status: 400, header: object, pieces: []string{"{}"}, want: Result{Status: 400}, client: "{}"},
		"stream":                       {status: 200, header: events, pieces: []string{roleEvent, tokenEvent, doneEvent}, want: Result{Status: 200, Stream: true, Done: true}, client: roleEvent + tokenEvent + doneEvent},
		"stream, left at its end":      {status: 200, header: events, pieces: []string{tokenEvent, doneEvent}, ending: Cut, want: Result{Status: 200, Stream: true, Done: true, Cut: true}, client: tokenEvent + doneEvent},
		"stream without content":       {status: 200, header: events, pieces: []string{roleEvent}, want: Result{Status: 200, Stream: true}, client: roleEvent},
		"empty stream":                 {status: 200, header: events, want: Result{Status: 200, Stream: true}},
		"stream, cut in its opening":   {status: 200, header: events, pieces: []string{roleEvent}, ending: Cut, held: 200},
		"stream, cut":                  {status: 200, header: events, pieces: []string{tokenEvent, "da"}, ending: Cut, want: Result{Status: 200, Stream: true, Cut: true}, client: tokenEvent + "da"},
		"stream, not framed":           {status: 200, header: events, pieces: []string{tokenEvent}, ending: Unframed, want: Result{Status: 200, Stream: true, Cut: true}, client: tokenEvent},
		"stream, not framed, but done": {status: 200, header: events, pieces: []string{tokenEvent, doneEvent}, ending: Unframed, want: Result{Status: 200, Stream: true, Done: true}, client: tokenEvent + doneEvent},
		"stream, compressed":           {status: 200, header: compressed, pieces: []string{"x"}, held: 200, err: ErrCompressed},
		"error as the first event":     {status: 200, header: events, pieces: []string{roleEvent, errorEvent, doneEvent}, held: 503, want: Result{Failed: true}},
		"error, then cut":              {status: 200, header: events, pieces: []string{errorEvent}, ending: Cut, held: 503, want: Result{Failed: true}},
		"error after content":          {status: 200, header: events, pieces: []string{tokenEvent, errorEvent}, want: Result{Status: 200, Stream: true, StreamError: 503}, client: tokenEvent + errorEvent},
		"usage":                        {status: 200, header: object, pieces: []string{usage[:30], usage[30:]}, cached: &six, want: Result{Status: 200}, client: strings.Replace(usage, "8192", "6   ", 1)},
		"usage that is not complete":   {status: 200, header: object, pieces: []string{usage[:50]}, cached: &six, ending: Cut, want: Result{Status: 200, Cut: true}, client: usage[:50]},
		"usage of an error":            {status: 400, header: object, pieces: []string{usage}, cached: &six, want: Result{Status: 400}, client: usage},
	} {
		t.Run(name, func(t *testing.T) { tc.check(t) })
	}
}

func (s scenario) check(t *testing.T) {
	client := httptest.NewRecorder()
	commits := 0
	w := NewResponse(Config{
		Client: client, RequestID: "id", Streamed: true, CachedTokens: func() *int { return s.cached }, Silence: new(Silence),
		Accept: func(int) bool { return !s.refused },
		OnCommit: func(status int, stream bool) {
			commits++
			assert.Equal(t, s.want.Status, status)
			assert.Equal(t, s.want.Stream, stream)
			assert.Empty(t, client.Body.String())
		},
	})
	w.WriteHeader(http.StatusEarlyHints)
	for name, values := range s.header {
		w.Header()[name] = values
	}
	w.Header().Set("X-Request-Id", "the engine's")
	if s.status != 0 {
		w.WriteHeader(s.status)
	}
	for _, p := range s.pieces {
		_, _ = w.Write([]byte(p))
		assert.NoError(t, w.FlushError())
	}
	got := w.End(s.ending)
	held := got.Held
	got.Held = nil
	assert.Equal(t, s.want, got)
	assert.Equal(t, s.client, client.Body.String())
	if s.want.Status == 0 {
		require.NotNil(t, held)
		assert.Equal(t, s.held, held.Status)
		assert.ErrorIs(t, held.Err, s.err)
		assert.Zero(t, commits)
		assert.Empty(t, client.Header())
		return
	}
	assert.Nil(t, held)
	assert.Equal(t, 1, commits)
	assert.Equal(t, s.want.Status, client.Code)
	assert.Equal(t, []string{"id"}, client.Header()["X-Request-Id"])
	assert.Equal(t, s.header["Content-Type"], client.Header()["Content-Type"])
}

// An answer that broke off ends with an error event, if it is a stream.
func TestAbort(t *testing.T) {
	t.Parallel()
	const event = "data: {\"error\":1}\n\n"
	for name, tc := range map[string]struct{ contentType, answer, want string }{
		"after an event":      {eventStream, tokenEvent, tokenEvent + event},
		"after a CRLF event":  {eventStream, "data: x\r\n\r\n", "data: x\r\n\r\n" + event},
		"after a cut event":   {eventStream, tokenEvent + "data: {", tokenEvent + "data: {\n\n" + event},
		"not in an object":    {"application/json", "{", "{"},
		"not before a status": {eventStream, roleEvent, ""},
	} {
		t.Run(name, func(t *testing.T) {
			client := httptest.NewRecorder()
			w := NewResponse(Config{Client: client, Silence: new(Silence), Accept: func(int) bool { return true }, OnCommit: func(int, bool) {}})
			w.Header().Set("Content-Type", tc.contentType)
			w.WriteHeader(http.StatusOK)
			_, _ = io.WriteString(w, tc.answer)
			w.End(Cut)
			w.Abort([]byte("{\"error\":1}\n"))
			assert.Equal(t, tc.want, client.Body.String())
		})
	}
}

// goneClient takes so many writes.
type goneClient struct {
	http.ResponseWriter
	writes int
}

func (c *goneClient) Write(p []byte) (int, error) {
	if c.writes--; c.writes < 0 {
		return 0, errors.New("gone")
	}
	return c.ResponseWriter.Write(p)
}

// The engine's answer ends once when the client is gone, and reverse_proxy sees no error.
func TestClientGone(t *testing.T) {
	t.Parallel()
	stopped := 0
	w := NewResponse(Config{
		Client: &goneClient{httptest.NewRecorder(), 1}, Silence: new(Silence), Accept: func(int) bool { return true },
		OnCommit: func(int, bool) {}, Stop: func() { stopped++ },
	})
	w.Header().Set("Content-Type", eventStream)
	w.WriteHeader(http.StatusOK)
	for range 3 {
		n, err := io.WriteString(w, tokenEvent)
		assert.NoError(t, err)
		assert.Equal(t, len(tokenEvent), n)
	}
	assert.Equal(t, 1, stopped)
	assert.Equal(t, Result{Status: 200, Stream: true, Cut: true, ClientGone: true}, w.End(Cut))
}

// A client that has had a comment has the status and type of a stream.
func TestResponseAfterComments(t *testing.T) {
	t.Parallel()
	for contentType, want := range map[string]Result{
		eventStream:        {Status: 200, Stream: true, Done: true},
		"application/json": {},
	} {
		client := httptest.NewRecorder()
		k := StartKeepalive(client, "id", time.Hour)
		k.comment()
		w := NewResponse(Config{Client: client, RequestID: "id", Silence: new(Silence), Keepalive: k, Accept: func(int) bool { return true }, OnCommit: func(int, bool) {}})
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("X-Engine", "1")
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, tokenEvent+doneEvent)
		got := w.End(Complete)
		assert.Equal(t, want.Status == 0, got.Held != nil)
		got.Held = nil
		assert.Equal(t, want, got)
		k.comment() // has no effect any more
		assert.Equal(t, want.Stream, client.Body.String() == ": keep-alive\n\n"+tokenEvent+doneEvent)
		assert.Equal(t, http.Header{"Content-Type": {eventStream}, "Cache-Control": {"no-cache"}, "X-Request-Id": {"id"}}, client.Header())
	}
}
