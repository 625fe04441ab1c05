package body

import (
	"bytes"
	"fmt"
	"io"
)

// Item is a media item: one part of a message's content that an encoder turns
// into embeddings.
type Item struct {
	Message, Part int // position in messages, and in that message's content

	// Range is the whole part, from brace to brace.
	Range Range

	// Kind is the member that carries the media, such as "image_url".
	Kind string

	// Inline is whether the media are in the request as data, not by a URL.
	Inline bool

	// UUID is the client's, unescaped, if it is kept; empty if there is none.
	UUID string

	payload Range // of the URL or the data, between the quotes
	uuid    Range // of the value of the client's uuid, if it is kept
}

// Path is where the item stands in the request, such as "messages[0].content[2]".
func (i Item) Path() string { return partPath(i.Message, i.Part) }

// Name returns the patch that gives the item a uuid, a JSON string.
func (i Item) Name(uuid []byte) Patch {
	if i.uuid.End > 0 {
		return Patch{Range: i.uuid, With: uuid}
	}
	end := i.Range.End - 1
	return Patch{Range: Range{end, end}, With: append([]byte(`,"uuid":`), uuid...)}
}

// UUID returns the client's uuid of an item, as written, if it is kept.
func (b *Body) UUID(i Item) []byte { return b.Slice(i.uuid) }

// URL returns the URL of an item that is not inline, unescaped. If it has more than
// max bytes as written, it is cut, but in no escape, and whole is false.
func (b *Body) URL(i Item, max int) (url string, whole bool) {
	end := b.cut(i.payload, max)
	return string(unescape(b.Slice(Range{i.payload.Start, end}))), end == i.payload.End
}

// WriteContent writes what makes the media of an item these and no others: their kind,
// and the URL or data, unescaped. Two items with equal content are the same media.
func (b *Body) WriteContent(w io.Writer, i Item) {
	_, _ = io.WriteString(w, i.Kind+"\x00")
	for r := i.payload; r.Start < r.End; {
		piece := Range{r.Start, b.cut(r, maxPiece)}
		_, _ = w.Write(unescape(b.Slice(piece)))
		r.Start = piece.End
	}
}

const maxPiece = 64 << 10 // bytes that are unescaped at once

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

// mediaKeys are the members that carry media, in the order in which vLLM looks
// for them in a part that does not tell its type.
var mediaKeys = [...]string{"image_url", "audio_url", "input_audio", "video_url"}

const (
	inputAudio = "input_audio"
	inputImage = "input_image" // the type, in the Responses API, of a part with image_url

	maxType = len(`\u0000`) * len(inputAudio) // the longest way to write a type that counts
)

// maxCuts is how many parts of a request may have a uuid that is left out. A body is
// written in pieces then, which take more memory than what lies between the cuts.
const maxCuts = 10_000

// mediaParser finds the media items of a request's messages.
type mediaParser struct {
	items     []Item
	max       int
	cuts      []Patch // the uuids
	keepUUIDs bool
}

func (p *mediaParser) messages(s *scanner) error {
	if s.peek() != '[' {
		return &Error{Message: "'messages' must be a list", Param: "messages"}
	}
	return s.list(func(message int) error {
		if s.peek() != '{' {
			return s.value() // for the engine to refuse
		}
		var seen names
		return s.object(&seen, func(m member) error {
			if string(m.name) != "content" || s.peek() != '[' {
				return s.value()
			}
			return s.list(func(part int) error { return p.part(s, message, part) })
		})
	})
}

// part is what one content part says of itself. Members come in any order, so
// what it is can be told only at its end.
type part struct {
	typ     string // the type, if it is one that carries media or is another string
	typed   bool   // type is there and not null
	uuid    bool   // uuid is there and not null
	value   Range  // of uuid
	content bool   // there is anything besides type and uuid
	cut     place  // of uuid
	present [len(mediaKeys)]bool
	known   [len(mediaKeys)]bool // the value has a known form
	payload [len(mediaKeys)]Range
}

