package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// converse sends bytes on a new connection and returns the statuses of the responses
// until it is closed. A last request closes it if nothing has before: its 404 is not
// among the statuses; inStep reports whether it was answered.
func (c *caddy) converse(t *testing.T, raw string) (statuses []int, inStep bool) {
	t.Helper()
	conn := c.dial(t)
	require.NoError(t, conn.SetDeadline(time.Now().Add(waitLong)))
	go func() {
		_, _ = io.WriteString(conn, raw+"GET /last HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: last\r\nConnection: close\r\n\r\n")
	}()
	r := bufio.NewReader(conn)
	for {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "no answer, and the connection is not closed")
			return statuses, inStep
		}
		if res.StatusCode == http.StatusContinue {
			continue
		}
		_, _ = io.Copy(io.Discard, res.Body)
		if inStep = res.Header.Get("X-Request-Id") == "last"; inStep {
			return statuses, true
		}
		statuses = append(statuses, res.StatusCode)
	}
}

// Requests that two parsers could frame differently are rejected, and the bytes after them
// are not read as requests.
func TestRequestSmuggling(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block("max_body_size 1MiB"))
	body := chat("", text("x"), image("AAAA"))
	const hidden = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: hidden\r\n\r\n"
	const (
		post  = "POST " + chatPath + " HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
		wrong = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
	)
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
	const te = "Transfer-Encoding: chunked\r\n"
	whole := chunked(body) + "0\r\n\r\n"
	inText := chat("", text("0\r\n\r\n"+hidden), image("AAAA"))
	big := strings.Repeat("x", 512<<10) // more than net/http reads of an unread body
	for name, tc := range map[string]struct {
		raw    string
		want   []int // nil: closed without a response
		inStep bool
	}{
		"length":                       {post + length(len(body)) + "\r\n" + body, []int{200}, true},
		"chunks":                       {post + te + "\r\n" + whole, []int{200}, true},
		"length given twice":           {post + length(len(body)) + length(len(body)) + "\r\n" + body, []int{200}, true},
		"both, the chunks count":       {post + length(5) + te + "\r\n" + whole, []int{200}, true},
		"both, the other way":          {post + te + length(len(whole)+len(hidden)) + "\r\n" + whole, []int{200}, true},
		"hidden in a text":             {post + length(len(inText)) + "\r\n" + inText, []int{200}, true},
		"chunk extension":              {post + te + "\r\n" + strings.Replace(whole, "\r\n", ";a=b;c=\"d\"\r\n", 1), []int{200}, true},
		"zeros before a size":          {post + te + "\r\n00000000" + whole, []int{200}, true},
		"trailers":                     {post + te + "Trailer: X-Data-Parallel-Rank\r\n\r\n" + chunked(body) + "0\r\nX-Data-Parallel-Rank: 1\r\nContent-Length: 1\r\n\r\n", []int{200}, true},
		"two lengths":                  {post + length(0) + length(len(hidden)) + "\r\n" + hidden, []int{400}, false},
		"a list of lengths":            {post + "Content-Length: 0, 66\r\n\r\n" + hidden, []int{400}, false},
		"length with a sign":           {post + "Content-Length: +0\r\n\r\n" + hidden, []int{400}, false},
		"negative length":              {post + "Content-Length: -1\r\n\r\n" + hidden, []int{400}, false},
		"hexadecimal length":           {post + "Content-Length: 0x10\r\n\r\n" + hidden, []int{400}, false},
		"length of many digits":        {post + "Content-Length: 18446744073709551616\r\n\r\n" + hidden, []int{400}, false},
		"no length":                    {post + "Content-Length:\r\n\r\n" + hidden, []int{400}, false},
		"space before the colon":       {post + "Content-Length : 66\r\n\r\n" + hidden, []int{400}, false},
		"xchunked":                     {post + "Transfer-Encoding: xchunked\r\n\r\n" + whole + hidden, []int{501}, false},
		"identity":                     {post + "Transfer-Encoding: identity\r\n" + length(0) + "\r\n" + hidden, []int{501}, false},
		"chunked twice":                {post + te + te + "\r\n" + whole + hidden, []int{501}, false},
		"gzip, chunked":                {post + "Transfer-Encoding: gzip, chunked\r\n\r\n" + whole + hidden, []int{501}, false},
		"chunked, identity":            {post + "Transfer-Encoding: chunked, identity\r\n\r\n" + whole + hidden, []int{501}, false},
		"vertical tab before chunked":  {post + "Transfer-Encoding: \vchunked\r\n\r\n" + whole + hidden, []int{400}, false},
		"chunks in HTTP/1.0":           {strings.Replace(post, "1.1", "1.0", 1) + te + "\r\n" + whole + hidden, []int{400}, false},
		"a size that overflows":        {post + te + "\r\n10000000000000002\r\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"the largest size":             {post + te + "\r\nffffffffffffffff\r\n{}\r\n0\r\n\r\n" + hidden + big + big, []int{413}, false},
		"negative size":                {post + te + "\r\n-2\r\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"size in 0x":                   {post + te + "\r\n0x2\r\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"no size":                      {post + te + "\r\n\r\n" + hidden, []int{400}, false},
		"nonsense for a size":          {post + te + "\r\nZZ\r\n" + hidden, []int{400}, false},
		"size with a space before":     {post + te + "\r\n 2\r\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"chunk longer than its size":   {post + te + "\r\n2\r\n{}xx\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"bare LF behind a size":        {post + te + "\r\n2\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"bare LF behind a chunk":       {post + te + "\r\n2\r\n{}\n0\r\n\r\n" + hidden, []int{400}, false},
		"bare CR behind a size":        {post + te + "\r\n2\r{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"bare LF in an extension":      {post + te + "\r\n2;x\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"extensions without end":       {post + te + "\r\n2;" + strings.Repeat("x", 64<<10) + "\r\n{}\r\n0\r\n\r\n" + hidden, []int{400}, false},
		"many extensions":              {post + te + "\r\n" + strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\n \r\n", 100) + "0\r\n\r\n" + hidden, []int{400}, false},
		"nonsense, nobody reads":       {wrong + te + "\r\nZZ\r\n" + hidden, []int{404}, false},
		"bare LF, nobody reads":        {wrong + te + "\r\n2\n{}\r\n0\r\n\r\n" + hidden, []int{404}, false},
		"much that nobody reads":       {wrong + length(len(big)+len(hidden)) + "\r\n" + big + hidden, []int{404}, false},
		"much in chunks, nobody reads": {wrong + te + "\r\n" + chunked(big) + chunked(hidden) + "0\r\n\r\n", []int{404}, false},
		"announced too large":          {post + length(2<<20) + "\r\n" + big + hidden, []int{413}, false},
		"too large":                    {post + te + "\r\n" + strings.Repeat(chunked(big), 3) + hidden, []int{413}, false},
		"refused, and small":           {post + "Content-Encoding: gzip\r\n" + length(len(hidden)) + "\r\n" + hidden, []int{415}, true},
		"a continue nobody waits for":  {wrong + "Expect: 100-continue\r\n" + length(len(hidden)) + "\r\n" + hidden, []int{404}, false},
		"other expectations":           {post + "Expect: 200-ok\r\n" + length(len(body)) + "\r\n" + body, []int{417}, false},
		"upgrade":                      {post + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + length(len(body)) + "\r\n" + body, []int{200}, true},
		"HTTP/0.9":                     {"GET /v1/models\r\n\r\n", []int{400}, false},
		"two requests":                 {post + length(2) + "\r\n{}" + wrong + length(2) + "\r\n{}", []int{400, 404}, true},
		"refused for what it says":     {post + length(2) + "\r\n{}", []int{400}, true},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			got, inStep := c.converse(t, tc.raw)
			assert.Equal(t, tc.want, got)
			assert.Equal(t, tc.inStep, inStep, "the connection stays usable")
			n := 0
			if len(got) == 1 && got[0] == http.StatusOK {
				n = 1
			}
			e.assertRequests(t, n, n, n)
			e.assertContract(t)
		})
	}
}

// A connection on which a request was rejected before its body arrived is closed, and what
// the client sends later is not read as a request.
func TestRefusedConnectionsEnd(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("body_timeout 300ms"))
	for path, want := range map[string]int{chatPath: http.StatusRequestTimeout, "/v1/embeddings": http.StatusNotFound} {
		for name, framing := range map[string]string{"length": "Content-Length: 10000", "chunks": "Transfer-Encoding: chunked"} {
			t.Run(fmt.Sprint(want, ", ", name), func(t *testing.T) {
				conn := c.dial(t)
				require.NoError(t, conn.SetDeadline(time.Now().Add(waitLong)))
				_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n\r\n5\r\n", path, framing)
				require.NoError(t, err)
				r := bufio.NewReader(conn)
				res, err := http.ReadResponse(r, nil)
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, res.Body)
				require.NoError(t, err)
				assert.Equal(t, want, res.StatusCode)
				// an error only says that it is closed already
				_, _ = io.WriteString(conn, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
				rest, err := io.ReadAll(r)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection was not closed")
				assert.Empty(t, rest)
			})
		}
	}
	e.assertRequests(t, 0, 0, 0)
}

// Names and values of a client cannot break out of their line: they are rejected, or
// arrive as a single value.
func TestHeaderInjection(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	body := chat("", text("x"), image("AAAA"))
	for name, tc := range map[string]struct {
		lines string
		want  int // 0: closed without a response
		sees  []string
	}{
		"CR in a value":                    {lines: "X-A: b\rX-Evil: c", want: 400},
		"NUL in a value":                   {lines: "X-A: b\x00c", want: 400},
		"ESC in a value":                   {lines: "X-A: \x1b[31m", want: 400},
		"DEL in a value":                   {lines: "X-A: \x7f", want: 400},
		"folded":                           {lines: "X-A: b\r\n X-Evil: c", want: 200, sees: []string{"b X-Evil: c"}},
		"folded with a tab":                {lines: "X-A: b\r\n\tX-Evil: c", want: 200, sees: []string{"b X-Evil: c"}},
		"bare LF ends a line":              {lines: "X-A: b\nX-B: c", want: 200, sees: []string{"b"}},
		"bytes beyond ASCII":               {lines: "X-A: \xe4\xff", want: 200, sees: []string{"\xe4\xff"}},
		"escapes stay escapes":             {lines: `X-A: %0d%0aX-Evil: c\r\nX-Evil: c`, want: 200, sees: []string{`%0d%0aX-Evil: c\r\nX-Evil: c`}},
		"placeholders stay what they are":  {lines: "X-A: {env.HOME} {http.request.uuid} {$HOME} ${HOME}", want: 200, sees: []string{"{env.HOME} {http.request.uuid} {$HOME} ${HOME}"}},
		"a space in a name":                {lines: "X-Evil Header: c", want: 400},
		"a space behind a name":            {lines: "X-Evil : c", want: 400},
		"a space before the first name":    {lines: " X-Evil: c", want: 400},
		"NUL in a name":                    {lines: "X-Evil\x00: c", want: 400},
		"CR in a name":                     {lines: "X-Evil\r: c", want: 400},
		"umlaut in a name":                 {lines: "X-Evil-Ä: c", want: 400},
		"no name":                          {lines: ": c", want: 400},
		"no colon":                         {lines: "X-Evil", want: 400},
		"a second host":                    {lines: "Host: evil", want: 400},
		"id with CR":                       {lines: "X-Request-Id: a\rX-Evil: c", want: 400},
		"id with NUL":                      {lines: "X-Request-Id: a\x00", want: 400},
		"id, folded":                       {lines: "X-Request-Id: a\r\n X-Evil: c", want: 200},
		"id with a tab":                    {lines: "X-Request-Id: a\tb", want: 200},
		"id beyond ASCII":                  {lines: "X-Request-Id: a\u2028b", want: 200},
		"id with what it could break":      {lines: `X-Request-Id: a"b\n:0:abcdef/../?#{http.request.uuid}`, want: 200},
		"two ids":                          {lines: "X-Request-Id: a\r\nx-request-id: b", want: 200},
		"id that connections own":          {lines: "X-Request-Id: a\r\nConnection: x-request-id", want: 200},
		"what must be there is listed":     {lines: "Connection: x-request-id, content-length, content-type, host, x-forwarded-for, transfer-encoding, user-agent, te", want: 200},
		"a key that is listed is not sent": {lines: "X-A: b\r\nConnection: keep-alive , X-A", want: 200},
		"listed in odd ways":               {lines: "X-A: b\r\nConnection: ,,;x-a, x a,\r\nConnection: \tx-A\t", want: 200},
		"steering in capitals":             {lines: "X-DATA-PARALLEL-RANK: 1\r\nx-prefiller-host-port: evil:1\r\nePP-pROFILE: c", want: 200},
		"steering with underscores":        {lines: "X_Data_Parallel_Rank: 1\r\nx-data_parallel-rank: 1\r\nX_Prefiller_Host_Port: evil:1", want: 200},
		"steering with dots":               {lines: "X.Data.Parallel.Rank: 1\r\nx-prefiller.host-port: evil:1", want: 200},
		"ids with underscores":             {lines: "X_Request_Id: evil\r\nX_A: b\r\nContent_Length: 5\r\nTransfer_Encoding: chunked", want: 200},
		"hop by hop":                       {lines: "Keep-Alive: 5\r\nProxy-Connection: x\r\nProxy-Authorization: x\r\nProxy-Authenticate: x\r\nTe: gzip\r\nUpgrade: websocket", want: 200},
		"many":                             {lines: strings.TrimSpace(strings.Repeat("X-A: b\r\n", 1000)), want: 200, sees: slices.Repeat([]string{"b"}, 1000)},
		"too many bytes":                   {lines: "X-A: " + strings.Repeat("x", 2<<20), want: 431},
		"too many lines":                   {lines: strings.TrimSpace(strings.Repeat("X-A: b\r\n", 200_000)), want: 431},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			got, _ := c.converse(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\n%s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", chatPath, tc.lines, len(body), body))
			require.Equal(t, []int{tc.want}, got)
			if tc.want != http.StatusOK {
				e.assertRequests(t, 0, 0, 0)
				return
			}
			e.assertRequests(t, 1, 1, 1)
			e.assertContract(t)
			for _, engine := range e.all() {
				r := engine.Requests()[0]
				assert.Equal(t, tc.sees, r.Header["X-A"])
				assert.Regexp(t, "^([0-9a-f-]{36}|a)-[0-9a-f]{12}(:0:[0-9a-f]{6})?$", r.ID)
				assert.Contains(t, r.Host, "localhost")
				for name := range r.Header {
					assert.NotRegexp(t, "(?i)evil|rank|prefiller|epp|_|proxy-|keep-alive|websocket|upgrade|^te$", name)
				}
			}
		})
	}
	for _, entry := range c.lines() {
		assert.NotContains(t, entry.str("request_id"), "evil")
	}
}

// The proxy decides on hosts and paths, not the client.
func TestRequestTargets(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	body := chat("", text("x"))
	for target, want := range map[string]int{
		chatPath:                                 200,
		chatPath + "?x=/../../shutdown#y":        200,
		"https://localhost" + chatPath:           200,
		"/v1/chat%2Fcompletions":                 200, // the same path
		"/v1/%63hat/completions":                 200,
		"/v1//chat/completions":                  404,
		"//v1/chat/completions":                  404,
		"/v1/chat/completions/../../../shutdown": 404,
		"/shutdown/../v1/chat/completions":       404,
		"/v1/chat/completions/%2e%2e/shutdown":   404,
		"/v1/chat/completions;x":                 404,
		"/v1/chat/completions%00":                404,
		"/v1/chat/completions%0d%0aX-Evil:%20c":  404,
		`/v1\chat\completions`:                   404,
		"/V1/chat/completions":                   404,
		"/v1/chat/completions\x7f":               400,
		"/v1/%zz":                                400,
		"v1/chat/completions":                    400,
		"*":                                      404,
		"/" + strings.Repeat("x", 2<<20):         431,
	} {
		t.Run(fmt.Sprintf("%.60q", target), func(t *testing.T) {
			e.reset()
			got, _ := c.converse(t, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", target, len(body), body))
			require.Equal(t, []int{want}, got)
			if want != http.StatusOK {
				e.assertRequests(t, 0, 0, 0)
				return
			}
			e.assertRequests(t, 0, 0, 1)
			assert.Equal(t, chatPath, e.decode[0].Requests()[0].Path)
			assert.Equal(t, "localhost", e.decode[0].Requests()[0].Host)
		})
	}
}

// h2conn is an HTTP/2 connection for hand-made frames.
type h2conn struct {
	*http2.Framer
	conn   *tls.Conn
	w      *bufio.Writer
	block  bytes.Buffer
	enc    *hpack.Encoder
	stream uint32 // the last one
}

func (c *caddy) dialHTTP2(t *testing.T) *h2conn {
	t.Helper()
	conn, err := tls.Dial("tcp", c.addr, &tls.Config{RootCAs: c.roots, ServerName: "localhost", NextProtos: []string{"h2"}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(waitLong)))
	h := &h2conn{conn: conn, w: bufio.NewWriter(conn), stream: 1}
	h.Framer = http2.NewFramer(h.w, conn)
	h.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(&h.block)
	_, _ = h.w.WriteString(http2.ClientPreface)
	require.NoError(t, h.WriteSettings())
	return h
}

// headers opens a stream with these fields, "name: value".
func (h *h2conn) headers(end bool, fields ...string) error {
	h.stream += 2
	return h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.encode(fields...), EndHeaders: true, EndStream: end})
}

