package body

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how deep objects and lists may be nested.
const MaxDepth = 1000

// Range is where something stands in a body: the bytes [Start, End).
type Range struct{ Start, End int }

// Empty reports whether there is nothing in the range.
func (r Range) Empty() bool { return r.Start == r.End }

// An Error is fit for the client who sent the body: it has positions and names of the protocol, but no content.
type Error struct{ Message string }

func (e *Error) Error() string { return e.Message }

// A Scanner steps over JSON text strictly. Its methods expect to stand before what they read,
// and leave the scanner behind it. Errors are of type *[Error].
type Scanner struct {
	b     []byte
	i     int
	depth int
}

// Pos is the position of the next byte.
func (s *Scanner) Pos() int { return s.i }

// Slice returns the bytes of a range, as written.
func (s *Scanner) Slice(r Range) []byte { return s.b[r.Start:r.End:r.End] }

// Blank overwrites a member, and one of the commas around it, with spaces. around begins with the
// delimiter before it ([Member.Before]) and ends before the one behind it. The first is blanked first.
func (s *Scanner) Blank(around Range) {
	start, end := around.Start, around.End
	if s.b[start] != ',' {
		if start++; s.b[end] == ',' {
			end++
		}
	}
	for i := start; i < end; i++ {
		s.b[i] = ' '
	}
}

func (s *Scanner) syntaxError(what string) error {
	if s.i >= len(s.b) {
		what = "it ends early,"
	}
	return &Error{Message: fmt.Sprintf("the body is not valid JSON: %s at byte %d", what, s.i)}
}

// encoding steps over the byte order mark of UTF-8, which some clients write, and refuses UTF-16
// and UTF-32: Python, and so an engine, would read them.
func (s *Scanner) encoding() error {
	begin := string(s.b[:min(2, len(s.b))])
	if begin == "\xff\xfe" || begin == "\xfe\xff" || strings.Contains(begin, "\x00") {
		return &Error{Message: "the body is not in UTF-8, but in UTF-16 or UTF-32; send JSON in UTF-8"}
	}
	if bytes.HasPrefix(s.b, []byte("\ufeff")) {
		s.i = len("\ufeff")
	}
	return nil
}

// Peek steps over white space and returns the next byte, which it leaves; 0 at the end.
func (s *Scanner) Peek() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return c
		}
	}
	return 0
}

func (s *Scanner) end() error {
	s.Peek()
	if s.i < len(s.b) {
		return s.syntaxError("unexpected data after the object")
	}
	return nil
}

// Value steps over any value.
func (s *Scanner) Value() error {
	switch s.Peek() {
	case '{':
		return s.object(nil, func(Member) error { return s.Value() })
	case '[':
		return s.sequence(']', s.Value)
	case '"':
		_, err := s.Text()
		return err
	case 't':
		return s.literal("true")
	case 'f':
		return s.literal("false")
	case 'n':
		return s.literal("null")
	}
	return s.number()
}

// A Member is a member of an object whose value the scanner stands before.
type Member struct {
	Name   []byte // unescaped, without quotes
	Raw    Range  // of the name as written, with quotes
	Before int    // the position of the "{" or "," before the name
}

// Object steps over an object that has no member twice. visit must step over the value of each.
func (s *Scanner) Object(visit func(Member) error) error { return s.object(new(names), visit) }

// object is Object if there is a set of names. Without one, names are neither unescaped nor compared.
func (s *Scanner) object(seen *names, visit func(Member) error) error {
	m := Member{Before: s.i}
	return s.sequence('}', func() error {
		if s.Peek() != '"' {
			return s.syntaxError("expected the name of a member")
		}
		text, err := s.Text()
		if err != nil {
			return err
		}
		m.Raw = Range{text.Start - 1, text.End + 1}
		if seen != nil {
			if m.Name, err = seen.add(s, m.Raw); err != nil {
				return err
			}
		}
		if s.Peek() != ':' {
			return s.syntaxError("expected ':'")
		}
		s.i++
		s.Peek()
		err = visit(m)
		s.Peek()
		m.Before = s.i
		return err
	})
}

// List steps over a list. visit must step over each element.
func (s *Scanner) List(visit func(index int) error) error {
	n := -1
	return s.sequence(']', func() error {
		n++
		s.Peek()
		return visit(n)
	})
}

func (s *Scanner) sequence(end byte, element func() error) error {
	if s.depth++; s.depth > MaxDepth {
		return &Error{Message: fmt.Sprintf("the body is nested deeper than %d levels, at byte %d", MaxDepth, s.i)}
	}
	s.i++
	for more := s.Peek() != end; more; {
		if err := element(); err != nil {
			return err
		}
		switch s.Peek() {
		case ',':
			s.i++
		case end:
			more = false
		default:
			return s.syntaxError(fmt.Sprintf("expected ',' or '%c'", end))
		}
	}
	s.i++
	s.depth--
	return nil
}

