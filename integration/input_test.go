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
)

// Invalid input is rejected in OpenAI's form, and no engine gets it.
func TestBadInput(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block("max_body_size 4KiB", "max_media_items 3", "media_sources data: https://*.example.com"))
	picture := image("AAAA")
	for name, tc := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		message            string
		param, code        any
	}{
		"not JSON":                  {body: `hello`, status: 400, message: "the body is not valid JSON: unexpected character at byte 0", code: "invalid_body"},
		"empty":                     {body: ``, status: 400, message: "the body is empty; send a JSON object", code: "invalid_body"},
		"not an object":             {body: `["a"]`, status: 400, message: "the body must be a JSON object", code: "invalid_body"},
		"trailing bytes":            {body: chat("") + "x", status: 400, message: "the body is not valid JSON: unexpected data after the object at byte 58", code: "invalid_body"},
		"cut short":                 {body: `{"model":"fake","messages":[`, status: 400, message: "the body is not valid JSON: it ends early, at byte 28", code: "invalid_body"},
		"duplicate member":          {body: chat(`,"stream":true,"stream":false`), status: 400, message: "the member 'stream' at byte 72 is given twice in one object", code: "invalid_body"},
		"duplicate in a part":       {body: chat("", `{"type":"text","type":"image_url"}`), status: 400, message: "the member 'type' at byte 69 is given twice in one object", code: "invalid_body"},
		"no messages":               {body: `{"model":"fake"}`, status: 400, message: "'messages' is missing", param: "messages", code: "invalid_body"},
		"messages no list":          {body: `{"messages":{"role":"user"}}`, status: 400, message: "'messages' must be a list", param: "messages", code: "invalid_body"},
		"unknown form":              {body: chat("", text("x"), `{"type":"image_url","image_url":7}`), status: 400, message: `part 1 of message 0 has image_url in no known form: it must be {"url": "…"}`, param: "messages[0].content[1].image_url", code: "invalid_body"},
		"too many items":            {body: chat("", picture, picture, picture, picture), status: 400, message: "the request has more than 3 media items", param: "messages", code: "invalid_body"},
		"too deep":                  {body: `{"messages":` + strings.Repeat("[", 1001) + strings.Repeat("]", 1001) + `}`, status: 400, message: "the body is nested deeper than 1000 levels, at byte 1011", code: "invalid_body"},
		"too large":                 {body: chat("", text(strings.Repeat("x", 5000))), status: 413, message: "the body is larger than 4096 bytes", code: "body_too_large"},
		"compressed":                {body: chat(""), headers: []string{"Content-Encoding: gzip"}, status: 415, message: "compressed bodies are not supported; send the JSON as it is", code: "unsupported_encoding"},
		"media from elsewhere":      {body: chat("", picture, `{"type":"video_url","video_url":{"url":"http:\/\/169.254.169.254/latest"}}`), status: 400, message: "the media of part 1 of message 0 come from a source that is not allowed", param: "messages[0].content[1]", code: "media_source"},
		"a URL with a space":        {body: chat("", picture, `{"image_url":"https://a.example.com/a b.png"}`), status: 400, message: "the URL in part 1 of message 0 has characters that must be percent-encoded, such as spaces or letters that are not ASCII", param: "messages[0].content[1]", code: "media_url"},
		"two media in a part":       {body: chat("", `{"type":"video_url","video_url":{"url":"data:video/mp4;base64,AAAA"},"image_url":"http://169.254.169.254/"}`), status: 400, message: "part 0 of message 0 has more than one media member; send one part for each", param: "messages[0].content[0]", code: "invalid_body"},
		"a PIL image":               {body: chat("", text("x"), `{"type":"image_pil","image_pil":"http://169.254.169.254/"}`), status: 400, message: "part 1 of message 0 has image_pil, which JSON cannot carry; send image_url", param: "messages[0].content[1].image_pil", code: "invalid_body"},
		"ready embeddings":          {body: chat("", `{"type":"image_embeds","image_embeds":{"image_grid_thw":[1,8,8]}}`), status: 400, message: "part 0 of message 0 has image_embeds, which only trusted clients may send", param: "messages[0].content[0].image_embeds", code: "invalid_body"},
		"prompt embeddings":         {path: "/v1/completions", body: `{"prompt_embeds":"AAAA"}`, status: 400, message: "prompt_embeds is for trusted clients only; send a prompt", param: "prompt_embeds", code: "invalid_body"},
		"media in options":          {body: chat(`,"mm_processor_kwargs":{"videos":["http://169.254.169.254/"]}`, picture), status: 400, message: "mm_processor_kwargs may hold numbers, booleans and objects of those: text, and options that name media or files, are for trusted clients only", param: "mm_processor_kwargs", code: "invalid_body"},
		"options given twice":       {body: chat(`,"mm_processor_kwargs":{"use_audio_in_video":false,"use_audio_in_video":true}`, picture), status: 400, message: "the member 'use_audio_in_video' at byte 177 is given twice in one object", code: "invalid_body"},
		"smuggled params":           {body: chat(`,"vllm_xargs":{"a":1,"kv_transfer\u005fparams":"x"}`), status: 400, message: "vllm_xargs must not have kv_transfer_params or ec_transfer_params", param: "vllm_xargs", code: "invalid_body"},
		"smuggled by a duplicate":   {body: chat(`,"vllm_xargs":{"a":1,"a":2,"kv_transfer_params":"x"}`), status: 400, message: "the member 'a' at byte 78 is given twice in one object", code: "invalid_body"},
		"stream in a string":        {body: chat(`,"stream":"true"`), status: 400, message: "'stream' must be true, false or null", param: "stream", code: "invalid_body"},
		"stream as a number":        {body: chat(`,"stream":1`), status: 400, message: "'stream' must be true, false or null", param: "stream", code: "invalid_body"},
		"stream by another name":    {body: chat(`,"str\u0065am":1.0`), status: 400, message: "'stream' must be true, false or null", param: "stream", code: "invalid_body"},
		"stream of a completion":    {path: "/v1/completions", body: `{"prompt":"a","stream":"yes"}`, status: 400, message: "'stream' must be true, false or null", param: "stream", code: "invalid_body"},
		"UTF-16":                    {body: "\xff\xfe{\x00}\x00", status: 400, message: "the body is not in UTF-8, but in UTF-16 or UTF-32; send JSON in UTF-8", code: "invalid_body"},
		"completions, not JSON":     {path: "/v1/completions", body: `x`, status: 400, message: "the body is not valid JSON: unexpected character at byte 0", code: "invalid_body"},
		"unknown path":              {path: "/v1/embeddings", body: `{}`, status: 404, message: "there is no such route", code: "not_found"},
		"administrative path":       {path: "/shutdown", body: `{}`, status: 404, message: "there is no such route", code: "not_found"},
		"path below":                {path: chatPath + "/", body: `{}`, status: 404, message: "there is no such route", code: "not_found"},
		"GET of completions":        {method: http.MethodGet, path: chatPath, status: 405, message: "use POST here", code: "method_not_allowed"},
		"POST of models":            {path: "/v1/models", body: `{}`, status: 405, message: "use GET, HEAD here", code: "method_not_allowed"},
		"DELETE of health":          {method: http.MethodDelete, path: "/health", status: 405, message: "use GET, HEAD here", code: "method_not_allowed"},
		"CONNECT to nowhere":        {method: http.MethodOptions, path: "/v1/models", status: 405, message: "use GET, HEAD here", code: "method_not_allowed"},
		"client's id is given back": {body: `x`, headers: []string{"X-Request-Id: mine"}, status: 400, message: "the body is not valid JSON: unexpected character at byte 0", code: "invalid_body"},
	} {
		t.Run(name, func(t *testing.T) {
			method, path := http.MethodPost, chatPath
			if tc.method != "" {
				method = tc.method
			}
			if tc.path != "" {
				path = tc.path
			}
			r := c.do(t, method, path, tc.body, tc.headers...)
			assert.Equal(t, tc.status, r.StatusCode)
			got := r.apiError(t)
			assert.Equal(t, tc.message, got["message"])
			assert.Equal(t, tc.code, got["code"])
			assert.Equal(t, tc.param, got["param"])
			assert.Equal(t, "invalid_request_error", got["type"])
			if tc.status == http.StatusMethodNotAllowed {
				assert.Contains(t, tc.message, r.Header.Get("Allow"))
				assert.NotEmpty(t, r.Header.Get("Allow"))
			}
			assert.NotEmpty(t, r.id())
			if len(tc.headers) > 0 && strings.HasPrefix(tc.headers[0], "X-Request-Id") {
				assert.Equal(t, "mine", r.id())
			}
			assert.Equal(t, "rejected", c.access(t, r.id()).str("epd", "outcome"))
			assert.Len(t, c.failures(r.id()), 1)
		})
	}
	e.assertRequests(t, 0, 0, 0)
}

