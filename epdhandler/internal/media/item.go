package media

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// setUUID returns the patch that gives the item a uuid, a JSON string.
func (i Item) setUUID(uuid []byte) body.Patch {
	if i.uuid.End > 0 {
		return body.Patch{Range: i.uuid, With: uuid}
	}
	end := i.Range.End - 1
	return body.Patch{Range: body.Range{Start: end, End: end}, With: append([]byte(`,"uuid":`), uuid...)}
}

// refer returns the patches that replace the media of an item by a reference: a part of another
// type, with these members in the place of the media. What else is in the part stays, because
// vLLM hands it to the chat template.
func (i Item) refer(members []byte) []body.Patch {
	typ := []byte(`"` + embeds(i.Modality()) + `"`)
	if i.typ.Empty() {
		return []body.Patch{{Range: i.member, With: bytes.Join([][]byte{[]byte(`"type":`), typ, []byte(","), members}, nil)}}
	}
	return []body.Patch{{Range: i.typ, With: typ}, {Range: i.member, With: members}}
}

// maxFormat is the longest format of input_audio that is looked at.
const maxFormat = 64

// embeds is the member and the type of a part with a reference to media of a modality.
func embeds(modality string) string { return modality + "_embeds" }

// appendAlone appends the part of an item, with a uuid if there is one, in a form in which
// vLLM takes it as the only part of a message. It is stricter then: unless there is a uuid, the part
// must have its type, the URL must be in an object, and the format of input_audio must be one of OpenAI's.
func (s *Set) appendAlone(pieces [][]byte, i Item, uuid []byte) [][]byte {
	b := s.body
	format := b.Slice(i.format)
	common := i.Kind != inputAudio || body.IsString(format, "wav") || body.IsString(format, "mp3")
	open := func(kind string) []byte { return []byte(`{"type":"` + kind + `","` + kind + `":`) }
	switch {
	case i.UUID != "":
		return append(pieces, b.Slice(i.Range))
	case i.uuid.Empty() && !i.isString() && common && body.IsString(b.Slice(i.typ), i.Kind):
		pieces = append(pieces, b.Slice(body.Range{Start: i.Range.Start, End: i.Range.End - 1}))
	case i.isString():
		pieces = append(pieces, open(i.Kind), []byte(`{"url":`), b.Slice(i.value), []byte("}"))
	case !common && len(format) <= maxFormat:
		// this is what vLLM makes of it
		pieces = append(pieces, open(audioURL), []byte(`{"url":"data:audio/`), formatText(format), []byte(`;base64,`), b.Slice(i.payload), []byte(`"}`))
	case i.Kind == inputAudio:
		pieces = append(pieces, open(i.Kind), b.Slice(i.value))
	default: // without detail and the like, which would have to be right then
		url := body.Range{Start: i.payload.Start - 1, End: i.payload.End + 1}
		pieces = append(pieces, open(i.Kind), []byte(`{"url":`), b.Slice(url), []byte("}"))
	}
	if uuid != nil {
		pieces = append(pieces, []byte(`,"uuid":`), uuid)
	}
	return append(pieces, []byte("}"))
}

// formatText is how vLLM writes the format of input_audio into a URL, as the inside of a
// JSON string.
func formatText(format []byte) []byte {
	switch {
	case len(format) == 0:
		return nil
	case format[0] != '"':
		return []byte("None")
	}
	return format[1 : len(format)-1]
}

// url returns the URL of an item that is not inline, unescaped. If it has more than
// max bytes as written, it is cut, but in no escape, and whole is false.
func (s *Set) url(i Item, max int) (url string, whole bool) {
	raw := s.body.Slice(i.payload)
	end := body.Cut(raw, max)
	return string(body.Unescape(raw[:end])), end == len(raw)
}

// writeMedia writes all that vLLM reads of the media of an item, as fields: the kind, the
// format of audio, and the URL or data, unescaped. Two items that write the same are the same media.
func (s *Set) writeMedia(w io.Writer, i Item) {
	writeString(w, []byte(i.Kind))
	if i.Kind == inputAudio {
		writeString(w, formatText(s.body.Slice(i.format)))
	}
	writeString(w, s.body.Slice(i.payload))
}

// writeField writes a field of what is hashed: its length comes first, so that no two
// lists of fields look the same.
func writeField(w io.Writer, field []byte) {
	writeLength(w, len(field))
	_, _ = w.Write(field)
}

// writeString writes the inside of a string, unescaped, as a field.
func writeString(w io.Writer, raw []byte) {
	length := 0
	for piece := range body.Unescaped(raw) {
		length += len(piece)
	}
	writeLength(w, length)
	for piece := range body.Unescaped(raw) {
		_, _ = w.Write(piece)
	}
}

func writeLength(w io.Writer, n int) {
	_, _ = w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}