func (s *Scanner) literal(l string) error {
	if !bytes.HasPrefix(s.b[s.i:], []byte(l)) {
		return s.syntaxError("unexpected literal")
	}
	s.i += len(l)
	return nil
}

// maxDigits is how many digits an integer may have: Python, and so an engine, converts no longer one.
const maxDigits = 4300

func (s *Scanner) number() error {
	start := s.i
	s.accept('-')
	first := s.i
	ok, whole := s.accept('0') || s.digits(), true
	if s.i == start {
		return s.syntaxError("unexpected character")
	}
	length := s.i - first
	if ok && s.accept('.') {
		ok, whole = s.digits(), false
	}
	if ok && (s.accept('e') || s.accept('E')) {
		_ = s.accept('+') || s.accept('-')
		ok, whole = s.digits(), false
	}
	switch {
	case !ok:
		return s.syntaxError("malformed number")
	case whole && length > maxDigits:
		return &Error{Message: fmt.Sprintf("the integer at byte %d has more than %d digits", start, maxDigits)}
	}
	return nil
}

func (s *Scanner) accept(c byte) bool {
	ok := s.i < len(s.b) && s.b[s.i] == c
	if ok {
		s.i++
	}
	return ok
}

func (s *Scanner) digits() bool {
	start, end := s.i, s.i
	for end < len(s.b) && '0' <= s.b[end] && s.b[end] <= '9' {
		end++
	}
	s.i = end
	return end > start
}

// Text steps over a string and returns the range between its quotes.
func (s *Scanner) Text() (Range, error) {
	s.i++
	start := s.i
	for {
		s.i = plain(s.b, s.i)
		if s.i >= len(s.b) {
			return Range{}, s.syntaxError("")
		}
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return Range{start, s.i - 1}, nil
		case c == '\\':
			if err := s.escape(); err != nil {
				return Range{}, err
			}
		case c < 0x20:
			return Range{}, s.syntaxError("control character in a string")
		default:
			for s.i < len(s.b) && s.b[s.i] >= utf8.RuneSelf {
				r, n := utf8.DecodeRune(s.b[s.i:])
				if r == utf8.RuneError && n <= 1 {
					return Range{}, s.syntaxError("invalid UTF-8")
				}
				s.i += n
			}
		}
	}
}

func (s *Scanner) escape() error {
	rest := s.b[s.i:]
	if len(rest) < 2 || rest[1] == 'u' && len(rest) < 6 {
		s.i = len(s.b)
		return s.syntaxError("")
	}
	switch rest[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return nil
	case 'u':
		if _, ok := hex4(rest[2:]); ok {
			s.i += 6
			return nil
		}
	}
	return s.syntaxError("invalid escape in a string")
}

// Bounds of an object that is checked for duplicates: names cost far more memory than they have bytes.
const (
	maxMembers = 1000
	maxNames   = 1 << 20 // bytes
)

// names is the set of names in an object: few, unless somebody means harm. Then the map keeps checks linear.
type names struct {
	few   [16][]byte
	more  map[string]bool
	count int
	size  int // in bytes, as written
}

// add adds the name at a range, and returns it unescaped. It fails if the name is not new, or one too many.
func (n *names) add(s *Scanner, raw Range) ([]byte, error) {
	if n.size += raw.End - raw.Start; n.size > maxNames {
		return nil, &Error{Message: fmt.Sprintf("the names of an object's members have more than %d bytes, at byte %d", maxNames, raw.Start)}
	}
	if n.count == maxMembers {
		return nil, &Error{Message: fmt.Sprintf("an object has more than %d members, at byte %d", maxMembers, raw.Start)}
	}
	name := Unescape(s.b[raw.Start+1 : raw.End-1])
	for _, have := range n.few[:min(n.count, len(n.few))] {
		if bytes.Equal(have, name) {
			return nil, duplicate(name, raw.Start)
		}
	}
	switch {
	case n.count < len(n.few):
		n.few[n.count] = name
	case n.more[string(name)]:
		return nil, duplicate(name, raw.Start)
	case n.more == nil:
		n.more = map[string]bool{string(name): true}
	default:
		n.more[string(name)] = true
	}
	n.count++
	return name, nil
}

// duplicate names a member whose name looks like one of a protocol: another may be content.
func duplicate(name []byte, at int) error {
	member := "member"
	if len(name) <= 32 && strings.Trim(string(name), "abcdefghijklmnopqrstuvwxyz_") == "" {
		member = "member '" + string(name) + "'"
	}
	return &Error{Message: fmt.Sprintf("the %s at byte %d is given twice in one object", member, at)}
}