// Bodies that engines cannot read, or that a page of another site could make a browser send,
// are rejected.
func TestContentTypes(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	for path, body := range map[string]string{chatPath: chat("", text("x")), "/v1/completions": `{"model":"fake","prompt":"Once"}`} {
		for name, tc := range map[string]struct {
			types  []string
			status int
		}{
			"JSON":                   {[]string{"application/json"}, 200},
			"with a parameter":       {[]string{"application/json; charset=utf-8"}, 200},
			"a space before it":      {[]string{"application/json ; charset=utf-8"}, 200},
			"an odd parameter":       {[]string{"application/json;"}, 200},
			"in capitals":            {[]string{"Application/JSON"}, 200},
			"none":                   {nil, 415},
			"empty":                  {[]string{""}, 415},
			"text":                   {[]string{"text/plain"}, 415},
			"text, with JSON's name": {[]string{"text/plain; application/json"}, 415},
			"text and JSON":          {[]string{"text/plain, application/json"}, 415},
			"two headers":            {[]string{"application/json", "text/plain"}, 415},
			"a form":                 {[]string{"application/x-www-form-urlencoded"}, 415}, // as sent by curl -d
			"parts of a form":        {[]string{"multipart/form-data; boundary=x"}, 415},
			"like JSON":              {[]string{"application/vnd.api+json"}, 415},
			"begins like JSON":       {[]string{"application/jsonp"}, 415},
		} {
			for _, http2 := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, %s, http2 %v", path, name, http2), func(t *testing.T) {
					e.reset()
					r, err := http.NewRequest(http.MethodPost, c.URL+path, strings.NewReader(body))
					require.NoError(t, err)
					r.Header["Content-Type"] = tc.types
					res, err := c.client(t, http2).Do(r)
					require.NoError(t, err)
					defer res.Body.Close()
					got := &reply{Response: res}
					got.body, got.err = io.ReadAll(res.Body)
					assert.Equal(t, tc.status, res.StatusCode)
					if tc.status == http.StatusOK {
						e.assertRequests(t, 0, 1, 1)
						return
					}
					assert.Equal(t, "unsupported_media_type", got.apiError(t)["code"])
					assert.Contains(t, got.apiError(t)["message"], "Content-Type: application/json")
					e.assertRequests(t, 0, 0, 0)
				})
			}
		}
	}
}