// post opens a stream with these fields and sends data.
func (h *h2conn) post(end bool, data string, fields ...string) error {
	return errors.Join(h.headers(false, fields...), h.WriteData(h.stream, end, []byte(data)))
}

func (h *h2conn) encode(fields ...string) []byte {
	h.block.Reset()
	for _, f := range fields {
		i := strings.Index(f[1:], ":") + 1 // skips the colon of a pseudo-header
		_ = h.enc.WriteField(hpack.HeaderField{Name: f[:i], Value: strings.TrimPrefix(f[i+1:], " ")})
	}
	return h.block.Bytes()
}

// outcome is the server's answer on the last stream: a status, "reset" or "closed".
func (h *h2conn) outcome(t *testing.T) string {
	t.Helper()
	_ = h.w.Flush()
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := h.ReadFrame()
		if err != nil {
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "no answer, and the connection is not closed")
			return "closed"
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == h.stream {
				return f.PseudoValue("status")
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == h.stream {
				return "reset"
			}
		case *http2.GoAwayFrame:
			if f.ErrCode != http2.ErrCodeNo {
				return "closed"
			}
		}
	}
}

// HTTP/2 has its own framing: headers that contradict it are rejected, and engines get
// the real length.
func TestHTTP2Smuggling(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	body := chat("", text("x"))
	length := fmt.Sprintf("content-length: %d", len(body))
	path := ":path: " + chatPath
	post := []string{":method: POST", ":scheme: https", ":authority: localhost", path, "content-type: application/json"}
	with := func(fields ...string) []string { return append(slices.Clone(post), fields...) }
	without := func(name string, fields ...string) []string {
		return append(slices.DeleteFunc(slices.Clone(post), func(f string) bool { return strings.HasPrefix(f, name) }), fields...)
	}
	for name, tc := range map[string]struct {
		fields   []string
		data     string
		trailers []string
		served   bool // otherwise it is rejected, with any status or a reset
	}{
		"right":                         {with(length), body, nil, true},
		"no length":                     {with(), body, nil, true},
		"a harmless trailer":            {with(length), body, []string{"x-data-parallel-rank: 1", "x-a: b"}, true},
		"te: trailers":                  {with("te: trailers"), body, nil, true},
		"length too long":               {with("content-length: 10000"), body, nil, false},
		"length too short":              {with("content-length: 2"), body, nil, false},
		"length of zero":                {with("content-length: 0"), body, nil, false},
		"length, and no data":           {with("content-length: 2"), "", nil, false},
		"two lengths":                   {with(length, "content-length: 2"), body, nil, true},
		"length of nonsense":            {with("content-length: 0x10"), body, nil, false},
		"length with a sign":            {with("content-length: +" + fmt.Sprint(len(body))), body, nil, false},
		"transfer-encoding":             {with("transfer-encoding: chunked"), chunked(body) + "0\r\n\r\n", nil, false},
		"transfer-encoding and length":  {with("transfer-encoding: chunked", length), body, nil, false},
		"connection":                    {with("connection: x-request-id, content-length"), body, nil, false},
		"keep-alive":                    {with("keep-alive: 5"), body, nil, false},
		"proxy-connection":              {with("proxy-connection: close"), body, nil, false},
		"upgrade":                       {with("upgrade: websocket"), body, nil, false},
		"te":                            {with("te: gzip"), body, nil, false},
		"capitals":                      {with("X-A: b"), body, nil, false},
		"CR and LF in a value":          {with("x-a: b\r\nx-evil: c"), body, nil, false},
		"LF in a value":                 {with("x-a: b\nx-evil: c"), body, nil, false},
		"NUL in a value":                {with("x-a: b\x00"), body, nil, false},
		"LF in a name":                  {with("x-a\nx-evil: c"), body, nil, false},
		"space in a name":               {with("x a: c"), body, nil, false},
		"no name":                       {with("\x00: c"), body, nil, false},
		"id with LF":                    {with("x-request-id: a\nb"), body, nil, false},
		"LF in the path":                {without(":path", path+" HTTP/1.1\r\nx-evil: c"), body, nil, false},
		"space in the path":             {without(":path", path+" x"), body, nil, false},
		"no path":                       {without(":path"), body, nil, false},
		"empty path":                    {without(":path", ":path: "), body, nil, false},
		"path without a slash":          {without(":path", ":path: v1/chat/completions"), body, nil, false},
		"absolute path":                 {without(":path", ":path: https://evil"+chatPath), body, nil, false},
		"two paths":                     {with(":path: /shutdown"), body, nil, false},
		"no method":                     {without(":method"), body, nil, false},
		"method with LF":                {without(":method", ":method: POST /shutdown HTTP/1.1\r\nx-evil: c\r\n\r\nGET"), body, nil, false},
		"method with a space":           {without(":method", ":method: POST x"), body, nil, false},
		"CONNECT":                       {[]string{":method: CONNECT", ":authority: localhost:1"}, body, nil, false},
		"CONNECT of a websocket":        {[]string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: localhost", path}, body, nil, false},
		"POST of a websocket":           {with(":protocol: websocket"), body, nil, false},
		"another scheme":                {without(":scheme", ":scheme: ftp"), body, nil, false},
		"scheme with LF":                {without(":scheme", ":scheme: https\r\nx-evil: c"), body, nil, false},
		"unknown pseudo-header":         {with(":evil: c"), body, nil, false},
		"pseudo-header behind a header": {[]string{":method: POST", ":scheme: https", "x-a: b", ":authority: localhost", path}, body, nil, false},
		"status in a request":           {with(":status: 200"), body, nil, false},
		"user in the authority":         {without(":authority", ":authority: evil@localhost"), body, nil, false},
		"LF in the authority":           {without(":authority", ":authority: localhost\r\nx-evil: c"), body, nil, false},
		"slash in the authority":        {without(":authority", ":authority: localhost/x"), body, nil, false},
		"two authorities":               {with(":authority: evil"), body, nil, false},
		"another host":                  {with("host: evil"), body, nil, false},
		"host alone":                    {without(":authority", "host: localhost"), body, nil, true},
		"a header of 4 kB, very often":  {append(with(), slices.Repeat([]string{"x-a: " + strings.Repeat("x", 4000)}, 3000)...), body, nil, false},
		"pseudo-header in a trailer":    {with(), body, []string{":path: /shutdown"}, false},
		"trailer with LF":               {with(), body, []string{"x-a: b\nc"}, false},
		"length in a trailer":           {with(), body, []string{"content-length: 2", "transfer-encoding: chunked"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			h := c.dialHTTP2(t)
			require.NoError(t, h.headers(tc.data == "" && tc.trailers == nil, tc.fields...))
			if tc.data != "" {
				require.NoError(t, h.WriteData(h.stream, tc.trailers == nil, []byte(tc.data)))
			}
			if tc.trailers != nil {
				require.NoError(t, h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.encode(tc.trailers...), EndHeaders: true, EndStream: true}))
			}
			got := h.outcome(t)
			if !tc.served {
				assert.Regexp(t, "^(4..|reset|closed)$", got)
				e.assertRequests(t, 0, 0, 0)
				return
			}
			assert.Equal(t, "200", got)
			e.assertRequests(t, 0, 0, 1)
			e.assertContract(t)
			r := e.decode[0].Requests()[0]
			assert.Equal(t, body, string(r.Body))
			assert.Contains(t, r.Host, "localhost")
			assert.NotContains(t, fmt.Sprint(r.Header), "evil")
		})
	}
}

