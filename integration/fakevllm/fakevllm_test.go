package fakevllm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	chat        = "/v1/chat/completions"
	completions = "/v1/completions"

	// patience is how long a test polls before it fails.
	patience = 10 * time.Second
)

// The requests of a client that sends one image, as each stage must get it.
const (
	imageMessages = `"messages":[{"role":"user","content":[{"type":"text","text":"what is it?"},{"type":"image_url","image_url":{"url":"https://a/b.png"}}]}]`
	imageChat     = `{"model":"fake",` + imageMessages + `}`
	imageEncode   = `{"model":"fake","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"https://a/b.png"}}]}],"max_tokens":1,"stream":false}`
	stub          = `"kv_transfer_params":{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}`
	imagePrefill  = `{"model":"fake",` + imageMessages + `,"stream":false,"max_tokens":1,` + stub + `}`

	textMessages = `"messages":[{"role":"user","content":"hello"}]`
	textChat     = `{` + textMessages + `}`
	textPrefill  = `{` + textMessages + `,"stream":false,"max_tokens":1,` + stub + `}`
	textPrompt   = `{"prompt":"once upon"}`

	oneTool = `[{"type":"function","function":{"name":"f"}}]`
)

func start(t *testing.T, c *Cluster, o Options) *Engine {
	t.Helper()
	e, err := c.Start(o)
	require.NoError(t, err)
	t.Cleanup(e.Close)
	return e
}

func startAlone(t *testing.T, o Options) *Engine {
	t.Helper()
	return start(t, NewCluster(), o)
}

// reply is an answer, complete or cut.
type reply struct {
	status  int
	header  http.Header
	body    string
	bodyErr error
}

// client keeps no connections, so that tests do not affect each other.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// newRequest returns a request with correct headers.
func newRequest(t *testing.T, e *Engine, path, id, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, e.URL()+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Request-Id", id)
	return r
}

func try(r *http.Request) (reply, error) {
	response, err := client.Do(r)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(body), err}, nil
}

func do(t *testing.T, r *http.Request) reply {
	t.Helper()
	a, err := try(r)
	require.NoError(t, err)
	require.NoError(t, a.bodyErr)
	return a
}

func post(t *testing.T, e *Engine, path, id, body string) reply {
	t.Helper()
	return do(t, newRequest(t, e, path, id, body))
}

func get(t *testing.T, e *Engine, path string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, e.URL()+path, nil)
	require.NoError(t, err)
	return do(t, r)
}

// postAsync returns once the engine has the request in flight. The result is what the client got.
func postAsync(t *testing.T, ctx context.Context, e *Engine, id, body string) <-chan error {
	t.Helper()
	before := len(e.Requests())
	r := newRequest(t, e, chat, id, body).WithContext(ctx)
	done := make(chan error, 1)
	go func() {
		a, err := try(r)
		if err == nil {
			err = a.bodyErr
		}
		if err == nil && a.status != http.StatusOK {
			err = fmt.Errorf("status %d: %s", a.status, a.body)
		}
		done <- err
	}()
	eventually(t, func() bool { return len(e.Requests()) > before })
	return done
}

// eventually polls without a goroutine, because some conditions count goroutines.
func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "condition never satisfied")
	}
}

// await fails instead of hanging.
func await(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		require.FailNow(t, "still waiting")
		return nil
	}
}

// dial opens a connection for requests that net/http's client cannot send.
func dial(t *testing.T, e *Engine) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", e.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.TCPConn)
}

// raw is a POST request as bytes.
func raw(path string, headers []string, body string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: engine\r\n" + strings.Join(headers, "\r\n") + "\r\n\r\n" + body
}

// rawHeaders are correct headers for a body of this length.
func rawHeaders(length int) []string {
	return []string{"Content-Type: application/json", "X-Request-Id: r", fmt.Sprintf("Content-Length: %d", length)}
}

// refused asserts an error in vLLM's form that names what was wrong, and its entry in Refusals.
func refused(t *testing.T, e *Engine, a reply, code int, message string) {
	t.Helper()
	assert.Equal(t, code, a.status, a.body)
	var body struct {
		Error struct {
			Message string
			Type    string
			Param   any
			Code    int
		}
	}
	require.NoError(t, json.Unmarshal([]byte(a.body), &body), a.body)
	assert.Equal(t, code, body.Error.Code)
	assert.Equal(t, errorType(code), body.Error.Type)
	assert.Contains(t, body.Error.Message, message)
	refusals := e.Refusals()
	require.NotEmpty(t, refusals)
	assert.Equal(t, code, refusals[len(refusals)-1].Code)
	assert.Contains(t, refusals[len(refusals)-1].Message, message)
}

func accepted(t *testing.T, e *Engine, a reply) {
	t.Helper()
	assert.Equal(t, http.StatusOK, a.status, a.body)
	assert.Empty(t, e.Refusals())
}

// member returns a top-level member of an answer, for use in the next request.
func member(t *testing.T, a reply, name string) string {
	t.Helper()
	require.Equal(t, http.StatusOK, a.status, a.body)
	o, err := parseObject([]byte(a.body))
	require.NoError(t, err)
	require.Contains(t, o, name)
	return string(o[name])
}

