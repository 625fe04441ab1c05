package fakevllm

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// prompt is what an engine reads in a request, in document order.
type prompt struct {
	roles []string // of the messages
	texts []string
	items []item
}

// readPrompt reads the messages of a chat, or else the prompt of a completion.
func readPrompt(o object) (prompt, error) {
	var p prompt
	if !o.has("messages") {
		err := p.addPrompt(o["prompt"])
		return p, within("prompt", err)
	}
	messages, err := array(o["messages"])
	if err != nil {
		return p, fmt.Errorf("messages: %w", err)
	}
	options := processingOptions(o)
	for n, message := range messages {
		if err := p.addMessage(message, options); err != nil {
			return p, fmt.Errorf("messages[%d]: %w", n, err)
		}
	}
	return p, nil
}

func (p *prompt) addMessage(raw json.RawMessage, options string) error {
	message, err := parseObject(raw)
	if err != nil {
		return err
	}
	role, err := message.text("role")
	if err != nil {
		return err
	}
	p.roles = append(p.roles, role)
	content := message["content"]
	if !message.has("content") || p.addText(content) { // without content: an assistant's tool calls
		return nil
	}
	parts, err := array(content)
	if err != nil {
		return errors.New("content must be a string or a list")
	}
	for n, part := range parts {
		if err := p.addPart(part, options); err != nil {
			return fmt.Errorf("content[%d]: %w", n, err)
		}
	}
	return nil
}

// textMembers tells where the parts that are text have it.
var textMembers = map[string]string{
	"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}

// addPart adds exactly one text or one item. A part that is a mere string is text.
func (p *prompt) addPart(raw json.RawMessage, options string) error {
	if p.addText(raw) {
		return nil
	}
	part, err := parseObject(raw)
	if err != nil {
		return err
	}
	kind, err := partKind(part)
	if err != nil {
		return err
	}
	if member, ok := textMembers[kind]; ok {
		if !p.addText(part[member]) {
			return fmt.Errorf("%s must be a string", member)
		}
		return nil
	}
	if !slices.Contains(mediaKinds, kind) {
		return fmt.Errorf("unknown part type: %s", kind)
	}
	i, err := newItem(kind, part, options)
	if err != nil {
		return err
	}
	p.items = append(p.items, i)
	return nil
}

// partKind is the part's type or, without one, the key that tells it.
func partKind(part object) (string, error) {
	if part.has("type") {
		kind, err := part.text("type")
		if kind == "input_image" { // the Responses API's name
			kind = "image_url"
		}
		return kind, err
	}
	for _, kind := range mediaKinds {
		if part.has(kind) {
			return kind, nil
		}
	}
	if part.has("text") {
		return "text", nil
	}
	return "", errors.New("content part without a type")
}

// addText reports false if the value is not a string.
func (p *prompt) addText(raw json.RawMessage) bool {
	text, ok := stringOf(raw)
	if ok {
		p.texts = append(p.texts, text)
	}
	return ok
}

// addPrompt adds a string, several strings, or token ids.
func (p *prompt) addPrompt(raw json.RawMessage) error {
	if p.addText(raw) {
		return nil
	}
	elements, err := array(raw)
	if err != nil {
		return errors.New("must be a string or a list")
	}
	for _, element := range elements {
		if !p.addText(element) {
			p.texts = append(p.texts, canonical(element))
		}
	}
	return nil
}