// A byte order mark, which some clients send, is removed.
func TestByteOrderMark(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	body := chat("", text("x"), image("AAAA"))
	for _, body := range []string{body, stream(body)} {
		assertAnswer(t, body, c.post(t, "\ufeff"+body))
	}
	e.assertRequests(t, 2, 2, 2)
	for _, engine := range e.all() {
		assert.True(t, strings.HasPrefix(string(engine.Requests()[0].Body), "{"))
	}
	e.assertContract(t)
}

// Python converts integers with at most 4,300 digits.
func TestLongIntegers(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block())
	r := c.post(t, chat(`,"x":[{"y":-`+strings.Repeat("7", 4301)+`}]`, text("x")))
	assert.Equal(t, http.StatusBadRequest, r.StatusCode)
	assert.Equal(t, "the integer at byte 94 has more than 4300 digits", r.apiError(t)["message"])
	e.assertRequests(t, 0, 0, 0)
	assert.Equal(t, http.StatusOK, c.post(t, chat(`,"x":[{"y":-`+strings.Repeat("7", 4300)+`}]`, text("x"))).StatusCode)
}

// Bodies that end before their Content-Length, and bodies without one that are too
// large.
func TestBodiesOnTheWire(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("max_body_size 4KiB"))
	small := chat("", image("AAAA"))
	large := chat("", text(strings.Repeat("x", 5000)))
	for name, tc := range map[string]struct {
		framing string
		body    string
		status  int
	}{
		"whole":               {fmt.Sprintf("Content-Length: %d", len(small)), small, 200},
		"chunked":             {"Transfer-Encoding: chunked", chunked(small) + "0\r\n\r\n", 200},
		"expects a continue":  {fmt.Sprintf("Expect: 100-continue\r\nContent-Length: %d", len(small)), small, 200},
		"ends early":          {fmt.Sprintf("Content-Length: %d", len(small)+1), small, 400},
		"chunked, ends early": {"Transfer-Encoding: chunked", chunked(small), 400},
		"chunked, too large":  {"Transfer-Encoding: chunked", chunked(large) + "0\r\n\r\n", 413},
		"announced too large": {"Content-Length: 99999999999", "{", 413},
	} {
		t.Run(name, func(t *testing.T) {
			conn := c.dial(t)
			_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n\r\n%s", chatPath, tc.framing, tc.body)
			require.NoError(t, err)
			if tc.status == http.StatusBadRequest {
				require.NoError(t, conn.CloseWrite()) // ends the body early
			}
			r := bufio.NewReader(conn)
			res, err := http.ReadResponse(r, nil)
			for err == nil && res.StatusCode == http.StatusContinue {
				res, err = http.ReadResponse(r, nil)
			}
			require.NoError(t, err)
			body, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			assert.Equal(t, tc.status, res.StatusCode, "%s", body)
		})
	}
	e.assertRequests(t, 3, 0, 3)
	e.assertContract(t)
}

