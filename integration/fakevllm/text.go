package fakevllm

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// greeting begins every answer: characters of two, three and four bytes, and an
// emoji of two code points.
const greeting = "größe 你好 👋🏽"

// Answer is the text with which a decode engine answers a client's body, if the
// proxy does everything right: a greeting, every text of the request, modality and
// key of every media item, the number of tools, and the user. Of a request with several
// choices it is those of all, one a line.
func Answer(body []byte) (string, error) {
	o, err := parseBody(body)
	if err != nil {
		return "", fmt.Errorf("answer to a body: %w", err)
	}
	p, err := readPrompt(o, false)
	if err != nil {
		return "", fmt.Errorf("answer to a body: %w", err)
	}
	return strings.Join(p.answers(o), "\n"), nil
}

func (p prompt) answer(o object) string {
	words := append([]string{greeting}, p.texts...)
	for _, i := range p.items {
		words = append(words, i.modality+":"+i.key[:8])
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
	choices := make(map[int]string)
	if !stream {
		err := addChunk(choices, response)
		return joined(choices), err
	}
	data, complete := strings.CutSuffix(string(response), "data: [DONE]\n\n")
	if !complete {
		return "", fmt.Errorf("stream has no [DONE] at its end: %q", tail(response))
	}
	for event := range strings.SplitAfterSeq(data, "\n\n") {
		if event == "" { // after the last
			continue
		}
		if err := addEvent(choices, event); err != nil {
			return "", err
		}
	}
	return joined(choices), nil
}

// joined is the text of all choices, one a line.
func joined(choices map[int]string) string {
	texts := make([]string, len(choices))
	for n := range texts {
		texts[n] = choices[n]
	}
	return strings.Join(texts, "\n")
}

func addEvent(choices map[int]string, event string) error {
	data, isData := strings.CutPrefix(event, "data: ")
	data, isWhole := strings.CutSuffix(data, "\n\n")
	if !isData || !isWhole {
		return fmt.Errorf("not an event: %q", event)
	}
	return addChunk(choices, []byte(data))
}

// addChunk adds the text in a completion, or in one chunk of a stream.
func addChunk(choices map[int]string, raw []byte) error {
	var c completion
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("%w: %q", err, raw)
	}
	if len(c.Choices) == 0 && c.Usage == nil { // else it is a stream's usage
		return fmt.Errorf("want one choice at least: %q", raw)
	}
	for _, own := range c.Choices {
		text := cmp.Or(own.texts()...)
		if text == nil {
			return errors.New("choice without text: " + string(raw))
		}
		choices[own.Index] += *text
	}
	return nil
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