// Extreme bodies are rejected with an error or reach the engines unchanged, and neither
// takes long.
func TestAbsurdBodies(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("max_body_size 64MiB", "media_sources data: https://*.example.com"))
	million := 1_000_000
	if len(buildFlags) > 0 { // the race detector is slow
		million /= 10
	}
	repeat := func(before, unit string, n int, after string) string {
		return before + strings.TrimSuffix(strings.Repeat(unit, n), ",") + after
	}
	numbered := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"m%d":0`, i)
		}
		return b.String()
	}
	deep := func(open, shut string, n int) string { return strings.Repeat(open, n) + "0" + strings.Repeat(shut, n) }
	part := func(members string) string { return chat("", `{"type":"text","text":"x"`+members+`}`) }
	const (
		tooDeep   = "nested deeper than 1000 levels"
		tooMany   = "an object has more than 1000 members"
		twice     = "is given twice in one object"
		badUTF8   = "invalid UTF-8"
		badString = "in a string"
	)
	blanked := strings.NewReplacer(`,"uuid":0`, `         `, `"image_pil":null,"uuid":null,"image_url":null`, strings.Repeat(" ", 45))
	for name, tc := range map[string]struct {
		body string
		want string // part of the error message; empty: the proxy accepts the body
	}{
		"a million parts":               {repeat(`{"model":"fake","messages":[{"role":"user","content":[`, `"",`, million, `]}]}`), ""},
		"a million empty parts":         {repeat(`{"messages":[{"role":"user","content":[`, `{},`, million, `]}]}`), ""},
		"a million media items":         {repeat(`{"messages":[{"role":"user","content":[`, `{"image_url":"data:,"},`, million, `]}]}`), "more than 128 media items"},
		"a million uuids":               {repeat(`{"messages":[{"role":"user","content":[`, `{"text":"","uuid":0},`, million, `]}]}`), ""},
		"a million media that are null": {repeat(`{"messages":[{"role":"user","content":[`, `{"image_pil":null,"uuid":null,"image_url":null},`, million/10, `]}]}`), ""},
		"a million messages":            {repeat(`{"messages":[`, `{},`, million, `]}`), ""},
		"a million lists":               {repeat(`{"messages":[],"a":[`, `[],`, million, `]}`), ""},
		"a million members":             {chat(numbered(million)), tooMany},
		"a million members in a part":   {part(numbered(million)), tooMany},
		"a million members in a media":  {chat("", `{"image_url":{"url":"data:,"`+numbered(million)+`}}`), tooMany},
		"a million members in xargs":    {chat(`,"vllm_xargs":{"a":0` + numbered(million) + `}`), tooMany},
		"a million members in a tool":   {chat(`,"tools":[{"a":0`+numbered(million)+`}]`, text("x")), ""},
		"duplicates":                    {chat(strings.Repeat(`,"a":0`, million)), twice},
		"duplicates in a message":       {`{"messages":[{"role":"user"` + strings.Repeat(`,"a":0`, million) + `}]}`, twice},
		"duplicates in a tool":          {chat(`,"tools":[{"a":0`+strings.Repeat(`,"a":0`, 100_000)+`}]`, text("x")), ""},
		"names of a megabyte":           {`{"` + strings.Repeat("x", 1<<19) + `":0,"` + strings.Repeat(`\n`, 1<<18) + `":0}`, "the names of an object's members have more than 1048576 bytes"},
		"deep in an unknown member":     {chat(`,"a":` + deep("[", "]", 1000)), tooDeep},
		"deep in a tool's schema":       {chat(`,"tools":[{"function":{"parameters":` + deep(`{"items":`, "}", 1000) + `}}]`), tooDeep},
		"deep in messages":              {`{"messages":` + deep("[", "]", 1000) + `}`, tooDeep},
		"deep in content":               {`{"messages":[{"content":` + deep("[", "]", 1000) + `}]}`, tooDeep},
		"deep in a part":                {part(`,"a":` + deep(`{"":[`, "]}", 1000)), tooDeep},
		"deep in a media":               {chat("", `{"image_url":{"a":`+deep("[", "]", 1000)+`}}`), tooDeep},
		"deep in xargs":                 {chat(`,"vllm_xargs":` + deep(`{"a":`, "}", 1000)), tooDeep},
		"deep without end":              {strings.Repeat(`{"a":[`, 5*million), tooDeep},
		"deep, no object":               {strings.Repeat("[", 5*million), tooDeep},
		"as deep as may":                {chat(`,"a":`+deep("[", "]", 999), text("x")), ""},
		"numbers too large":             {chat(`,"max_tokens":1e999999,"min_tokens":1e999999,"priority":-1e999999,"seed":1e-999999,"n":1E+999999,"top_p":0.0e-999999`, text("x")), ""},
		"a number of many digits":       {chat(`,"seed":`+strings.Repeat("9", 100_000), text("x")), "has more than 4300 digits"},
		"a fraction of many digits":     {chat(`,"min_tokens":1.`+strings.Repeat("9", million)+`,"temperature":0.`+strings.Repeat("0", million), text("x")), ""},
		"an exponent of many digits":    {chat(`,"max_tokens":1e`+strings.Repeat("9", 100_000), text("x")), ""},
		"numbers where none belong":     {`{"model":1e999999,"messages":[{"role":-0,"content":[` + strings.Repeat("9", 4300) + `]}]}`, ""},
		"not a number":                  {chat(`,"seed":NaN`), "unexpected character"},
		"infinity":                      {chat(`,"seed":-Infinity`), "malformed number"},
		"hexadecimal":                   {chat(`,"seed":0x10`), "expected ',' or '}'"},
		"an exponent without digits":    {chat(`,"seed":1e` + strings.Repeat("+", million)), "malformed number"},
		"invalid UTF-8":                 {chat("", text("x"), "{\"type\":\"text\",\"text\":\"\xff\"}"), badUTF8},
		"invalid UTF-8 in a name":       {chat(",\"\xc3\":0"), badUTF8},
		"invalid UTF-8 between":         {chat(",\xc3\"a\":0"), "expected the name of a member"},
		"overlong UTF-8":                {chat(",\"a\":\"\xc0\xa2\""), badUTF8},
		"UTF-8 beyond Unicode":          {chat(",\"a\":\"\xf4\x90\x80\x80\""), badUTF8},
		"surrogates as UTF-8":           {chat(",\"a\":\"\xed\xa0\xbd\xed\xb8\x80\""), badUTF8},
		"UTF-8 that is cut":             {chat(",\"a\":\"\xe2\x82\""), badUTF8},
		"UTF-16":                        {"\x00{\x00}", "not in UTF-8"},
		"UTF-16, little endian":         {"{\x00}\x00", "not in UTF-8"},
		"UTF-16 with a mark":            {"\xff\xfe{\x00}\x00", "not in UTF-8"},
		"two byte order marks":          {"\ufeff\ufeff" + chat(""), "unexpected character at byte 3"},
		"byte order mark behind":        {chat("") + "\ufeff", "unexpected data after the object"},
		"half a surrogate pair":         {chat(`,"\ud800":"\udfff\ud800","\udfff":0`, `{"type":"text","text":"\ud800x\udc00"}`), ""},
		"half a pair, twice":            {chat(`,"\ud800":0,"\uD800":0`), twice},
		"a pair in two ways":            {chat(`,"\ud83d\ude00":0,"😀":0`), twice},
		"escaped names":                 {chat(`,"\u0073tream":true,"stream":false`), twice},
		"NUL in a string":               {chat(",\"a\":\"\x00\""), badString},
		"NUL in a name":                 {chat(",\"a\x00\":0"), badString},
		"NUL between":                   {chat(",\x00\"a\":0"), "expected the name of a member"},
		"NUL behind":                    {chat("") + "\x00", "unexpected data after the object"},
		"NUL, escaped":                  {chat(`,"\u0000":"\u0000"`, `{"type":"text","text":"\u0000"}`), ""},
		"line separators":               {chat(",\"a\":\"\u2028\u2029\u0085\u007f\"", text("x")), ""},
		"other white space":             {chat(",\u00a0\"a\":0"), "expected the name of a member"},
		"a megabyte of white space":     {strings.Repeat(" \t\r\n", million/4) + chat("", text("x")) + strings.Repeat("\n", million), ""},
		"nothing but white space":       {strings.Repeat(" ", million), "the body is empty"},
		"two objects":                   {chat("") + chat(""), "unexpected data after the object"},
		"lines of objects":              {chat("") + "\n" + chat(""), "unexpected data after the object"},
		"comments":                      {`{"messages":[]/**/}`, "expected ',' or '}'"},
		"trailing comma":                {`{"messages":[],}`, "expected the name of a member"},
		"single quotes":                 {`{'messages':[]}`, "expected the name of a member"},
		"a form":                        {"messages=x&stream=true", "unexpected character at byte 0"},
		"another type":                  {`"messages"`, "must be a JSON object"},
		"a string without end":          {`{"a":"` + strings.Repeat("x", 16*million), "it ends early"},
		"escapes without end":           {`{"a":"` + strings.Repeat(`\"`, 4*million), "it ends early"},
		"a base64 that ends in escapes": {chat("", image(strings.Repeat("A", 4*million)+strings.Repeat(`\\`, million))), ""},
		"messages null":                 {`{"messages":null}`, "'messages' must be a list"},
		"messages a string":             {`{"messages":"[]"}`, "'messages' must be a list"},
		"messages a number":             {`{"messages":0}`, "'messages' must be a list"},
		"messages of everything":        {`{"model":"fake","messages":[null,true,0,"x",[],[[]],{},{"content":null},{"content":0},{"content":{}},{"content":{"image_url":"x"}}]}`, ""},
		"parts of everything":           {`{"model":"fake","messages":[{"role":"user","content":[null,true,0,[],[{"image_url":"x"}],{},{"type":""},{"text":{}}]}]}`, ""},
		"a URL of everything":           {chat("", `{"type":"image_url","image_url":{"url":{"url":"data:,"}}}`), "no known form"},
		"a URL of escapes":              {chat("", `{"image_url":"`+strings.Repeat(`\\`, million)+`"}`), "is longer than 8192 bytes"},
		"a URL longer than it looks":    {chat("", `{"image_url":"https://`+strings.Repeat(`\u0061`, 1352)+`.example.com@127.0.0.1/"}`), "must not have a user name"},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			start := time.Now()
			r := c.post(t, tc.body)
			took := time.Since(start)
			if limit := waitLong; assert.Less(t, took, limit) && took > limit/20 {
				t.Log(took)
			}
			if tc.want != "" {
				assert.Equal(t, http.StatusBadRequest, r.StatusCode)
				got := r.apiError(t)
				assert.Contains(t, got["message"], tc.want)
				assert.Less(t, len(r.body), 500)
				e.assertRequests(t, 0, 0, 0)
				return
			}
			assert.Contains(t, []int{http.StatusOK, http.StatusBadRequest, http.StatusNotFound}, r.StatusCode)
			last := e.decode[0].Requests()
			require.Len(t, last, 1)
			assert.True(t, string(last[0].Body) == blanked.Replace(strings.TrimSpace(tc.body)), "the body is not what was sent")
		})
	}
	body := chat("", image("AAAA"))
	e.reset()
	assertAnswer(t, body, c.post(t, body))
}

// An endless string is rejected at the size limit, however fast it comes, and the memory
// that it takes until then is bounded.
func TestEndlessString(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	for name, tc := range map[string]struct {
		option        string
		limit, memory int
		versions      []int
	}{
		"a small limit": {"max_memory 16MiB", 4 << 20, 16 << 20, []int{1, 2}},
		"the default":   {"max_memory 1GiB", 256 << 20, 1 << 30, []int{1}},
	} {
		t.Run(name, func(t *testing.T) {
			c := startCaddy(t, e.block(tc.option))
			for _, version := range tc.versions {
				endless := &endlessString{}
				req, err := http.NewRequest(http.MethodPost, c.URL+chatPath, endless)
				require.NoError(t, err)
				req.Header.Set("Content-Type", "application/json")
				res, err := c.client(t, version == 2).Do(req)
				require.NoError(t, err)
				require.Equal(t, version, res.ProtoMajor)
				assert.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
				answer, err := io.ReadAll(res.Body)
				assert.NoError(t, err)
				_ = res.Body.Close()
				assert.Contains(t, string(answer), `"code":"body_too_large"`)
				assert.GreaterOrEqual(t, int(endless.sent.Load()), tc.limit)
				assert.Less(t, int(endless.sent.Load()), tc.limit+64<<20, "not rejected at the limit")
			}
			if len(buildFlags) == 0 { // the race detector itself needs much memory
				assert.Less(t, c.peakMemory(t), 200<<20+tc.memory)
			}
			body := chat("", text("x"))
			assertAnswer(t, body, c.post(t, body))
		})
	}
	e.assertRequests(t, 0, 0, 2)
}

// endlessString is JSON that never ends.
type endlessString struct{ sent atomic.Int64 }

func (s *endlessString) Read(p []byte) (int, error) {
	const start = `{"messages":[{"role":"user","content":"`
	if s.sent.Load() == 0 {
		s.sent.Add(int64(len(start)))
		return copy(p, start), nil
	}
	for i := range p {
		p[i] = 'x'
	}
	s.sent.Add(int64(len(p)))
	return len(p), nil
}

// peakMemory is the maximum amount of memory that Caddy has used, in bytes.
func (c *caddy) peakMemory(t *testing.T) int {
	t.Helper()
	return int(c.memory(t, "VmHWM"))
}

// Thousands of streams that are reset right after they were opened leave nothing behind.
func TestHTTP2Resets(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1, func(o *fakevllm.Options) { o.Delay = 10 * time.Millisecond })
	c := startCaddy(t, e.block())
	body := chat("", text("x"), image("AAAA"))
	const streams, handlers = 3000, 250 // handlers: how many the server runs at a time
	fields := []string{":method: POST", ":scheme: https", ":authority: localhost", ":path: " + chatPath, "content-type: application/json"}
	for name, tc := range map[string]struct {
		send  func(h *h2conn) error
		batch int // number of streams that are reset together; large batches reach engines
	}{
		"no body":    {func(h *h2conn) error { return h.headers(true, fields...) }, 1},
		"no data":    {func(h *h2conn) error { return h.headers(false, fields...) }, 1},
		"half":       {func(h *h2conn) error { return h.post(false, body[:20], fields...) }, 1},
		"whole":      {func(h *h2conn) error { return h.post(true, body, fields...) }, 1},
		"in batches": {func(h *h2conn) error { return h.post(true, body, fields...) }, 200},
	} {
		t.Run(name, func(t *testing.T) {
			h := c.dialHTTP2(t)
			ended := make(chan struct{})
			go func() { // the server stops when its writes are not read
				defer close(ended)
				for {
					if _, err := h.ReadFrame(); err != nil {
						return
					}
				}
			}()
			var err error
			for err == nil && int(h.stream) < 2*streams {
				first := h.stream + 2
				for range tc.batch {
					err = errors.Join(err, tc.send(h))
				}
				if err = errors.Join(err, h.w.Flush()); tc.batch > 1 {
					require.NoError(t, err)
					require.Eventually(t, func() bool { return busy(e.all()...) > 0 }, waitLong, time.Millisecond)
				}
				for id := first; id <= h.stream; id += 2 {
					err = errors.Join(err, h.WriteRSTStream(id, http2.ErrCodeCancel))
				}
			}
			assert.Greater(t, int(h.stream), 2*handlers, "too few streams were opened")
			_ = h.conn.Close()
			<-ended
		})
	}
	require.Eventually(t, func() bool {
		return busy(e.all()...) == 0 && !strings.Contains(c.goroutines(t), "epdhandler.(*exchange)")
	}, waitLong, tick)
	for _, engine := range e.all() {
		assert.LessOrEqual(t, engine.Peak(), 2*handlers) // twice: requests of the last connection may still run
		assert.LessOrEqual(t, len(engine.Requests()), 2*streams)
		t.Logf("%s: %d requests, %d at a time", engine.Name(), len(engine.Requests()), engine.Peak())
	}
	for _, line := range c.lines() {
		assert.NotContains(t, line.str("msg"), "attempt", "reported as a failure of the engine")
	}
	assertAnswer(t, body, c.post(t, body))
}

// goroutines returns the stacks of all goroutines of Caddy.
func (c *caddy) goroutines(t *testing.T) string {
	t.Helper()
	return c.admin(t, leakCheck)
}

// Endless headers are rejected at a limit.
func TestHTTP2Continuations(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	h := c.dialHTTP2(t)
	require.NoError(t, h.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, BlockFragment: h.encode(":method: POST", ":scheme: https", ":authority: localhost", ":path: "+chatPath)}))
	const limit = 64 << 20
	sent := 0
	for sent < limit {
		block := h.encode(fmt.Sprintf("x-%d: %s", sent, strings.Repeat("x", 16_000)))
		if h.WriteContinuation(h.stream, false, block) != nil {
			break
		}
		sent += len(block)
	}
	assert.Less(t, sent, limit, "the connection was not closed")
	body := chat("", text("x"))
	assertAnswer(t, body, c.post(t, body))
	e.assertRequests(t, 0, 0, 1)
}