// with adds a member to a body.
func with(body, name, value string) string {
	return strings.TrimSuffix(body, "}") + `,"` + name + `":` + value + `}`
}

func encodeOne(t *testing.T, e *Engine, body string) reply {
	t.Helper()
	a := post(t, e, chat, "r:0:abcdef", body)
	require.Equal(t, http.StatusOK, a.status, a.body)
	return a
}

func answerTo(t *testing.T, body string) string {
	t.Helper()
	text, err := Answer([]byte(body))
	require.NoError(t, err)
	return text
}

func textOf(t *testing.T, a reply, stream bool) string {
	t.Helper()
	text, err := Text([]byte(a.body), stream)
	require.NoError(t, err, a.body)
	return text
}

func TestEncodePrefillDecode(t *testing.T) {
	c := NewCluster()
	encoder := start(t, c, Options{Role: Encode, Handles: true})
	prefiller := start(t, c, Options{Role: Prefill})
	decoder := start(t, c, Options{Role: Decode, RequireKV: true, Name: "decode-a"})

	ec := member(t, encodeOne(t, encoder, imageEncode), "ec_transfer_params")
	kv := member(t, post(t, prefiller, chat, "r", with(imagePrefill, "ec_transfer_params", ec)), "kv_transfer_params")
	a := post(t, decoder, chat, "r", with(imageChat, "kv_transfer_params", kv))

	accepted(t, decoder, a)
	assert.Equal(t, answerTo(t, imageChat), textOf(t, a, false))
	assert.Equal(t, "null", member(t, a, "kv_transfer_params"))
	assert.Equal(t, "decode-a", a.header.Get("X-Engine"))
	assert.Equal(t, "uvicorn", a.header.Get("Server"))
	assert.Regexp(t, "^engine-[0-9a-f]+$", a.header.Get("X-Request-Id"))
	assert.Equal(t, fmt.Sprint(len(a.body)), a.header.Get("Content-Length"))
}

func TestEncodeDecode(t *testing.T) {
	c := NewCluster()
	encoder, decoder := start(t, c, Options{Role: Encode}), start(t, c, Options{Role: Decode})

	encodeOne(t, encoder, imageEncode)
	a := post(t, decoder, chat, "r", imageChat)

	accepted(t, decoder, a)
	assert.Equal(t, answerTo(t, imageChat), textOf(t, a, false))
}

func TestStartRefusesUnknownRole(t *testing.T) {
	_, err := NewCluster().Start(Options{Role: "encoder"})
	assert.EqualError(t, err, `unknown role "encoder": want encode, prefill or decode`)
}

func TestStartReportsAddressInUse(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	_, err := NewCluster().Start(Options{Role: Decode, Addr: e.Addr()})
	assert.ErrorContains(t, err, "start decode engine: ")
}

func TestNames(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	assert.Equal(t, "decode-"+e.Addr(), e.Name())
	assert.Equal(t, "http://"+e.Addr(), e.URL())
}

func TestHealthAndModels(t *testing.T) {
	for _, role := range []Role{Encode, Prefill, Decode} {
		t.Run(string(role), func(t *testing.T) {
			e := startAlone(t, Options{Role: role, Model: "qwen"})
			health := get(t, e, "/health")
			assert.Equal(t, http.StatusOK, health.status)
			assert.Empty(t, health.body)
			assert.Equal(t, 1, e.HealthChecks())
			assert.Empty(t, e.Requests(), "health checks are counted only")

			models := get(t, e, "/v1/models")
			assert.Equal(t, http.StatusOK, models.status)
			assert.Contains(t, models.body, `"id":"qwen"`)
			require.Len(t, e.Requests(), 1)
			assert.Equal(t, "/v1/models", e.Requests()[0].Path)
		})
	}
}

func TestRequestsAreReported(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	post(t, e, chat, "first", textChat)
	post(t, e, completions, "second", textPrompt)

	requests := e.Requests()
	require.Len(t, requests, 2)
	assert.Equal(t, "first", requests[0].ID)
	assert.Equal(t, textChat, string(requests[0].Body))
	assert.Equal(t, int64(len(textChat)), requests[0].ContentLength)
	assert.Equal(t, "application/json", requests[0].Header.Get("Content-Type"))
	assert.Equal(t, "HTTP/1.1", requests[0].Proto)
	assert.Equal(t, e.Addr(), requests[0].Host)
	assert.Equal(t, completions, requests[1].Path)
	assert.False(t, requests[1].At.Before(requests[0].At))

	e.Reset()
	assert.Empty(t, e.Requests())
}

func TestForget(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, Forget: true})
	accepted(t, e, post(t, e, chat, "r", textChat))
	assert.Empty(t, e.Requests())
}

