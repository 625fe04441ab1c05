package fakevllm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// greeting begins every answer: characters of two, three and four bytes, and an
// emoji of two code points.
const greeting = "größe 你好 👋🏽"

// Answer is the text with which a decode engine answers a client's body, if the
// proxy does everything right: a greeting, every text of the request, kind and
// key of every media item, the number of tools, and the user.
func Answer(body []byte) (string, error) {
	o, err := parseBody(body)
	if err != nil {
		return "", fmt.Errorf("answer to a body: %w", err)
	}
	p, err := readPrompt(o)
	if err != nil {
		return "", fmt.Errorf("answer to a body: %w", err)
	}
	return p.answer(o), nil
}

func (p prompt) answer(o object) string {
	words := append([]string{greeting}, p.texts...)
	for _, i := range p.items {
		words = append(words, i.kind+":"+i.key[:8])
	}
	if tools, err := array(o["tools"]); err == nil && len(tools) > 0 {
		words = append(words, fmt.Sprintf("tools:%d", len(tools)))
	}
	if user, ok := stringOf(o["user"]); ok {
		words = append(words, "user:"+user)
	}
	return strings.Join(words, " ")
}

// Text puts the text of a decode engine's response together again. A stream
// must have ended with [DONE].
func Text(response []byte, stream bool) (string, error) {
	if !stream {
		return chunkText(response)
	}
	data, complete := strings.CutSuffix(string(response), "data: [DONE]\n\n")
	if !complete {
		return "", fmt.Errorf("stream has no [DONE] at its end: %q", tail(response))
	}
	var text strings.Builder
	for event := range strings.SplitAfterSeq(data, "\n\n") {
		if event == "" { // after the last
			continue
		}
		t, err := eventText(event)
		if err != nil {
			return "", err
		}
		text.WriteString(t)
	}
	return text.String(), nil
}

func eventText(event string) (string, error) {
	data, isData := strings.CutPrefix(event, "data: ")
	data, isWhole := strings.CutSuffix(data, "\n\n")
	if !isData || !isWhole {
		return "", fmt.Errorf("not an event: %q", event)
	}
	return chunkText([]byte(data))
}

// chunkText is the text in a completion, or in one chunk of a stream.
func chunkText(raw []byte) (string, error) {
	var c completion
	if err := json.Unmarshal(raw, &c); err != nil {
		return "", fmt.Errorf("%w: %q", err, raw)
	}
	if len(c.Choices) == 0 && c.Usage != nil { // a stream's usage
		return "", nil
	}
	if len(c.Choices) != 1 {
		return "", fmt.Errorf("want one choice: %q", raw)
	}
	for _, text := range c.Choices[0].texts() {
		if text != nil {
			return *text, nil
		}
	}
	return "", errors.New("choice without text: " + string(raw))
}

func (c choice) texts() []*string {
	texts := []*string{c.Text}
	for _, m := range []*message{c.Message, c.Delta} {
		if m != nil {
			texts = append(texts, m.Content)
		}
	}
	return texts
}

// tail is enough of a response to see how it ended.
func tail(response []byte) []byte {
	return response[max(0, len(response)-80):]
}
