package body

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how deep objects and lists may be nested.
const MaxDepth = 1000

// Range is where a value stands in a body: the bytes [Start, End).
type Range struct{ Start, End int }

func (r Range) empty() bool { return r.Start == r.End }

// An Error says what is wrong with a body, in words that are fit for the client
// who sent it: they hold positions and names of the protocol, never content.
type Error struct {
	Message string
	// Param is the path of the offending value, such as
	// "messages[0].content[2].image_url"; empty if there is none.
	Param string
}

func (e *Error) Error() string { return e.Message }

// scanner steps over JSON text strictly, one value at a time. Its methods expect
// i at the first byte of what they read, and leave it behind the last.
type scanner struct {
	b     []byte
	i     int
	depth int
}

func (s *scanner) syntaxError(what string) error {
	if s.i >= len(s.b) {
		return &Error{Message: fmt.Sprintf("the body is not valid JSON: it ends early, at byte %d", len(s.b))}
	}
	return &Error{Message: fmt.Sprintf("the body is not valid JSON: %s at byte %d", what, s.i)}
}

// encoding steps over the byte order mark of UTF-8, which some editors and clients write,
// and refuses UTF-16 and UTF-32: Python, and so an engine, would read them.
func (s *scanner) encoding() error {
	begin := string(s.b[:min(2, len(s.b))])
	if begin == "\xff\xfe" || begin == "\xfe\xff" || strings.Contains(begin, "\x00") {
		return &Error{Message: "the body is not in UTF-8, but in UTF-16 or UTF-32; send JSON in UTF-8"}
	}
	if bytes.HasPrefix(s.b, []byte("\ufeff")) {
		s.i = len("\ufeff")
	}
	return nil
}

// peek steps over white space and returns the byte behind it, 0 at the end.
func (s *scanner) peek() byte {
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

// end expects nothing but white space.
func (s *scanner) end() error {
	s.peek()
	if s.i < len(s.b) {
		return s.syntaxError("unexpected data after the object")
	}
	return nil
}

// value steps over any value.
func (s *scanner) value() error {
	switch s.peek() {
	case '{':
		return s.object(nil, func(member) error { return s.value() })
	case '[':
		return s.list(func(int) error { return s.value() })
	case '"':
		_, err := s.str()
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

// member is a member of an object that the scanner has reached: it stands
// before the value.
type member struct {
	name   []byte // unescaped, without quotes; nil if names are not checked
	raw    Range  // the name as written, with quotes
	before int    // where the "{" or "," before the name is
}

// object steps over an object. visit must step over the value of each member;
// it is given the member and the scanner stands before the value. With seen,
// a name given twice is an error.
func (s *scanner) object(seen *names, visit func(member) error) error {
	if err := s.descend(); err != nil {
		return err
	}
	m := member{before: s.i}
	s.i++
	if s.peek() == '}' {
		s.i++
		s.depth--
		return nil
	}
	for {
		if s.peek() != '"' {
			return s.syntaxError("expected the name of a member")
		}
		m.raw.Start = s.i
		name, err := s.str()
		if err != nil {
			return err
		}
		m.raw.End = s.i
		if seen != nil {
			if err := seen.check(m.raw); err != nil {
				return err
			}
			if m.name = unescape(s.b[name.Start:name.End]); !seen.add(m.name) {
				return duplicate(m)
			}
		}
		if s.peek() != ':' {
			return s.syntaxError("expected ':'")
		}
		s.i++
		s.peek()
		if err := visit(m); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			m.before = s.i
			s.i++
		case '}':
			s.i++
			s.depth--
			return nil
		default:
			return s.syntaxError("expected ',' or '}'")
		}
	}
}

// duplicate names the member if its name looks like one of a protocol: anything
// else may be content, which does not belong in an error.
func duplicate(m member) error {
	for _, c := range m.name {
		if c != '_' && (c < 'a' || c > 'z') || len(m.name) > 32 {
			return &Error{Message: fmt.Sprintf("the member at byte %d is given twice in one object", m.raw.Start)}
		}
	}
	return &Error{Message: fmt.Sprintf("the member '%s' at byte %d is given twice in one object", m.name, m.raw.Start)}
}

// list steps over a list. visit must step over each element.
func (s *scanner) list(visit func(index int) error) error {
	if err := s.descend(); err != nil {
		return err
	}
	s.i++
	if s.peek() == ']' {
		s.i++
		s.depth--
		return nil
	}
	for n := 0; ; n++ {
		s.peek()
		if err := visit(n); err != nil {
			return err
		}
		switch s.peek() {
		case ',':
			s.i++
		case ']':
			s.i++
			s.depth--
			return nil
		default:
			return s.syntaxError("expected ',' or ']'")
		}
	}
}

func (s *scanner) descend() error {
	if s.depth++; s.depth > MaxDepth {
		return &Error{Message: fmt.Sprintf("the body is nested deeper than %d levels, at byte %d", MaxDepth, s.i)}
	}
	return nil
}

func (s *scanner) literal(l string) error {
	if len(s.b)-s.i < len(l) || string(s.b[s.i:s.i+len(l)]) != l {
		return s.syntaxError("unexpected literal")
	}
	s.i += len(l)
	return nil
}

// maxDigits is how many digits an integer may have: Python, and so an engine, converts no
// longer one.
const maxDigits = 4300

func (s *scanner) number() error {
	start, digits := s.i, 1
	if s.at('-') {
		s.i++
	}
	switch {
	case s.at('0'):
		s.i++
	default:
		digits = s.digits()
	}
	if digits == 0 {
		if s.i == start {
			return s.syntaxError("unexpected character")
		}
		return s.syntaxError("malformed number")
	}
	if digits > maxDigits && !s.at('.') && !s.at('e') && !s.at('E') {
		return &Error{Message: fmt.Sprintf("the integer at byte %d has more than %d digits", start, maxDigits)}
	}
	if s.at('.') {
		s.i++
		if s.digits() == 0 {
			return s.syntaxError("malformed number")
		}
	}
	if s.at('e') || s.at('E') {
		s.i++
		if s.at('+') || s.at('-') {
			s.i++
		}
		if s.digits() == 0 {
			return s.syntaxError("malformed number")
		}
	}
	return nil
}

func (s *scanner) at(c byte) bool { return s.i < len(s.b) && s.b[s.i] == c }

func (s *scanner) digits() (n int) {
	for s.i < len(s.b) && '0' <= s.b[s.i] && s.b[s.i] <= '9' {
		s.i++
		n++
	}
	return n
}

// str steps over a string and returns the range between its quotes.
func (s *scanner) str() (Range, error) {
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

func (s *scanner) escape() error {
	if s.i+1 >= len(s.b) {
		s.i = len(s.b)
		return s.syntaxError("")
	}
	switch s.b[s.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		s.i += 2
		return nil
	case 'u':
		if s.i+6 > len(s.b) {
			s.i = len(s.b)
			return s.syntaxError("")
		}
		if _, ok := hex4(s.b[s.i+2 : s.i+6]); ok {
			s.i += 6
			return nil
		}
	}
	return s.syntaxError("invalid escape in a string")
}