// Bytes after a request that was rejected early are not read as another request.
func TestRefusedBodiesAreNoRequests(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 0, 1)
	c := startCaddy(t, e.block("max_body_size 1MiB"))
	const hidden = "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: hidden\r\n\r\n"
	for name, tc := range map[string]struct {
		head   string
		body   string
		status int
	}{
		"no such route":         {"POST /nowhere HTTP/1.1\r\nContent-Length: %d", strings.Repeat(hidden, 8_000), 404},
		"no such route, small":  {"POST /nowhere HTTP/1.1\r\nContent-Length: %d", strings.Repeat(hidden, 10), 404},
		"wrong method":          {"PUT /v1/models HTTP/1.1\r\nContent-Length: %d", strings.Repeat(hidden, 8_000), 405},
		"compressed":            {"POST " + chatPath + " HTTP/1.1\r\nContent-Type: application/json\r\nContent-Encoding: br\r\nContent-Length: %d", strings.Repeat(hidden, 8_000), 415},
		"too large":             {"POST " + chatPath + " HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d", strings.Repeat(hidden, 40_000), 413},
		"chunked, too large":    {"POST " + chatPath + " HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nX-Size: %d", chunked(strings.Repeat("x", 2<<20)) + hidden, 413},
		"announced, not sent":   {"POST /nowhere HTTP/1.1\r\nX-Size: %d\r\nContent-Length: 99999999999", hidden, 404},
		"small, not sent":       {"POST /nowhere HTTP/1.1\r\nX-Size: %d\r\nContent-Length: 9999", hidden, 404},
		"expects a continue":    {"POST /nowhere HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d", strings.Repeat(hidden, 8_000), 404},
		"a body where none is":  {"GET /health HTTP/1.1\r\nContent-Length: %d", strings.Repeat(hidden, 8_000), 200},
		"memory for none of it": {"POST " + chatPath + " HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d", strings.Repeat(hidden, 8_000), 400},
	} {
		t.Run(name, func(t *testing.T) {
			conn := c.dial(t)
			start := time.Now()
			go func() {
				_, _ = fmt.Fprintf(conn, tc.head+"\r\nHost: localhost\r\n\r\n", len(tc.body))
				_, _ = io.WriteString(conn, tc.body)
			}()
			require.NoError(t, conn.SetReadDeadline(start.Add(10*time.Second)))
			r := bufio.NewReader(conn)
			res, err := http.ReadResponse(r, nil)
			require.NoError(t, err)
			_, err = io.ReadAll(res.Body)
			require.NoError(t, err)
			assert.Equal(t, tc.status, res.StatusCode)
			assert.Less(t, time.Since(start), 5*time.Second)
			if res.Close {
				_, err = http.ReadResponse(r, nil)
				assert.Error(t, err, "the rest was read as a request")
				return
			}
			// otherwise the connection is kept for the next request
			_, err = fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
			require.NoError(t, err)
			res, err = http.ReadResponse(r, nil)
			require.NoError(t, err)
			assert.NotEqual(t, "hidden", res.Header.Get("X-Request-Id"))
			assert.Equal(t, http.StatusOK, res.StatusCode)
		})
	}
	e.assertRequests(t, 0, 0, 0)
}

func chunked(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func TestHeadAndModels(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 1, 1, 1)
	c := startCaddy(t, e.block())
	r := c.do(t, http.MethodGet, "/v1/models", "", "X-Request-Id: mine")
	assert.Equal(t, http.StatusOK, r.StatusCode)
	assert.Equal(t, "list", object(t, r.body)["object"])
	assert.Equal(t, "mine", r.id())
	for _, path := range []string{"/v1/models", "/health"} {
		r := c.do(t, http.MethodHead, path, "")
		assert.Equal(t, http.StatusOK, r.StatusCode)
		assert.Empty(t, r.body)
		assert.NoError(t, r.err)
		assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
	}
	e.assertRequests(t, 0, 0, 2)
	e.assertContract(t)
}
