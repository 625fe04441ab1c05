package body

import (
	"bytes"
	"io"
)

// smallBody is the size up to which a body is put together in one piece: copying
// so little costs less than what many small writes to a connection do.
const smallBody = 32 << 10

// Segments is a body made of slices of memory: of the client's body, mostly. It
// can be read any number of times, also at the same time. The memory must stay
// as it is while anything reads it.
type Segments struct {
	parts [][]byte
	size  int64
}

// Join makes a body of parts.
func Join(parts ...[]byte) *Segments {
	s := &Segments{parts: parts}
	for _, p := range parts {
		s.size += int64(len(p))
	}
	if s.size <= smallBody {
		s.parts = [][]byte{bytes.Join(parts, nil)}
	}
	return s
}

// Len is the size of the body in bytes.
func (s *Segments) Len() int64 { return s.size }

// Bytes returns a copy of the body in one piece.
func (s *Segments) Bytes() []byte { return bytes.Join(s.parts, nil) }

// Reader returns a reader of the whole body.
func (s *Segments) Reader() io.Reader {
	if len(s.parts) == 1 {
		return bytes.NewReader(s.parts[0])
	}
	return &segmentReader{rest: s.parts}
}

type segmentReader struct {
	rest [][]byte
	pos  int // in rest[0]
}

func (r *segmentReader) Read(p []byte) (n int, err error) {
	for len(r.rest) > 0 && n < len(p) {
		m := copy(p[n:], r.rest[0][r.pos:])
		n += m
		if r.pos += m; r.pos == len(r.rest[0]) {
			r.rest, r.pos = r.rest[1:], 0
		}
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}
