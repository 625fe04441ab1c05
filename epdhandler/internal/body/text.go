package body

import (
	"bytes"
	"encoding/hex"
	"iter"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Unescape returns the text that the inside of a valid JSON string stands for, which is raw
// itself if there is nothing to unescape. As in Python, different halves of surrogate pairs
// stay different.
func Unescape(raw []byte) []byte {
	i := bytes.IndexByte(raw, '\\')
	if i < 0 {
		return raw
	}
	out := append(make([]byte, 0, len(raw)), raw[:i]...)
	for i < len(raw) {
		c := raw[i]
		i++
		if c != '\\' {
			out = append(out, c)
			continue
		}
		c = raw[i]
		i++
		if c == 'u' {
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
		if n := strings.IndexByte("bfnrt", c); n >= 0 {
			c = "\b\f\n\r\t"[n]
		}
		out = append(out, c)
	}
	return out
}

// appendRune is utf8.AppendRune, but encodes surrogates instead of replacing them.
func appendRune(b []byte, r rune) []byte {
	if utf16.IsSurrogate(r) {
		return append(b, 0xe0|byte(r>>12), 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
	}
	return utf8.AppendRune(b, r)
}

// hex4 reads the four hexadecimal digits that b starts with.
func hex4(b []byte) (r rune, ok bool) {
	var v [2]byte
	_, err := hex.Decode(v[:], b[:4])
	return rune(v[0])<<8 | rune(v[1]), err == nil
}

const maxPiece = 64 << 10 // bytes that are unescaped at once

// Unescaped is Unescape in pieces, for long strings.
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
	if len(raw) <= max || bytes.IndexByte(raw[:max], '\\') < 0 {
		return min(len(raw), max)
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
