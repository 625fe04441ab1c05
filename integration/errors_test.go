package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// errorRoutes are error routes that answer with all they know about an error.
const errorRoutes = "handle_errors {\nheader X-Routes errors\nrespond \"{err.status_code} {err.message}\"\n}"

// startWithErrorRoutes runs Caddy with a site that has error routes.
func startWithErrorRoutes(t *testing.T, block string) *caddy {
	t.Helper()
	return startSite(t, "epd_proxy {\n"+block+"\n}\n"+errorRoutes)
}

// With handle_errors, errors that do not come from an engine go to Caddy's error routes.
// Status, headers, access log and metrics are the same without it.
func TestHandleErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		block    []string
		fail     func(*engines)
		busy     bool   // an encoder works on another request
		method   string // empty: POST
		path     string // empty: the path of chats
		body     string
		status   int
		message  string
		header   []string // names of headers that the answer has
		answered bool     // by an engine, so the error is passed on
	}{
		"no such route": {path: "/nowhere", status: 404, message: "there is no such route"},
		"wrong method":  {method: http.MethodGet, status: 405, message: "use POST here", header: []string{"Allow"}},
		"no JSON":       {body: "{", status: 400, message: "the body is not valid JSON"},
		"too large":     {block: []string{"max_body_size 1KiB"}, body: chat("", text(strings.Repeat("x", 2000))), status: 413, message: "the body is larger than 1024 bytes"},
		"no instance": {fail: func(e *engines) { e.encode[0].Kill() }, body: chat("", image("AAAA")),
			status: 503, message: "no instance of the encode stage can be reached"},
		"queue is full": {block: []string{"encode_limit 1", "queue_size 0"}, busy: true,
			body: chat("", image("AAAA")), status: 503, message: "all instances of the encode stage are busy; try again later", header: []string{"Retry-After"}},
		"time limit": {block: []string{"encode_timeout 50ms"}, fail: func(e *engines) { setFault(fault{Kind: fakevllm.Hang}, e.encode...) },
			body: chat("", image("AAAA")), status: 504, message: "the encode stage did not answer in time"},
		"nonsense": {fail: func(e *engines) { setFault(fault{Kind: fakevllm.Garbage}, e.prefill...) },
			body: chat("", text("x")), status: 502, message: "the prefill stage gave no valid answer"},
		"no list of models": {fail: func(e *engines) { e.decode[0].Kill() }, method: http.MethodGet, path: "/v1/models", status: 503, message: "no instance of the decode stage can be reached"},
		"an encoder's error": {fail: func(e *engines) { setFault(fault{Kind: fakevllm.Status, Code: 400, Message: "too small"}, e.encode...) },
			body: chat("", image("AAAA")), status: 400, message: "too small", answered: true},
		"decode's error": {fail: func(e *engines) {
			setFault(fault{Kind: fakevllm.Status, Code: 503, Message: "no GPU", Header: http.Header{"Retry-After": {"7"}}}, e.decode...)
		}, body: chat("", text("x")), status: 503, message: "no GPU", header: []string{"Retry-After"}, answered: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var before []any
			for _, routed := range []bool{false, true} {
				e := startEngines(t, 1, 1, 1)
				block := append([]string{"retries 0"}, tc.block...)
				if routed {
					block = append(block, "handle_errors")
				}
				c := startWithErrorRoutes(t, e.block(block...))
				if tc.fail != nil {
					tc.fail(e)
				}
				if tc.busy {
					defer c.occupy(t, chat("", image("HELD")), "HELD", e.encode...)()
				}
				method, path := http.MethodPost, chatPath
				if tc.method != "" {
					method = tc.method
				}
				if tc.path != "" {
					path = tc.path
				}
				r := c.do(t, method, path, tc.body, "X-Request-Id: mine")
				assert.Equal(t, tc.status, r.StatusCode)
				assert.Equal(t, "mine", r.id())
				for _, name := range tc.header {
					assert.NotEmpty(t, r.Header.Get(name), name)
				}
				if routed && !tc.answered {
					assert.Equal(t, "errors", r.Header.Get("X-Routes"))
					assert.True(t, strings.HasPrefix(string(r.body), fmt.Sprint(tc.status, " ", tc.message)), "%s", r.body)
				} else {
					assert.Empty(t, r.Header.Get("X-Routes"))
					assert.Contains(t, r.apiError(t).str("message"), tc.message)
				}
				access, metrics := c.access(t, "mine"), c.metrics(t)
				same := []any{access.str("epd", "outcome"), access.at("status"), access.at("epd", "encode", "attempts"), len(c.failures("mine"))}
				for name, value := range metrics {
					if strings.HasPrefix(name, "caddy_epd_requests_total") || strings.HasPrefix(name, "caddy_epd_stage_failures_total") {
						same = append(same, fmt.Sprint(name, " ", value))
					}
				}
				if before != nil {
					assert.ElementsMatch(t, before, same)
				}
				before = same
			}
		})
	}
}

