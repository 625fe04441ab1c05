package body

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
)

const (
	// up to this size a body is put together in one piece: copying costs less than many small writes
	smallBody = 32 << 10
	// up to this size net/http sends a body better: it sends readers that it knows together with the header
	tinyBody = 2 << 10
)

// Memory is what the bytes of a body are in, if it is used again when nothing holds it.
type Memory interface {
	// Hold keeps the memory as it is until Release. It reports false if it is used again already.
	Hold() bool
	Release()
}

// Segments is a body made of slices of memory, mostly of the client's body. It can be read any number
// of times, also at the same time. The memory must stay as it is while anything reads it.
type Segments struct {
	parts  [][]byte
	size   int64
	memory Memory // that the parts are in; nil: Go's heap
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

// Join makes a body of parts, of which some may be slices of b.
func (b *Body) Join(parts ...[]byte) *Segments {
	s := Join(parts...)
	if s.size > smallBody {
		s.memory = b.Memory
	}
	return s
}

// Len is the size of the body in bytes.
func (s *Segments) Len() int64 { return s.size }

// Bytes returns a copy of the body in one piece.
func (s *Segments) Bytes() []byte { return bytes.Join(s.parts, nil) }

// Reader returns a reader of the whole body, which is a *[Reader] unless the body is tiny. It
// holds the memory from when it is first read until it has been read to its end or closed.
func (s *Segments) Reader() io.ReadCloser {
	if s.size <= tinyBody {
		return io.NopCloser(bytes.NewReader(s.parts[0]))
	}
	rest := append(make(net.Buffers, 0, len(s.parts)+1), s.parts...) // with room for the head
	return &Reader{memory: s.memory, rest: rest, left: s.size}
}

// Reader reads a body.
type Reader struct {
	memory       Memory
	rest         net.Buffers
	left         int64      // bytes
	mu           sync.Mutex // for what follows: readers are closed while they are being read
	open, closed bool
}

// use holds the memory until done is called.
func (r *Reader) use() (done func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return nil, io.EOF
	case r.memory == nil:
		return func() {}, nil
	case !r.memory.Hold():
		return nil, errors.New("the body is not in memory any more")
	case !r.open:
		r.open = true
		r.memory.Hold() // until it is closed
	}
	return r.memory.Release, nil
}

// Close implements io.Closer.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open && !r.closed {
		r.memory.Release()
	}
	r.closed = true
	return nil
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (n int, err error) {
	done, err := r.use()
	if err != nil {
		return 0, err
	}
	defer done()
	n, err = r.rest.Read(p)
	r.left -= int64(n)
	if err != nil {
		_ = r.Close()
	}
	return n, err
}

// Len is how many bytes have not been read yet.
func (r *Reader) Len() int64 { return r.left }

// WriteTo implements io.WriterTo.
func (r *Reader) WriteTo(w io.Writer) (int64, error) { return r.WriteAfter(nil, w) }

// WriteAfter writes head and then what has not been read, to a TCP connection all at once by
// vectored writes. It returns how much of the body it has written.
func (r *Reader) WriteAfter(head []byte, w io.Writer) (int64, error) {
	done, err := r.use()
	if err == io.EOF {
		_, err = w.Write(head)
		return 0, err
	}
	if err != nil {
		return 0, err
	}
	defer done()
	r.rest = slices.Insert(r.rest, 0, head)
	n, err := r.rest.WriteTo(w)
	n = max(0, n-int64(len(head)))
	r.left -= n
	if err == nil {
		_ = r.Close()
	}
	return n, err
}
