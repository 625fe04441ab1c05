package integration

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// seen are a client's results; the scripts in clients print them.
type seen struct {
	Models                 []string
	Stream, Whole          sight // of an answer
	RefusedStream, Refused sight // of an error of an encoder
	Broken                 sight // of a stream that the engine broke off
	Left                   sight // of a stream that the client left
}

// sight is what a client sees of one chat completion.
type sight struct {
	ID           string // x-request-id
	Text, Finish string
	Tokens       int64

	Status         int // of an error
	Message, Param string
}

// The official clients of the OpenAI API work with the proxy: streams, images, errors.
func TestOpenAIClients(t *testing.T) {
	t.Parallel()
	for name, client := range map[string]struct {
		sdk string // directory below EPD_CLIENTS; empty for Go
		use func(*testing.T, *caddy) seen
	}{
		"Go":     {"", useGo},
		"Node":   {"node_modules/openai", script("client.mjs", "node", "--input-type=module", "-")},
		"Python": {"venv/lib/python*/site-packages/openai", script("client.py", "venv/bin/python", "-")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if client.sdk != "" {
				requireSDK(t, client.sdk)
			}
			e := startEngines(t, 2, 1, 2, func(o *fakevllm.Options) {
				o.APIKey = "key"
				o.ChunkDelay = 2 * time.Millisecond // an answer long enough to leave
			})
			setFault(fault{Kind: fakevllm.Status, Code: http.StatusBadRequest, Message: "the image is too large", Match: "LARG"}, e.encode...)
			setFault(fault{Kind: fakevllm.CutBetween, Match: "Break off."}, e.decode...)
			c := startCaddy(t, e.block())
			assertSeen(t, c, client.use(t, c))
			e.assertContract(t)
		})
	}
}

// requireSDK skips the test if integration/clients/install has not installed the SDK.
func requireSDK(t *testing.T, sdk string) {
	t.Helper()
	dir := os.Getenv("EPD_CLIENTS")
	if dir == "" {
		t.Skip("EPD_CLIENTS is not set to the directory of integration/clients/install")
	}
	if found, _ := filepath.Glob(filepath.Join(dir, sdk)); found == nil {
		t.Skipf("integration/clients/install has not installed %s in %s", sdk, dir)
	}
}

func assertSeen(t *testing.T, c *caddy, got seen) {
	t.Helper()
	assert.Equal(t, []string{"fake"}, got.Models)

	for _, s := range []sight{got.Stream, got.Whole} {
		assert.Positive(t, s.Tokens)
		assert.Equal(t, sight{ID: s.ID, Text: answerTo(t, "What is in these pictures? 你好"), Finish: "stop", Tokens: s.Tokens}, s)
		assertOutcome(t, c, "ok", s)
	}
	for _, s := range []sight{got.RefusedStream, got.Refused} {
		assert.Equal(t, sight{ID: s.ID, Status: http.StatusBadRequest, Message: "the image is too large", Param: "messages[1].content[2]"}, s)
		assertOutcome(t, c, "rejected", s)
	}
	assert.Contains(t, got.Broken.Message, "the decode stage gave no valid answer")
	assertBegins(t, answerTo(t, "Break off."), got.Broken)
	assertOutcome(t, c, "broke_off", got.Broken)

	assert.Empty(t, got.Left.Message)
	assertBegins(t, answerTo(t, goOn), got.Left)
	assertOutcome(t, c, "client_closed", got.Left)
}

// goOn makes an answer long.
var goOn = strings.Repeat("Go on. ", 1000)

// answerTo is the expected answer to the clients' question.
func answerTo(t *testing.T, question string) string {
	t.Helper()
	body, err := json.Marshal(params(question, "BBBB"))
	require.NoError(t, err)
	return answer(t, string(body))
}

// assertBegins asserts that a client has received only the begin of an answer.
func assertBegins(t *testing.T, answer string, s sight) {
	t.Helper()
	assert.NotEmpty(t, s.Text)
	assert.Less(t, len(s.Text), len(answer))
	assert.True(t, strings.HasPrefix(answer, s.Text), s.Text)
	assert.Empty(t, s.Finish)
}