// A site without error routes answers with only the status.
func TestHandleErrorsWithoutRoutes(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("handle_errors"))
	r := c.post(t, "no json")
	assert.Equal(t, http.StatusBadRequest, r.StatusCode)
	assert.Empty(t, r.body)
	assert.NotEmpty(t, r.id())
	assertAnswer(t, chat("", image("AAAA")), c.post(t, chat("", image("AAAA"))))
}

// A stream that has begun ends with an error event, also with handle_errors.
func TestHandleErrorsOfStreams(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startWithErrorRoutes(t, e.block("handle_errors", "retries 0", "stream_keepalive 20ms", "encode_timeout 500ms"))
	setFault(fault{Kind: fakevllm.Hang}, e.encode...)
	res, err := c.send(t.Context(), c.Client, http.MethodPost, chatPath, stream(chat("", image("AAAA"))))
	require.NoError(t, err)
	defer res.Body.Close()
	assert.Equal(t, http.StatusOK, res.StatusCode)
	got, _ := io.ReadAll(res.Body) // it breaks off
	assert.Contains(t, string(got), `data: {"error":{"message":"the encode stage did not answer in time"`)
	assert.NotContains(t, string(got), "504 ")
}

// A client that is rejected before its body has arrived gets the answer of the error routes,
// whether or not it goes on to send; no part of the body is read as a request.
func TestHandleErrorsOfUploads(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startWithErrorRoutes(t, e.block("handle_errors", "max_body_size 1MiB"))
	const hidden = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, tc := range map[string]struct {
		head string
		body string
		size int // Content-Length; 0: chunked
		want string
	}{
		"large":                {"POST " + chatPath, strings.Repeat("x", 64<<20), 64 << 20, "413 the body is larger than 1048576 bytes"},
		"large, chunked":       {"POST " + chatPath, chunked(strings.Repeat(hidden, 1<<16)), 0, "413 the body is larger than 1048576 bytes"},
		"no route":             {"POST /nowhere", strings.Repeat(hidden, 8_000), 8_000 * len(hidden), "404 there is no such route"},
		"no route, small":      {"POST /nowhere", strings.Repeat(hidden, 10), 10 * len(hidden), "404 there is no such route"},
		"never sent":           {"POST " + chatPath, hidden, 1 << 40, "413 the body is larger than 1048576 bytes"},
		"small and never sent": {"POST /nowhere", hidden, 9999, "404 there is no such route"},
		"expects a continue":   {"POST /nowhere HTTP/1.1\r\nExpect: 100-continue", strings.Repeat(hidden, 8_000), 8_000 * len(hidden), "404 there is no such route"},
	} {
		t.Run(name, func(t *testing.T) {
			conn := c.dial(t)
			start := time.Now()
			head := tc.head
			if !strings.Contains(head, "HTTP/1.1") {
				head += " HTTP/1.1"
			}
			framing := fmt.Sprintf("Content-Length: %d", tc.size)
			if tc.size == 0 {
				framing = "Transfer-Encoding: chunked"
			}
			go func() {
				_, _ = fmt.Fprintf(conn, "%s\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n\r\n", head, framing)
				_, _ = io.WriteString(conn, tc.body)
			}()
			require.NoError(t, conn.SetReadDeadline(start.Add(waitLong)))
			r := bufio.NewReader(conn)
			res, err := http.ReadResponse(r, nil)
			require.NoError(t, err)
			got, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			assert.Equal(t, tc.want, string(got))
			assert.Less(t, time.Since(start), 5*time.Second)
			if res.Close {
				_, err = http.ReadResponse(r, nil)
				assert.Error(t, err, "the body was read as a request")
				return
			}
			_, err = io.WriteString(conn, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
			require.NoError(t, err)
			res, err = http.ReadResponse(r, nil)
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, res.StatusCode)
		})
	}
	e.assertRequests(t, 0, 0, 0)
}
