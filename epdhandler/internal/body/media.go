package body

import (
	"fmt"
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

	media
	typ  Range // of the value of the type; empty if there is none
	uuid Range // of the value of the client's uuid, if it is kept
}

// Path is where the item stands in the request, such as "messages[0].content[2]".
func (i Item) Path() string { return partPath(i.Message, i.Part) }

// UUID returns the client's uuid of an item, as written, if it is kept.
func (b *Body) UUID(i Item) []byte { return b.Slice(i.uuid) }

// URL returns the URL of an item that is not inline, unescaped. If it has more than
// max bytes as written, it is cut, but in no escape, and whole is false.
func (b *Body) URL(i Item, max int) (url string, whole bool) {
	end := b.cut(i.payload, max)
	return string(unescape(b.Slice(Range{i.payload.Start, end}))), end == i.payload.End
}

// What follows is how vLLM 0.32 reads a content part (renderers/chat_utils.py). A part that
// has a uuid, or no type, is read by the first of these members that it has, null or not,
// in an order of vLLM's own; any other part by its type. A part is accepted here only if
// both ways lead to the same media: it has one media member that is not null, those that
// are null are blanked, and its type fits.

// carriers are the members of a part that vLLM reads as media.
var carriers = [...]string{
	imageURL, "audio_url", inputAudio, "video_url",
	imagePIL, "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds",
}

const (
	imageURL   = "image_url"
	inputAudio = "input_audio"
	imagePIL   = "image_pil"
	inputImage = "input_image" // a type, of the Responses API, of a part with image_url

	encodable = 4 // so many of the carriers are for encoders; the others are ready for the model

	maxType = len(`\u0000`) * len("prompt_embeds") // the longest way to write a type that counts
)

// carrier returns which media member has this name, and whether it is for encoders.
func carrier[T string | []byte](name T) (kind string, encoded bool) {
	for i, c := range carriers {
		if string(name) == c {
			return c, i < encodable
		}
	}
	return "", false
}

// mediaParser finds the media items of a request's messages.
type mediaParser struct {
	items   []Item
	max     int
	trusted bool
	blanks  []place // members of the current part that engines may not get
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
			first := s.peek()
			if first != '[' && first != '{' {
				return s.value()
			}
			switch string(m.name) {
			case "content":
				if first == '[' {
					return s.list(func(part int) error { return p.part(s, message, part) })
				}
			case "reasoning", "reasoning_content":
				if !p.trusted { // vLLM 0.33 takes prompt_embeds there (renderers/chat_utils/chat_message.py)
					return &Error{
						Message: fmt.Sprintf("the %s of message %d must be a string", m.name, message),
						Param:   fmt.Sprintf("messages[%d].%s", message, m.name),
					}
				}
			}
			return s.value()
		})
	})
}

// part reads a content part. Its members come in any order, so what it is can be told only
// at its end.
func (p *mediaParser) part(s *scanner, message, index int) error {
	if s.peek() != '{' {
		return s.value() // plain strings are text
	}
	var (
		seen names
		it   part
	)
	start, unfinished := s.i, false
	p.blanks = p.blanks[:0]
	err := s.object(&seen, func(m member) error {
		if unfinished {
			p.blanks[len(p.blanks)-1].after = m.before
		}
		null := s.peek() == 'n'
		kind, _ := carrier(m.name)
		if unfinished = kind != "" && null || string(m.name) == "uuid" && !p.trusted; unfinished {
			p.blanks = append(p.blanks, place{before: m.before})
		}
		return it.member(s, m, null)
	})
	if err != nil {
		return err
	}
	if unfinished {
		p.blanks[len(p.blanks)-1].after = s.i - 1
	}
	if problem := it.problem(p.trusted); problem != nil {
		problem.Message = fmt.Sprintf("part %d of message %d ", index, message) + problem.Message
		if problem.Param != "" {
			problem.Param = "." + problem.Param
		}
		problem.Param = partPath(message, index) + problem.Param
		return problem
	}
	named := it.named && p.trusted
	if named && it.kind == "" {
		return nil // the engines have the media, or refuse the part
	}
	for _, m := range p.blanks {
		s.blank(m)
	}
	if _, encoded := carrier(it.kind); !encoded || it.payload.empty() {
		return nil
	}
	if len(p.items) == p.max {
		return &Error{Message: fmt.Sprintf("the request has more than %d media items", p.max), Param: "messages"}
	}
	item := Item{
		Message: message, Part: index, Range: Range{start, s.i},
		Kind: it.kind, Inline: it.kind == inputAudio, media: it.media, typ: it.typ,
	}
	if p.trusted {
		item.uuid = it.uuid
		if v := s.b[it.uuid.Start:it.uuid.End]; len(v) > 0 && v[0] == '"' {
			item.UUID = string(unescape(v[1 : len(v)-1]))
		}
	}
	p.items = append(p.items, item)
	return nil
}

// blank overwrites a member and one of the commas around it with spaces. Members before
// it that are blanked as well must have been.
func (s *scanner) blank(m place) {
	start, end := m.before, m.after
	if s.b[start] != ',' {
		if start++; s.b[end] == ',' {
			end++
		}
	}
	for i := start; i < end; i++ {
		s.b[i] = ' '
	}
}