// assertOutcome asserts the outcome in the access log, for the request id that the client
// has received.
func assertOutcome(t *testing.T, c *caddy, outcome string, s sight) {
	t.Helper()
	require.NotEmpty(t, s.ID)
	entry := c.access(t, s.ID)
	assert.Equal(t, outcome, entry.str("epd", "outcome"))
	assert.EqualValues(t, 2, entry.at("epd", "media_items"))
}

// script returns a client that runs a script of clients in the directory of its SDK. The script is
// read from standard input, because Node looks for packages beside the file of a script.
func script(file string, command ...string) func(*testing.T, *caddy) seen {
	return func(t *testing.T, c *caddy) (s seen) {
		source, err := os.ReadFile(filepath.Join("clients", file))
		require.NoError(t, err)
		roots := filepath.Join(storage, "pki/authorities/local/root.crt")
		var stderr bytes.Buffer
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Dir = os.Getenv("EPD_CLIENTS")
		cmd.Env = append(os.Environ(), "OPENAI_BASE_URL="+c.URL+"/v1", "OPENAI_API_KEY=key", "NODE_EXTRA_CA_CERTS="+roots, "SSL_CERT_FILE="+roots)
		cmd.Stdin = bytes.NewReader(source)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		require.NoError(t, err, "%s", &stderr)
		require.NoError(t, json.Unmarshal(out, &s), "%s", out)
		return s
	}
}

// useGo is the client for the Go SDK.
func useGo(t *testing.T, c *caddy) (s seen) {
	client := openai.NewClient(option.WithBaseURL(c.URL+"/v1"), option.WithAPIKey("key"), option.WithHTTPClient(c.Client), option.WithMaxRetries(0))
	models, err := client.Models.List(t.Context())
	require.NoError(t, err)
	for _, model := range models.Data {
		s.Models = append(s.Models, model.ID)
	}
	s.Stream = streamWithGo(t, &client, params("What is in these pictures? 你好", "BBBB"), false)
	s.Whole = wholeWithGo(t, &client, params("What is in these pictures? 你好", "BBBB"))
	s.RefusedStream = streamWithGo(t, &client, params("Refuse.", "LARG"), false)
	s.Refused = wholeWithGo(t, &client, params("Refuse.", "LARG"))
	s.Broken = streamWithGo(t, &client, params("Break off.", "BBBB"), false)
	s.Left = streamWithGo(t, &client, params(goOn, "BBBB"), true)
	return s
}

func params(question, picture string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: "fake",
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("Be brief."),
			openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
				openai.TextContentPart(question),
				openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64,AAAA"}),
				openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64," + picture, Detail: "low"}),
			}),
		},
		MaxCompletionTokens: openai.Int(100),
	}
}

func wholeWithGo(t *testing.T, client *openai.Client, params openai.ChatCompletionNewParams) sight {
	var res *http.Response
	whole, err := client.Chat.Completions.New(t.Context(), params, option.WithResponseInto(&res))
	if err != nil {
		return refusal(t, err)
	}
	choice := whole.Choices[0]
	return sight{ID: res.Header.Get("X-Request-Id"), Text: choice.Message.Content, Finish: choice.FinishReason, Tokens: whole.Usage.TotalTokens}
}

func streamWithGo(t *testing.T, client *openai.Client, params openai.ChatCompletionNewParams, leave bool) (s sight) {
	params.StreamOptions = openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)}
	var res *http.Response
	stream := client.Chat.Completions.NewStreaming(t.Context(), params, option.WithResponseInto(&res))
	defer stream.Close()
	var acc openai.ChatCompletionAccumulator
	for !(leave && s.Text != "") && stream.Next() {
		require.True(t, acc.AddChunk(stream.Current()))
		s.Text = acc.Choices[0].Message.Content
	}
	if len(acc.Choices) == 0 {
		return refusal(t, stream.Err())
	}
	s.ID, s.Finish, s.Tokens = res.Header.Get("X-Request-Id"), acc.Choices[0].FinishReason, acc.Usage.TotalTokens
	if err := stream.Err(); err != nil {
		s.Message = err.Error()
	}
	return s
}

// refusal is what a client sees of an error in place of an answer.
func refusal(t *testing.T, err error) sight {
	var e *openai.Error
	require.ErrorAs(t, err, &e)
	return sight{ID: e.Response.Header.Get("X-Request-Id"), Status: e.StatusCode, Message: e.Message, Param: e.Param}
}