func TestUnservedPathsAreReported(t *testing.T) {
	tests := []struct {
		role         Role
		method, path string
	}{
		{Encode, http.MethodPost, completions},
		{Decode, http.MethodPost, "/start_profile"},
		{Decode, http.MethodGet, chat},
		{Decode, http.MethodPost, "/health"},
		{Prefill, http.MethodGet, "/"},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.role, test.method, test.path), func(t *testing.T) {
			e := startAlone(t, Options{Role: test.role})
			r := newRequest(t, e, test.path, "r", textPrompt)
			r.Method = test.method
			a := do(t, r)
			assert.Equal(t, http.StatusNotFound, a.status)
			assert.JSONEq(t, `{"detail":"Not Found"}`, a.body)
			require.Len(t, e.Requests(), 1)
			assert.Equal(t, test.path, e.Requests()[0].Path)
			assert.Len(t, e.Refusals(), 1)
		})
	}
}

func TestVersion(t *testing.T) {
	assert.JSONEq(t, `{"version":"0.11.1"}`, get(t, startAlone(t, Options{Role: Encode}), "/version").body)
	assert.JSONEq(t, `{"version":"0.12.0"}`, get(t, startAlone(t, Options{Role: Encode, Version: "0.12.0"}), "/version").body)
}

func TestProfiling(t *testing.T) {
	off, on := startAlone(t, Options{Role: Prefill}), startAlone(t, Options{Role: Prefill, Profiling: true})
	for _, path := range []string{"/start_profile", "/stop_profile"} {
		assert.Equal(t, http.StatusNotFound, post(t, off, path, "r", "{}").status)
		a := post(t, on, path, "r", "{}")
		accepted(t, on, a)
		assert.Empty(t, a.body)
	}
}

func TestAPIKey(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, APIKey: "secret"})
	assert.Equal(t, http.StatusOK, get(t, e, "/health").status)

	for _, authorization := range []string{"", "secret", "Bearer wrong"} {
		r := newRequest(t, e, chat, "r", textChat)
		r.Header.Set("Authorization", authorization)
		a := do(t, r)
		assert.Equal(t, http.StatusUnauthorized, a.status)
		assert.JSONEq(t, `{"error":"Unauthorized"}`, a.body)
	}
	e.Reset()

	r := newRequest(t, e, chat, "r", textChat)
	r.Header.Set("Authorization", "Bearer secret")
	accepted(t, e, do(t, r))
}

func TestModel(t *testing.T) {
	e := startAlone(t, Options{Role: Decode, Model: "qwen"})
	accepted(t, e, post(t, e, chat, "r", textChat))
	accepted(t, e, post(t, e, chat, "r", with(textChat, "model", `"qwen"`)))
	a := post(t, e, chat, "r", with(textChat, "model", `"x"`))
	assert.Equal(t, http.StatusNotFound, a.status)
	assert.JSONEq(t, `{"error":{"message":"The model `+"`x`"+` does not exist.","type":"NotFoundError","param":"model","code":404}}`, a.body)
}

func TestDelayIsServiceTime(t *testing.T) {
	for _, test := range []struct {
		role     Role
		id, body string
	}{{Encode, "r:0:abcdef", imageEncode}, {Prefill, "r", textPrefill}, {Decode, "r", textChat}} {
		t.Run(string(test.role), func(t *testing.T) {
			e := startAlone(t, Options{Role: test.role, Delay: 30 * time.Millisecond})
			begin := time.Now()
			accepted(t, e, post(t, e, chat, test.id, test.body))
			assert.GreaterOrEqual(t, time.Since(begin), 30*time.Millisecond)
		})
	}
}

func TestDuplicateIDInFlight(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	e.SetFault(Fault{Kind: Hang, Times: 1})
	first := postAsync(t, t.Context(), e, "r", textChat)
	eventually(t, func() bool { return e.InFlight() == 1 })

	refused(t, e, post(t, e, chat, "r", textChat), http.StatusInternalServerError, "duplicate request id in flight")
	assert.Equal(t, http.StatusOK, post(t, e, chat, "other", textChat).status)

	e.SetFault(Fault{})
	assert.NoError(t, await(t, first))
	assert.Zero(t, e.InFlight())
	assert.Equal(t, http.StatusOK, post(t, e, chat, "r", textChat).status)
}

// A client may reuse an id as soon as it has the answer.
func TestIDIsFreeWithTheAnswer(t *testing.T) {
	e := startAlone(t, Options{Role: Decode})
	keepAlive := &http.Client{Transport: &http.Transport{}}
	defer keepAlive.CloseIdleConnections()
	for range 200 {
		for _, body := range []string{textChat, with(textChat, "stream", "true")} {
			response, err := keepAlive.Do(newRequest(t, e, chat, "r", body))
			require.NoError(t, err)
			var text bytes.Buffer
			for !strings.HasSuffix(text.String(), "[DONE]\n\n") && !strings.HasSuffix(text.String(), `"kv_transfer_params":null}`) {
				_, err := io.CopyN(&text, response.Body, 1)
				require.NoError(t, err, text.String())
			}
			_, _ = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close()
		}
	}
	assert.Empty(t, e.Refusals())
	assert.Empty(t, e.Cancellations())
}