func (p *mediaParser) part(s *scanner, message, index int) error {
	if s.peek() != '{' {
		return s.value() // plain strings are text
	}
	var (
		seen names
		it   part
	)
	start := s.i
	inUUID := false
	err := s.object(&seen, func(m member) error {
		if inUUID {
			it.cut.after, inUUID = m.before, false
		}
		if inUUID = string(m.name) == "uuid"; inUUID {
			it.cut.before = m.before
		}
		return it.member(s, m)
	})
	if err != nil {
		return err
	}
	if inUUID {
		it.cut.after = s.i - 1
	}
	if it.uuid && !it.content {
		if p.keepUUIDs {
			return nil // the engines have the media
		}
		return &Error{
			Message: fmt.Sprintf("part %d of message %d is nothing but a uuid; send its media, for clients may not name what others have sent", index, message),
			Param:   partPath(message, index),
		}
	}
	if it.cut.after > 0 && !p.keepUUIDs {
		if len(p.cuts) == maxCuts {
			return &Error{Message: fmt.Sprintf("more than %d parts of the request have a uuid", maxCuts), Param: "messages"}
		}
		p.cuts = append(p.cuts, Patch{Range: s.without(it.cut)})
	}
	it.uuid = it.uuid && p.keepUUIDs
	key, ok := it.media()
	if !ok {
		return nil
	}
	if !it.known[key] {
		return unknownForm(key, message, index)
	}
	if len(p.items) == p.max {
		return &Error{Message: fmt.Sprintf("the request has more than %d media items", p.max), Param: "messages"}
	}
	item := Item{
		Message: message, Part: index, Range: Range{start, s.i},
		Kind: mediaKeys[key], Inline: mediaKeys[key] == inputAudio, payload: it.payload[key],
	}
	if p.keepUUIDs {
		item.uuid = it.value
		if v := s.b[it.value.Start:it.value.End]; len(v) > 0 && v[0] == '"' {
			item.UUID = string(unescape(v[1 : len(v)-1]))
		}
	}
	p.items = append(p.items, item)
	return nil
}

func (it *part) member(s *scanner, m member) error {
	for key, name := range mediaKeys {
		if string(m.name) == name {
			it.content = it.content || s.peek() != 'n'
			return it.mediaValue(s, key)
		}
	}
	switch string(m.name) {
	case "uuid":
		it.uuid = s.peek() != 'n'
		start := s.i
		err := s.value()
		it.value = Range{start, s.i}
		return err
	case "type":
		it.typed = s.peek() != 'n'
		if s.peek() == '"' {
			r, err := s.str()
			if r.End-r.Start <= maxType {
				it.typ = string(unescape(s.b[r.Start:r.End]))
			}
			return err
		}
	default:
		it.content = it.content || s.peek() != 'n'
	}
	return s.value()
}

// without is the range that takes a member out of its object, together with one
// of the commas around it.
func (s *scanner) without(p place) Range {
	switch {
	case s.b[p.before] == ',':
		return Range{p.before, p.after}
	case s.b[p.after] == ',':
		return Range{p.before + 1, p.after + 1}
	}
	return Range{p.before + 1, p.after}
}

// mediaValue steps over the value of a member that may carry media. The known
// forms are {"url": "…"}, for input_audio {"data": "…", …}, and for the URLs also
// a plain string (vLLM, chat_utils).
func (it *part) mediaValue(s *scanner, key int) error {
	payload := "url"
	if mediaKeys[key] == inputAudio {
		payload = "data"
	}
	text := func() (err error) {
		it.known[key] = true
		it.payload[key], err = s.str()
		return err
	}
	it.present[key] = s.peek() != 'n'
	switch s.peek() {
	case '"':
		if payload == "url" {
			return text()
		}
	case '{':
		var seen names
		return s.object(&seen, func(m member) error {
			if string(m.name) == payload && s.peek() == '"' {
				return text()
			}
			return s.value()
		})
	}
	return s.value()
}

// media tells which of the media keys the part is about, as vLLM does: its type
// says so or, if there is none, or there is a uuid, the first key that is there.
func (it *part) media() (key int, ok bool) {
	for key, name := range mediaKeys {
		if it.typ == name {
			return key, true
		}
	}
	if it.typ == inputImage {
		return 0, true
	}
	if it.typed && !it.uuid {
		return 0, false
	}
	for key, present := range it.present {
		if present {
			return key, true
		}
	}
	return 0, false
}

func unknownForm(key, message, index int) error {
	name := mediaKeys[key]
	want := `{"url": "…"} or a string`
	if name == inputAudio {
		want = `{"data": "…", "format": "…"}`
	}
	return &Error{
		Message: fmt.Sprintf("the %s in part %d of message %d has no known form: it must be %s", name, index, message, want),
		Param:   partPath(message, index) + "." + name,
	}
}
