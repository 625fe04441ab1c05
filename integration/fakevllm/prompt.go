package fakevllm

import (
	"encoding/json"
	"errors"
	"fmt"
)

// prompt is the content of a request, in document order.
type prompt struct {
	roles []string // of the messages
	texts []string
	items []item
}

// reader is the configuration for reading parts.
type reader struct {
	options         string // for the processing of items
	sound           bool   // the sound of a video is an item too
	soundReferences bool   // a part may refer to a video and its sound (vLLM 0.33)
}

// readPrompt reads the messages of a chat, or else the prompt of a completion.
func readPrompt(o object, soundReferences bool) (prompt, error) {
	var p prompt
	if !o.has("messages") {
		err := p.addPrompt(o["prompt"])
		return p, within("prompt", err)
	}
	messages, err := array(o["messages"])
	if err != nil {
		return p, fmt.Errorf("messages: %w", err)
	}
	r := reader{processingOptions(o), soundWanted(o), soundReferences}
	for n, message := range messages {
		if err := p.addMessage(message, r); err != nil {
			return p, fmt.Errorf("messages[%d]: %w", n, err)
		}
	}
	return p, nil
}

func (p *prompt) addMessage(raw json.RawMessage, o reader) error {
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
	if !message.has("content") || p.addText(content) { // no content: an assistant's tool calls
		return nil
	}
	parts, err := array(content)
	if err != nil {
		return errors.New("content must be a string or a list")
	}
	for n, part := range parts {
		from := len(p.items)
		if err := p.addPart(part, o); err != nil {
			return fmt.Errorf("content[%d]: %w", n, err)
		}
		for i := range p.items[from:] {
			p.items[from+i].message, p.items[from+i].part = len(p.roles)-1, n
		}
	}
	return nil
}

// addPart adds a text or an item. A part that is a string is text. A video may be two
// items, itself and its sound.
func (p *prompt) addPart(raw json.RawMessage, o reader) error {
	if p.addText(raw) {
		return nil
	}
	part, err := parseObject(raw)
	if err != nil {
		return err
	}
	if o.soundReferences && part.is("type", `"video_embeds"`) && part.has("video_embeds") && part.has("audio_embeds") {
		return p.addLoads(o, load{"video_embeds", "video_embeds", part["video_embeds"], part["uuid"]},
			load{"audio_embeds", "audio_embeds", part["audio_embeds"], part["uuid"]})
	}
	r, err := readPart(part)
	if err != nil {
		return err
	}
	switch r.kind {
	case "text", "input_text", "output_text", "refusal", "thinking":
		if r.content != nil && !p.addText(r.content) {
			return fmt.Errorf("%s must be a string", contents[r.kind])
		}
		return nil
	case "tool_reference":
		return nil
	}
	l, err := r.load()
	if err != nil {
		return err
	}
	if o.sound && l.kind == "video" && !falsy(l.value) {
		return p.addLoads(o, l, load{"audio", l.member, l.value, l.uuid})
	}
	return p.addLoads(o, l)
}

func (p *prompt) addLoads(o reader, loads ...load) error {
	for _, l := range loads {
		i, err := newItem(l, o.options)
		if err != nil {
			return err
		}
		p.items = append(p.items, i)
	}
	return nil
}

// addText reports false if the value is not a string.
func (p *prompt) addText(raw json.RawMessage) bool {
	text, ok := stringOf(raw)
	if ok {
		p.texts = append(p.texts, text)
	}
	return ok
}

// addPrompt adds a string, a list of strings, or token ids.
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
