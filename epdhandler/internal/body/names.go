package body

import (
	"bytes"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// maxMembers and maxNames are how many members an object may have that is checked
// for duplicates, and how many bytes of names. Names cost far more memory than the
// bytes that they are made of.
const (
	maxMembers = 1000
	maxNames   = 1 << 20
)

// names is the set of member names seen in one object. Objects have few
// members, unless somebody means harm: then the map keeps the check linear.
type names struct {
	few  [16][]byte
	n    int
	many map[string]struct{}
	size int // of all, as written
}

// check refuses the name at a range if there may be no more.
func (s *names) check(r Range) error {
	if len(s.many) >= maxMembers {
		return &Error{Message: fmt.Sprintf("an object has more than %d members, at byte %d", maxMembers, r.Start)}
	}
	if s.size += r.End - r.Start; s.size > maxNames {
		return &Error{Message: fmt.Sprintf("the names of an object's members have more than %d bytes, at byte %d", maxNames, r.Start)}
	}
	return nil
}

// add reports whether name is new.
func (s *names) add(name []byte) bool {
	if s.many != nil {
		if _, ok := s.many[string(name)]; ok {
			return false
		}
		s.many[string(name)] = struct{}{}
		return true
	}
	for _, have := range s.few[:s.n] {
		if bytes.Equal(have, name) {
			return false
		}
	}
	if s.n < len(s.few) {
		s.few[s.n] = name
		s.n++
		return true
	}
	s.many = make(map[string]struct{}, 2*len(s.few))
	for _, have := range s.few {
		s.many[string(have)] = struct{}{}
	}
	s.many[string(name)] = struct{}{}
	return true
}

// unescape returns the text that the inside of a valid JSON string stands for.
// It returns raw itself if there is nothing to unescape. Half a surrogate pair
// is kept apart from its like, as Python does, so that two names that differ
// there stay different.
func unescape(raw []byte) []byte {
	i := bytes.IndexByte(raw, '\\')
	if i < 0 {
		return raw
	}
	out := append(make([]byte, 0, len(raw)), raw[:i]...)
	for i < len(raw) {
		if raw[i] != '\\' {
			out = append(out, raw[i])
			i++
			continue
		}
		c := raw[i+1]
		i += 2
		switch c {
		case 'b':
			c = '\b'
		case 'f':
			c = '\f'
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		case 'u':
			r, _ := hex4(raw[i:])
			i += 4
			if utf16.IsSurrogate(r) && i+6 <= len(raw) && raw[i] == '\\' && raw[i+1] == 'u' {
				low, _ := hex4(raw[i+2:])
				if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
					r = pair
					i += 6
				}
			}
			out = appendRune(out, r)
			continue
		}
		out = append(out, c)
	}
	return out
}

// appendRune is utf8.AppendRune, but encodes surrogates instead of replacing
// all of them by one and the same character.
func appendRune(b []byte, r rune) []byte {
	if utf16.IsSurrogate(r) {
		return append(b, 0xe0|byte(r>>12), 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
	}
	return utf8.AppendRune(b, r)
}

// hex4 reads the four hexadecimal digits that b starts with.
func hex4(b []byte) (r rune, ok bool) {
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
