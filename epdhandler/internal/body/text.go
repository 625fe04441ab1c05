package body

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"iter"
	"math/bits"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Unescape returns what the inside of a valid JSON string stands for: raw itself if there is nothing to
// unescape. As in Python, different halves of surrogate pairs stay different.
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
			if utf16.IsSurrogate(r) { // AppendRune would replace it
				out = append(out, 0xe0|byte(r>>12), 0x80|byte(r>>6)&0x3f, 0x80|byte(r)&0x3f)
			} else {
				out = utf8.AppendRune(out, r)
			}
			continue
		}
		if n := strings.IndexByte("bfnrt", c); n >= 0 {
			c = "\b\f\n\r\t"[n]
		}
		out = append(out, c)
	}
	return out
}

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

// Cut returns where the inside of a valid JSON string can be cut: at max, or before an escape there.
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

// Nearly all bytes of a body are base64 inside strings, so what follows decides what indexing costs.

// plain returns the first position from i on of a quote, a backslash, a control character or a byte
// beyond ASCII, or the end.
func plain(b []byte, i int) int {
	for far := i + longRun; i+32 <= len(b); i += 32 {
		w := special(load(b[i:])) | special(load(b[i+8:])) | special(load(b[i+16:])) | special(load(b[i+24:]))
		if w != 0 {
			break
		}
		if i >= far {
			return plainLong(b, i)
		}
	}
	for ; i+8 <= len(b); i += 8 {
		if w := special(load(b[i:])); w != 0 {
			return i + bits.TrailingZeros64(w)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c == '"' || c == '\\' || c < 0x20 || c >= utf8.RuneSelf {
			return i
		}
	}
	return i
}

const (
	longRun  = 128      // bytes from which on plainLong is faster
	maxBlock = 16 << 10 // bytes that stay in a core's cache
	lows     = 0x0101010101010101
	highs    = 0x8080808080808080
)

// plainLong does the same for long runs: the standard library finds single bytes with vector
// instructions, and what is left needs no position. It looks only as far ahead as the run has been
// long, or a run that ends soon would cost too much.
func plainLong(b []byte, i int) int {
	for block := 2 * longRun; i < len(b); block = min(2*block, maxBlock) {
		run := b[i:min(i+block, len(b))]
		whole := len(run)
		for _, c := range [...]byte{'"', '\\'} {
			if n := bytes.IndexByte(run, c); n >= 0 {
				run = run[:n]
			}
		}
		n := textOnly(run)
		i += n
		switch {
		case n < len(run):
			return plain(b, i) // which is near
		case n < whole:
			return i
		}
	}
	return i
}

// textOnly returns how many bytes b begins with that are neither control characters nor beyond ASCII,
// in steps of 64 unless it is all of b.
func textOnly(b []byte) int {
	i := 0
	for ; i+64 <= len(b); i += 64 {
		p := b[i : i+64 : i+64]
		w := odd(load(p)) | odd(load(p[8:])) | odd(load(p[16:])) | odd(load(p[24:])) |
			odd(load(p[32:])) | odd(load(p[40:])) | odd(load(p[48:])) | odd(load(p[56:]))
		if w&highs != 0 {
			return i
		}
	}
	for j := i; j < len(b); j++ {
		if b[j] < 0x20 || b[j] >= utf8.RuneSelf {
			return i
		}
	}
	return len(b)
}

func load(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// odd sets a high bit if one of the bytes of w is a control character or beyond ASCII.
func odd(w uint64) uint64 { return w | (w - lows*0x20) }

// special sets the high bit of bytes of w that are not plain. Only the lowest is sure: a borrow may set others.
func special(w uint64) uint64 {
	quote := (w ^ lows*'"') - lows
	backslash := (w ^ lows*'\\') - lows
	return (odd(w) | quote | backslash) & highs
}
