package media

import (
	"fmt"
	"strings"

	"github.com/caddy-epd/caddy-epd/epdhandler/internal/body"
)

// ParseChat indexes a chat completions request, whose messages must be a list and hold at most maxItems
// media items. Unless the client is trusted, the uuid of content parts is overwritten with spaces in b,
// and parts that only trusted clients may send are errors. Members that are null are overwritten as
// well where they could be taken for media. Errors are of type *[Error].
func ParseChat(b []byte, maxItems int, trusted bool) (*body.Body, *Set, error) {
	p := &parser{set: &Set{trusted: trusted}, max: maxItems}
	parsed, err := p.set.parse(b, body.Hook{Name: "messages", Read: p.messages})
	if err == nil && parsed.Value("messages") == nil {
		err = invalid("messages", "'messages' is missing")
	}
	if err != nil {
		return nil, nil, err
	}
	return parsed, p.set, nil
}

// parser finds the media items of a request's messages.
type parser struct {
	set    *Set
	max    int
	blanks []body.Range // around members of the current part that engines may not get
}

func (p *parser) messages(s *body.Scanner) error {
	if s.Peek() != '[' {
		return invalid("messages", "'messages' must be a list")
	}
	return s.List(func(message int) error {
		if s.Peek() != '{' {
			return s.Value() // the engine refuses it
		}
		return s.Object(func(m body.Member) error { return p.member(s, message, m) })
	})
}

// member reads a member of a message.
func (p *parser) member(s *body.Scanner, message int, m body.Member) error {
	first := s.Peek()
	switch string(m.Name) {
	case "content":
		if first == '[' {
			return s.List(func(part int) error { return p.part(s, message, part) })
		}
	case "reasoning", "reasoning_content":
		// vLLM 0.33 takes prompt_embeds there (renderers/chat_utils/chat_message.py)
		if (first == '[' || first == '{') && !p.set.trusted {
			return invalid(fmt.Sprintf("messages[%d].%s", message, m.Name), "the %s of message %d must be a string", m.Name, message)
		}
	}
	return s.Value()
}

// part reads a content part. Its members come in any order, so what it is can be told only at its end.
func (p *parser) part(s *body.Scanner, message, index int) error {
	if s.Peek() != '{' {
		return s.Value() // plain strings are text
	}
	start := s.Pos()
	var it part
	if err := p.members(s, &it); err != nil {
		return err
	}
	if problem := it.problem(p.set.trusted); problem != nil {
		problem.Message = fmt.Sprintf("part %d of message %d %s", index, message, problem.Message)
		problem.Param = strings.TrimSuffix(partPath(message, index)+"."+problem.Param, ".")
		return problem
	}
	if it.named && p.set.trusted && it.kind == "" {
		return nil // the engines have the media, or refuse the part
	}
	for _, around := range p.blanks {
		s.Blank(around)
	}
	if _, modality := carrier(it.kind); modality == "" || it.payload.Empty() {
		return nil
	}
	if len(p.set.items) == p.max {
		return invalid("messages", "the request has more than %d media items", p.max)
	}
	item := Item{Message: message, Part: index, Range: body.Range{Start: start, End: s.Pos()}, Kind: it.kind, spans: it.spans, typ: it.typ}
	if p.set.trusted {
		item.uuid = it.uuid
		if it.texted {
			item.UUID = text(s.Slice(it.uuid))
		}
	}
	p.set.items = append(p.set.items, item)
	return nil
}

// text is what a JSON string stands for.
func text(quoted []byte) string { return string(body.Unescape(quoted[1 : len(quoted)-1])) }

// members reads the members of a content part, and notes which are to be blanked: uuids, unless the
// client is trusted, and media members that are null.
func (p *parser) members(s *body.Scanner, it *part) error {
	p.blanks = p.blanks[:0]
	return s.Object(func(m body.Member) error {
		kind, modality := carrier(m.Name)
		if kind != "" && s.Peek() != 'n' {
			return it.carries(s, m, kind, modality)
		}
		it.nulls = it.nulls || kind != ""
		err := it.member(s, m)
		if kind != "" || string(m.Name) == "uuid" && !p.set.trusted {
			s.Peek() // steps to the delimiter behind the member
			p.blanks = append(p.blanks, body.Range{Start: m.Before, End: s.Pos()})
		}
		return err
	})
}
