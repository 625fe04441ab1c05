package integration

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

const chatPath = "/v1/chat/completions"

// reply is a whole response.
type reply struct {
	*http.Response
	body []byte
	err  error // of reading the body
}

// id is the x-request-id of the response.
func (r *reply) id() string { return r.Header.Get("X-Request-Id") }

// apiError returns the members of the error, in OpenAI's form.
func (r *reply) apiError(t *testing.T) entry {
	t.Helper()
	require.NoError(t, r.err)
	assert.Equal(t, "application/json", r.Header.Get("Content-Type"))
	top := object(t, r.body)
	require.Equal(t, []string{"error"}, names(top))
	e, ok := top["error"].(map[string]any)
	require.True(t, ok)
	require.ElementsMatch(t, []string{"message", "type", "param", "code"}, names(e))
	return e
}

// send sends a request; headers are "name: value".
func (c *caddy) send(ctx context.Context, client *http.Client, method, path, body string, headers ...string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, c.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body == "" {
		r.Body = http.NoBody
	}
	r.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return client.Do(r)
}

// do sends a request and reads the whole response.
func (c *caddy) do(t *testing.T, method, path, body string, headers ...string) *reply {
	t.Helper()
	return c.doWith(t, c.Client, method, path, body, headers...)
}

func (c *caddy) doWith(t *testing.T, client *http.Client, method, path, body string, headers ...string) *reply {
	t.Helper()
	res, err := c.send(t.Context(), client, method, path, body, headers...)
	require.NoError(t, err)
	defer res.Body.Close()
	r := &reply{Response: res}
	r.body, r.err = io.ReadAll(res.Body)
	return r
}

// assertAnswer asserts that the reply is the right answer to a request.
func assertAnswer(t *testing.T, body string, r *reply) {
	t.Helper()
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", r.body)
	require.NoError(t, r.err)
	assert.Equal(t, answer(t, body), replyText(t, body, r))
}

// answer is the expected text for a request.
func answer(t *testing.T, body string) string {
	t.Helper()
	want, err := fakevllm.Answer([]byte(body))
	require.NoError(t, err)
	return want
}

func replyText(t *testing.T, body string, r *reply) string {
	t.Helper()
	got, err := fakevllm.Text(r.body, strings.Contains(body, `"stream":true`))
	require.NoError(t, err)
	return got
}
