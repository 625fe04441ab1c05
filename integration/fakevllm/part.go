package fakevllm

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// reading is how vLLM reads a content part.
type reading struct {
	kind    string          // its type, or the member from which the type follows
	content json.RawMessage // nil for null
	uuid    json.RawMessage // nil if there is none
}

// carriers are the members from which a type follows, in vLLM's order.
var carriers = []string{
	"image_url", "image_pil", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds",
	"audio_url", "input_audio", "video_url", "tool_reference",
}

// contents maps the type of a part to the member with its content. Types with an object that
// has a URL are checked by the form of the part.
var contents = map[string]string{
	"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
	"tool_reference": "name", "prompt_embeds": "data", "image_pil": "image_pil", "input_audio": "input_audio",
	"image_embeds": "image_embeds", "audio_embeds": "audio_embeds", "video_embeds": "video_embeds",
	"image_url": "image_url", "audio_url": "audio_url", "video_url": "video_url", "input_image": "image_url",
}

// readPart reads a part as vLLM 0.32 does (renderers/chat_utils.py): by its type or, if it
// has none, or has a uuid, by the first carrier that it has, which may be null.
func readPart(part object) (reading, error) {
	typ, isString := stringOf(part["type"])
	r := reading{kind: typ}
	if part.has("uuid") {
		r.uuid = part["uuid"]
	}
	member, known := contents[typ]
	switch {
	case isString && known && r.uuid == nil:
		var err error
		r.content, err = typed(part, typ, member)
		return r, within(typ, err)
	case isString && r.uuid == nil:
		return r, fmt.Errorf("unknown part type: %s", typ)
	case part.has("type") && r.uuid == nil:
		return r, errors.New("invalid 'type' field")
	}
	at := slices.IndexFunc(carriers, func(name string) bool { _, there := part[name]; return there })
	if at < 0 {
		return r, errors.New("content part without a type")
	}
	r.kind = carriers[at]
	switch r.kind {
	case "prompt_embeds", "tool_reference":
		r.content = notNull(part[contents[r.kind]])
	case "image_url", "audio_url", "video_url":
		r.content = notNull(part[r.kind])
		if url, err := parseObject(r.content); err == nil {
			r.content = notNull(url["url"])
		}
	default:
		r.content = notNull(part[r.kind])
	}
	return r, nil
}

// typed returns the content of a part that is read by its type.
func typed(part object, typ, member string) (json.RawMessage, error) {
	content := notNull(part[member])
	switch typ {
	case "input_image":
		if _, isString := stringOf(content); content != nil && !isString {
			return nil, errors.New("image_url must be a string")
		}
		return content, literal(part, "detail", "low", "high", "auto", "original")
	case "image_url", "audio_url", "video_url":
		url, err := parseObject(content)
		if err != nil {
			return nil, err
		}
		if _, isString := stringOf(url["url"]); !isString {
			return nil, errors.New("url must be a string")
		}
		if _, there := url["detail"]; there && typ == "image_url" {
			err = literal(url, "detail", "low", "high", "auto")
		}
		return url["url"], err
	}
	return content, nil
}

// literal requires a member to be one of these strings.
func literal(o object, name string, values ...string) error {
	if value, _ := stringOf(o[name]); !slices.Contains(values, value) {
		return fmt.Errorf("%s must be one of %q", name, values)
	}
	return nil
}

func notNull(raw json.RawMessage) json.RawMessage {
	if string(raw) == "null" {
		return nil
	}
	return raw
}

// alone reports whether vLLM accepts the part in a message without text. It is stricter then:
// the part must have a uuid, or the form of its type.
func alone(part object) bool {
	uuid, there := part["uuid"]
	if _, isString := stringOf(uuid); there && (isString || string(uuid) == "null") {
		return true
	}
	typ, _ := stringOf(part["type"])
	switch typ {
	case "input_audio":
		audio, _ := parseObject(part["input_audio"])
		_, isString := stringOf(audio["data"])
		return isString && literal(audio, "format", "wav", "mp3") == nil
	case "":
		return slices.ContainsFunc([]string{"image_url", "audio_url", "video_url"}, func(name string) bool {
			_, isString := stringOf(part[name])
			return isString || string(part[name]) == "null"
		})
	}
	return true // it was read by its type
}
