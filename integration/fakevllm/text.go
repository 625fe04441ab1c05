package fakevllm

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// greeting is the begin of every answer: characters of two, three and four bytes, and an
// emoji of two code points.
const greeting = "größe 你好 👋🏽"

// Answer is the text that a decode engine answers to a client's body, if the proxy
// has changed nothing: a greeting, every text of the request, modality and key of every
// media item, the number of tools, and the user. If the request has several choices, it is
// the text of all, one per line.
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

// Text assembles the text of a decode engine's response. A stream must have ended
// with [DONE].
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
		if event == "" { // after the last event
			continue
		}
		if err := addEvent(choices, event); err != nil {
			return "", err
		}
	}
	return joined(choices), nil
}

// joined is the text of all choices, one per line.
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

// addChunk adds the text of a completion, or of one chunk of a stream.
func addChunk(choices map[int]string, raw []byte) error {
	var c completion
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("%w: %q", err, raw)
	}
	if len(c.Choices) == 0 && c.Usage == nil { // otherwise it is the usage of a stream
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

// tail is the end of a response, for error messages.
func tail(response []byte) []byte {
	return response[max(0, len(response)-80):]
}
