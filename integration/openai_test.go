package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/caddy-epd/caddy-epd/integration/fakevllm"
)

// The official client of the OpenAI API gets along with us: streams, images, errors.
func TestOpenAIClient(t *testing.T) {
	t.Parallel()
	e := startEngines(t, 2, 1, 2, func(o *fakevllm.Options) { o.APIKey = "key" })
	c := startCaddy(t, e.block())
	client := openai.NewClient(option.WithBaseURL(c.URL+"/v1"), option.WithAPIKey("key"), option.WithHTTPClient(c.Client), option.WithMaxRetries(0))

	params := openai.ChatCompletionNewParams{
		Model: "fake",
		Messages: []openai.ChatCompletionMessageParamUnion{
			openai.SystemMessage("Be brief."),
			openai.UserMessage([]openai.ChatCompletionContentPartUnionParam{
				openai.TextContentPart("What is in these pictures? 你好"),
				openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64,AAAA"}),
				openai.ImageContentPart(openai.ChatCompletionContentPartImageImageURLParam{URL: "data:image/png;base64,BBBB", Detail: "low"}),
			}),
		},
		MaxCompletionTokens: openai.Int(100),
		StreamOptions:       openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
	}
	body, err := json.Marshal(params)
	require.NoError(t, err)

	stream := client.Chat.Completions.NewStreaming(t.Context(), params)
	var acc openai.ChatCompletionAccumulator
	for stream.Next() {
		require.True(t, acc.AddChunk(stream.Current()))
	}
	require.NoError(t, stream.Err())
	assert.Equal(t, answer(t, string(body)), acc.Choices[0].Message.Content)
	assert.Positive(t, acc.Usage.TotalTokens)
	e.assertRequests(t, 2, 1, 1)

	params.StreamOptions = openai.ChatCompletionStreamOptionsParam{}
	whole, err := client.Chat.Completions.New(t.Context(), params)
	require.NoError(t, err)
	assert.Equal(t, answer(t, string(body)), whole.Choices[0].Message.Content)

	models, err := client.Models.List(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "fake", models.Data[0].ID)

	setFault(fault{Kind: fakevllm.Status, Code: http.StatusBadRequest, Message: "the image is too large"}, e.encode...)
	failing := client.Chat.Completions.NewStreaming(t.Context(), params)
	assert.False(t, failing.Next())
	var apiError *openai.Error
	require.ErrorAs(t, failing.Err(), &apiError)
	assert.Equal(t, http.StatusBadRequest, apiError.StatusCode)
	assert.Equal(t, "the image is too large", apiError.Message)
	assert.True(t, strings.HasPrefix(apiError.Param, "messages[1].content["), apiError.Param)
	e.assertContract(t)
}
