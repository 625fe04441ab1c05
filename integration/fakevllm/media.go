package fakevllm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// mediaKinds are the content parts that hold media. The order decides about a
// part without a type that has several of these keys.
var mediaKinds = []string{
	"image_url", "image_embeds", "audio_url", "input_audio", "audio_embeds", "video_url", "video_embeds",
}

// item is a media item of a request.
type item struct {
	kind string

	// key is the SHA-256 of the media and the processing options: an encoder
	// and a consumer that process an image differently do not mean the same embedding.
	key string

	// hash is what engines call mm_hash: the key, or, if the part brings a
	// uuid, one that depends on the uuid too. An item must have its uuid
	// everywhere or nowhere, or the consumer looks up another hash than was encoded.
	hash string

	uuid    json.RawMessage // of the part, nil if it has none
	value   json.RawMessage // of the part
	options string          // for its processing
}

// ready reports whether the part is an embedding already.
func (i item) ready() bool { return strings.HasSuffix(i.kind, "_embeds") }

// newItem reads the part's value, in its long or its short form.
func newItem(kind string, part object, options string) (item, error) {
	content, err := mediaContent(kind, part[kind])
	if err != nil {
		return item{}, err
	}
	i := item{kind: kind, key: digest(kind, content, options), value: part[kind], options: options}
	i.hash = i.key
	if part.has("uuid") {
		i.uuid = bytes.Clone(part["uuid"]) // what keeps the item keeps no body
		i.hash = digest(i.key, canonical(i.uuid))
	}
	return i, nil
}

// mediaContent is what makes an item this item and no other.
func mediaContent(kind string, value json.RawMessage) (string, error) {
	if strings.HasSuffix(kind, "_embeds") {
		return canonical(value), nil
	}
	if kind == "input_audio" {
		return audioContent(value)
	}
	if url, ok := stringOf(value); ok && url != "" {
		return url, nil
	}
	media, err := parseObject(value)
	if err != nil {
		return "", fmt.Errorf("%s: %w", kind, err)
	}
	url, err := media.text("url")
	return url, within(kind, err)
}

func audioContent(value json.RawMessage) (string, error) {
	audio, err := parseObject(value)
	if err != nil {
		return "", fmt.Errorf("input_audio: %w", err)
	}
	data, errData := audio.text("data")
	format, errFormat := audio.text("format")
	return format + ":" + data, within("input_audio", errors.Join(errData, errFormat))
}

// within says where an error, if there is one, happened.
func within(where string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", where, err)
}

// digest hashes strings so that no two lists of them look the same.
func digest(values ...string) string {
	h := sha256.New()
	for _, v := range values {
		_, _ = fmt.Fprintf(h, "%d:", len(v))
		_, _ = io.WriteString(h, v)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// processingOptions are the members that change what an encoder makes of an item.
func processingOptions(o object) string {
	return canonical(o["mm_processor_kwargs"]) + canonical(o["media_io_kwargs"])
}