// media is what carries the media of a part.
type media struct {
	member  Range // from the name to the end of the value
	value   Range
	payload Range // of the URL or the data, between the quotes; empty if there is none
	format  Range // of the format of input_audio: of the value, empty if there is none
}

// isString reports whether the URL is a plain string, not in an object.
func (m media) isString() bool { return m.payload.End == m.value.End-1 }

// part is what a content part says of itself.
type part struct {
	media
	kind   string // the media member that is not null; empty if there is none
	second bool   // there is one more
	nulls  bool   // there is a media member that is null
	bad    bool   // the media member has no form that vLLM knows

	typ    Range  // of its value; empty if it is missing
	odd    bool   // it is no string
	text   string // the type, if it is a string and not too long
	uuid   Range  // of its value
	named  bool   // uuid is not null
	texted bool   // it is a string
	detail bool   // there is one, which input_image must have
}

func (it *part) member(s *scanner, m member, null bool) error {
	start := s.i
	kind, encoded := carrier(m.name)
	switch {
	case kind != "" && !null:
		it.second = it.second || it.kind != ""
		it.kind, it.media, it.bad = kind, media{}, false
		var err error
		if encoded {
			err = it.read(s)
		} else {
			err = s.value()
		}
		it.media.member, it.media.value = Range{m.raw.Start, s.i}, Range{start, s.i}
		return err
	case kind != "":
		it.nulls = true
	case string(m.name) == "uuid":
		it.texted = s.peek() == '"'
		err := s.value()
		it.uuid, it.named = Range{start, s.i}, !null
		return err
	case string(m.name) == "type":
		err := s.value()
		it.typ = Range{start, s.i}
		v := s.b[start:s.i]
		if it.odd = err == nil && v[0] != '"'; err == nil && !it.odd && len(v) <= maxType+2 {
			it.text = string(unescape(v[1 : len(v)-1]))
		}
		return err
	case string(m.name) == "detail":
		it.detail = s.peek() == '"'
	}
	return s.value()
}

// read steps over the value of a media member for encoders. vLLM knows {"url": "…"}, also
// as a plain string, and for input_audio {"data": "…", "format": "…"}.
func (it *part) read(s *scanner) (err error) {
	payload := "url"
	if it.kind == inputAudio {
		payload = "data"
	}
	switch c := s.peek(); {
	case c == '"' && payload == "url":
		it.payload, err = s.str()
		return err
	case c != '{':
		it.bad = true
		return s.value()
	}
	var seen names
	return s.object(&seen, func(m member) (err error) {
		start, c := s.i, s.peek()
		switch name := string(m.name); {
		case name == payload && c == '"':
			it.payload, err = s.str()
			return err
		case name == payload, name == "format" && it.kind == inputAudio:
			it.bad = it.bad || c != 'n' && (name == payload || c != '"')
			err = s.value()
			if name == "format" {
				it.format = Range{start, s.i}
			}
			return err
		}
		return s.value()
	})
}

// problem says why a part cannot be accepted, in words that follow "part 1 of message 2",
// and which of its members is at fault.
func (it *part) problem(trusted bool) *Error {
	named := it.texted && trusted // vLLM does not look at the type then
	kind, encoded := carrier(it.kind)
	typeKind, typeEncoded := carrier(it.text)
	if it.text == inputImage {
		typeKind, typeEncoded = imageURL, true
	}
	wrong := func(member, format string, args ...any) *Error {
		return &Error{Message: fmt.Sprintf(format, args...), Param: member}
	}
	switch {
	case it.odd: // vLLM answers 500, having loaded the media
		return wrong("type", "has a type that is no string")
	case it.second:
		return wrong("", "has more than one media member; send one part for each")
	case kind == imagePIL || typeKind == imagePIL:
		return wrong(imagePIL, "has image_pil, which JSON cannot carry; send image_url")
	case !trusted && kind != "" && !encoded:
		return wrong(kind, "has %s, which only trusted clients may send", kind)
	case !trusted && typeKind != "" && !typeEncoded:
		return wrong("type", "has the type %s, which only trusted clients may send", typeKind)
	case kind == "" && (it.nulls || typeKind != "") && it.named && !trusted:
		return wrong("", "is nothing but a uuid; send its media, for clients may not name what others have sent")
	case kind == "" && typeEncoded && !(it.named && trusted):
		return wrong(typeKind, "has no %s", typeKind)
	case !encoded:
		return nil
	case !it.typ.empty() && typeKind != kind && !named:
		return wrong("type", "has %s, but its type is another", kind)
	case it.bad, !named && it.misformed():
		return wrong(kind, "has %s in no known form: it must be %s", kind, it.form())
	case it.payload.empty() && !named:
		return wrong(kind, "has no media in %s", kind)
	}
	return nil
}

// misformed reports whether vLLM refuses the form of the value for the type of the part.
// Without a type it takes both.
func (it *part) misformed() bool {
	isString := it.isString()
	if it.text == inputImage {
		return !isString || !it.detail
	}
	return isString && !it.typ.empty()
}

// form is what the value should be.
func (it *part) form() string {
	switch {
	case it.kind == inputAudio:
		return `{"data": "…", "format": "…"}`
	case it.text == inputImage:
		return `a string, and there must be detail`
	}
	return `{"url": "…"}`
}
