package body

import (
	"bytes"
	"encoding/binary"
	"io"
	"iter"
)

// SetUUID returns the patch that gives the item a uuid, a JSON string.
func (i Item) SetUUID(uuid []byte) Patch {
	if i.uuid.End > 0 {
		return Patch{Range: i.uuid, With: uuid}
	}
	end := i.Range.End - 1
	return Patch{Range: Range{end, end}, With: append([]byte(`,"uuid":`), uuid...)}
}

// Refer returns the patches that have a reference stand in for the media of an item: a part
// of another type, with these members in the place of the media. What else is in the part stays,
// because vLLM hands it to the chat template.
func (i Item) Refer(kind string, members []byte) []Patch {
	typ := []byte(`"` + kind + `"`)
	if i.typ.empty() {
		return []Patch{{i.member, bytes.Join([][]byte{[]byte(`"type":`), typ, []byte(","), members}, nil)}}
	}
	return []Patch{{i.typ, typ}, {i.member, members}}
}

// AppendAlone appends the part of an item, with a uuid if there is one, in a form in which
// vLLM takes it as the only part of a message. It is stricter then: unless there is a uuid, the part
// must have its type, the URL must be in an object, and the format of input_audio must be one of OpenAI's.
func (b *Body) AppendAlone(pieces [][]byte, i Item, uuid []byte) [][]byte {
	format := b.Slice(i.format)
	common := i.Kind != inputAudio || IsString(format, "wav") || IsString(format, "mp3")
	open := func(kind string) []byte { return []byte(`{"type":"` + kind + `","` + kind + `":`) }
	switch {
	case i.UUID != "":
		return append(pieces, b.Slice(i.Range))
	case i.uuid.empty() && !i.isString() && common && IsString(b.Slice(i.typ), i.Kind):
		pieces = append(pieces, b.Slice(Range{i.Range.Start, i.Range.End - 1}))
	case i.isString():
		pieces = append(pieces, open(i.Kind), []byte(`{"url":`), b.Slice(i.value), []byte("}"))
	case !common && len(format) <= maxFormat:
		// this is what vLLM makes of it
		pieces = append(pieces, open("audio_url"), []byte(`{"url":"data:audio/`), formatText(format), []byte(`;base64,`), b.Slice(i.payload), []byte(`"}`))
	case i.Kind == inputAudio:
		pieces = append(pieces, open(i.Kind), b.Slice(i.value))
	default: // without detail and the like, which would have to be right then
		pieces = append(pieces, open(i.Kind), []byte(`{"url":`), b.Slice(Range{i.payload.Start - 1, i.payload.End + 1}), []byte("}"))
	}
	if uuid != nil {
		pieces = append(pieces, []byte(`,"uuid":`), uuid)
	}
	return append(pieces, []byte("}"))
}

// maxFormat is the longest format of input_audio that is looked at.
const maxFormat = 64

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

// WriteField writes a field of what is hashed: its length comes first, so that no two
// lists of fields look the same.
func WriteField[T string | []byte](w io.Writer, field T) {
	writeLength(w, len(field))
	_, _ = w.Write([]byte(field))
}

// WriteMedia writes all that vLLM reads of the media of an item, as fields: the kind, the
// format of audio, and the URL or data, unescaped. Two items that write the same are the same media.
func (b *Body) WriteMedia(w io.Writer, i Item) {
	WriteField(w, i.Kind)
	if i.Kind == inputAudio {
		format := i.format
		if text := b.Slice(format); len(text) > 0 && text[0] == '"' {
			b.writeString(w, Range{format.Start + 1, format.End - 1})
		} else {
			WriteField(w, formatText(text))
		}
	}
	b.writeString(w, i.payload)
}

// writeString writes the inside of a string, unescaped, as a field.
func (b *Body) writeString(w io.Writer, r Range) {
	length := 0
	for piece := range b.unescaped(r) {
		length += len(piece)
	}
	writeLength(w, length)
	for piece := range b.unescaped(r) {
		_, _ = w.Write(piece)
	}
}

func writeLength(w io.Writer, n int) {
	_, _ = w.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

const maxPiece = 64 << 10 // bytes that are unescaped at once

// unescaped yields the inside of a string in pieces.
func (b *Body) unescaped(r Range) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for r.Start < r.End {
			piece := Range{r.Start, b.cut(r, maxPiece)}
			if !yield(unescape(b.Slice(piece))) {
				return
			}
			r.Start = piece.End
		}
	}
}

// cut returns where the first max bytes of the inside of a string end, or a little
// before if they would end in an escape.
func (b *Body) cut(r Range, max int) int {
	if r.End-r.Start <= max {
		return r.End
	}
	end := r.Start + max
	if bytes.IndexByte(b.bytes[r.Start:end], '\\') < 0 {
		return end
	}
	end = r.Start
	for next := end; next <= r.Start+max; {
		end = next
		switch {
		case b.bytes[end] != '\\':
			next++
		case b.bytes[end+1] == 'u':
			next += 6
		default:
			next += 2
		}
	}
	return end
}
