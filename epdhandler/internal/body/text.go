package body

import (
	"bytes"
	"iter"
	"unicode/utf16"
	"unicode/utf8"
)

// Unescape returns the text that the inside of a valid JSON string stands for.
// It returns raw itself if there is nothing to unescape. Half a surrogate pair
// is kept apart from its like, as Python does, so that two names that differ
// there stay different.
func Unescape(raw []byte) []byte {
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

const maxPiece = 64 << 10 // bytes that are unescaped at once

// Unescaped yields the text that the inside of a valid JSON string stands for, in pieces.
func Unescaped(raw []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for len(raw) > 0 {
			n := Cut(raw, maxPiece)
			if !yield(Unescape(raw[:n])) {
				return
			}
			raw = raw[n:]
		}
	}
}

// Cut returns how many bytes the inside of a valid JSON string can be cut to: max, or a
// little less if the cut would be in an escape.
func Cut(raw []byte, max int) int {
	if len(raw) <= max {
		return len(raw)
	}
	if bytes.IndexByte(raw[:max], '\\') < 0 {
		return max
	}
	end := 0
	for next := 0; next <= max; {
		end = next
		switch {
		case raw[end] != '\\':
			next++
		case raw[end+1] == 'u':
			next += 6
		default:
			next += 2
		}
	}
	return end
}
