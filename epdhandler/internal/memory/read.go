package memory

import (
	"errors"
	"io"
	"math"
)

// ErrTooLarge is the error of a body that is larger than its limit.
var ErrTooLarge = errors.New("body too large")

// ReadBody reads a body of length bytes (-1: unknown), at most limit, and returns it with
// the memory that it is in. It takes memory as the body arrives, not as it was announced. On
// an error, or if the reader panics, the share gives everything back. It is called once.
func (s *Share) ReadBody(r io.Reader, length, limit int64) (b []byte, m *Buffer, err error) {
	defer func() {
		if m == nil {
			s.end(s.held).Release()
		}
	}()
	if b, err = s.readAll(r, length, limit); err != nil {
		return nil, nil, err
	}
	n := cap(b)
	if s.region != nil {
		n = len(b)
	}
	return b, s.end(int64(n)), nil
}

func (s *Share) readAll(r io.Reader, length, limit int64) ([]byte, error) {
	if length < 0 {
		length = limit
	}
	size := int(min(length, math.MaxInt-1)) + 1 // so that the end is met without growing
	buf := s.alloc(size)
	for {
		end := min(cap(buf), len(buf)+min(max(len(buf), smallBody+1), 1<<20))
		if err := s.reach(int64(end)); err != nil {
			return nil, err
		}
		n, err := r.Read(buf[len(buf):end])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > limit:
			return nil, ErrTooLarge
		case err == io.EOF:
			return buf, nil
		case err != nil:
			return nil, err
		case len(buf) == cap(buf):
			buf = append(make([]byte, 0, min(size, 2*cap(buf))), buf...)
		}
	}
}
