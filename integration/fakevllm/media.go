package fakevllm

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// item is a media item of a request.
type item struct {
	kind     string // the member of the part, such as "input_audio"
	modality string // "image", "audio" or "video"
	ready    bool   // it is an embedding, or a reference to one
	cached   bool   // the request has only its uuid: the engine must have it already

	// key is the SHA-256 of the media and the processing options: the embeddings of one
	// image differ if the options differ.
	key string

	// hash is what engines call mm_hash: the key or, if the part has a uuid, a hash of
	// both. An item must have its uuid in all requests or in none, or the consumer
	// looks up another hash than was encoded.
	hash string

	message, part int             // position of the part
	uuid          json.RawMessage // of the part, nil if it has none
	value         json.RawMessage // the data or URL that is loaded
	options       string          // for its processing
}

// newItem makes an item of what a part loads.
func newItem(l load, options string) (item, error) {
	modality, _, _ := strings.Cut(l.kind, "_")
	i := item{kind: l.member, modality: modality, ready: strings.HasSuffix(l.kind, "_embeds"), value: l.value, options: options}
	if l.uuid != nil {
		i.uuid = bytes.Clone(l.uuid) // a clone, so that the item does not keep the body in memory
	}
	content, isText := stringOf(l.value)
	switch {
	case l.kind == "image_pil":
		return i, errors.New("image_pil must not reach an engine: it would be fetched past all checks")
	case l.kind == "prompt_embeds":
		//lint:ignore ST1005 vLLM's words
		return i, errors.New("You must set `--enable-prompt-embeds` to input `prompt_embeds`")
	case i.ready:
		content = canonical(l.value)
	case falsy(l.value) && i.uuid == nil:
		return i, fmt.Errorf("multi_modal_data['%s'] is empty but multi_modal_uuids['%s'] is missing", modality, modality)
	case falsy(l.value):
		content, i.cached = "cached "+canonical(i.uuid), true
	case !isText:
		return i, fmt.Errorf("%s: no URL", i.kind)
	}
	i.key = digest(i.modality, content, options)
	i.hash = i.key
	if i.uuid != nil {
		i.hash = digest(i.key, canonical(i.uuid))
	}
	return i, nil
}

// falsy reports whether a value is false in Python.
func falsy(raw json.RawMessage) bool {
	if len(raw) > 2 && raw[0] == '"' {
		return false // saves work: media are megabytes
	}
	switch compact(raw) {
	case "null", "false", "0", `""`, "[]", "{}":
		return true
	}
	return false
}

// load is what vLLM loads for a part, with the names of its parser.
type load struct {
	kind   string // image, audio, video, image_pil, prompt_embeds, or embeds of a modality
	member string // of the part
	value  json.RawMessage
	uuid   json.RawMessage
}

// loads returns what vLLM 0.32 loads for a part that is not text (renderers/chat_utils.py).
func (r reading) load() (load, error) {
	l := load{kind: r.kind, member: r.kind, value: r.content, uuid: r.uuid}
	switch r.kind {
	case "input_image":
		l.kind, l.member = "image", "image_url"
	case "image_url", "audio_url", "video_url":
		l.kind = strings.TrimSuffix(r.kind, "_url")
	case "input_audio":
		l.kind, l.value = "audio", nil
		if falsy(r.content) {
			return l, nil
		}
		audio, err := parseObject(r.content)
		if err != nil {
			return l, fmt.Errorf("input_audio: %w", err)
		}
		if !falsy(audio["data"]) {
			l.value = marshal(fmt.Sprintf("data:audio/%s;base64,%s", python(audio, "format"), python(audio, "data")))
		}
	case "prompt_embeds":
		l.uuid = nil
		if falsy(r.content) {
			return l, errors.New("prompt_embeds content part requires a non-empty `data` field")
		}
	}
	return l, nil
}

// python formats a member as Python formats it in a string.
func python(o object, name string) string {
	if text, ok := stringOf(o[name]); ok {
		return text
	}
	if raw, ok := o[name]; ok {
		return cmp.Or(map[string]string{"null": "None", "true": "True", "false": "False"}[string(raw)], string(raw))
	}
	return ""
}

// within adds the place to an error, if there is one.
func within(where string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", where, err)
}

// digest hashes a list of strings; the hashes of different lists differ.
func digest(values ...string) string {
	h := sha256.New()
	for _, v := range values {
		_, _ = fmt.Fprintf(h, "%d:", len(v))
		_, _ = io.WriteString(h, v)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// processingOptions are the members that affect how an item is encoded.
func processingOptions(o object) string {
	return canonical(o["mm_processor_kwargs"]) + canonical(o["media_io_kwargs"])
}

// soundWanted reports whether the sound of a video is an item too.
func soundWanted(o object) bool {
	kwargs, err := parseObject(o["mm_processor_kwargs"])
	return err == nil && !falsy(kwargs["use_audio_in_video"])
}
