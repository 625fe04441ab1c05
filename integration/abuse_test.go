package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// converse sends bytes on a connection of its own and returns the statuses that come
// back until it is closed. A request behind them closes it, if nothing has before:
// its 404 is not among the statuses, but it says whether they ended in step.
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
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "neither an answer nor an end")
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

// What two parsers could cut into different requests is refused, and what follows it
// on the connection is taken for none.
func TestRequestSmuggling(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block("max_body_size 1MiB"))
	body := chat("", text("x"), image("AAAA"))
	const hidden = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: hidden\r\n\r\n"
	const (
		post  = "POST " + chatPath + " HTTP/1.1\r\nHost: localhost\r\n"
		wrong = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
	)
	length := func(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }
	const te = "Transfer-Encoding: chunked\r\n"
	whole := chunked(body) + "0\r\n\r\n"
	inText := chat("", text("0\r\n\r\n"+hidden), image("AAAA"))
	big := strings.Repeat("x", 512<<10) // more than net/http reads of what nobody wants
	for name, tc := range map[string]struct {
		raw    string
		want   []int // nil: closed without a word
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
		"refused, and small":           {post + "Content-Encoding: gzip\r\n" + length(len(hidden)) + "\r\n" + hidden, []int{415}, false},
		"a continue nobody waits for":  {wrong + "Expect: 100-continue\r\n" + length(len(hidden)) + "\r\n" + hidden, []int{404}, false},
		"other expectations":           {post + "Expect: 200-ok\r\n" + length(len(body)) + "\r\n" + body, []int{417}, false},
		"upgrade":                      {post + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n" + length(len(body)) + "\r\n" + body, []int{200}, true},
		"HTTP/0.9":                     {"GET /v1/models\r\n\r\n", []int{400}, false},
		"two requests":                 {post + length(2) + "\r\n{}" + wrong + length(2) + "\r\n{}", []int{400, 404}, false},
		"refused for what it says":     {post + length(2) + "\r\n{}", []int{400}, true},
	} {
		t.Run(name, func(t *testing.T) {
			e.reset()
			got, inStep := c.converse(t, tc.raw)
			assert.Equal(t, tc.want, got)
			assert.Equal(t, tc.inStep, inStep, "whether the connection goes on")
			n := 0
			if len(got) == 1 && got[0] == http.StatusOK {
				n = 1
			}
			e.assertRequests(t, n, n, n)
			e.assertContract(t)
		})
	}
}

// Who is refused before his body has come does not keep the connection, and what he
// sends later is no request.
func TestRefusedConnectionsEnd(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("body_timeout 300ms"))
	for path, want := range map[string]int{chatPath: http.StatusRequestTimeout, "/v1/embeddings": http.StatusNotFound} {
		for name, framing := range map[string]string{"length": "Content-Length: 10000", "chunks": "Transfer-Encoding: chunked"} {
			t.Run(fmt.Sprint(want, ", ", name), func(t *testing.T) {
				conn := c.dial(t)
				require.NoError(t, conn.SetDeadline(time.Now().Add(waitLong)))
				_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n5\r\n", path, framing)
				require.NoError(t, err)
				r := bufio.NewReader(conn)
				res, err := http.ReadResponse(r, nil)
				require.NoError(t, err)
				_, err = io.Copy(io.Discard, res.Body)
				require.NoError(t, err)
				assert.Equal(t, want, res.StatusCode)
				// an error: it is closed already
				_, _ = io.WriteString(conn, "GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
				rest, err := io.ReadAll(r)
				require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "the connection stays open")
				assert.Empty(t, rest)
			})
		}
	}
	e.assertRequests(t, 0, 0, 0)
}
