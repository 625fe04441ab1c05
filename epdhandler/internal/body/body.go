// Package body indexes a JSON object where it lies: it checks the bytes once and remembers where the
// top-level members stand, so that requests to engines are slices of the client's own bytes and a few
// small new pieces. It must not know what values mean: who looks into one gives [Parse] a [Hook].
//
// A body that the index accepts is valid JSON (RFC 8259) in valid UTF-8, nested at most [MaxDepth]
// deep, with no member given twice in the objects that are looked into: two parsers must never
// read two different requests out of the same bytes. All else is left as the client wrote it.
//
//	b, err := body.Parse(bytes)
//	prefill := b.Rewrite(body.Set("stream", "false"), body.Remove("stream_options"))
//	http.NewRequest("POST", url, prefill.Reader())
package body

import (
	"cmp"
	"slices"
)

// Members of requests and answers that carry parameters for engines.
const (
	KVTransferParams  = "kv_transfer_params"
	ECTransferParams  = "ec_transfer_params"
	MMProcessorKwargs = "mm_processor_kwargs"
	MediaIOKwargs     = "media_io_kwargs"
	VLLMXArgs         = "vllm_xargs"
)

// indexed are the members whose own members are indexed as well, if they are objects.
var indexed = [...]string{KVTransferParams, ECTransferParams, MMProcessorKwargs, MediaIOKwargs, VLLMXArgs}

// maxName is the longest name that anyone asks for.
const maxName = 64

type field struct {
	name   []byte // unescaped; nil if it is longer than maxName, which would take memory
	before int    // position of the "{" or "," before the name
	value  Range
}

// Body is the index of a JSON object. The bytes that it was made from must not change while it is in use.
type Body struct {
	Memory  Memory // what the bytes are in; nil: Go's heap
	bytes   []byte
	patches []Patch // of everything made of the body, in order
	fields  []field
	members [len(indexed)]Members
	end     int // position of the last brace
}

// A Hook reads the value of a top-level member, which the scanner stands before. Its errors are [Parse]'s.
type Hook struct {
	Name string
	Read func(*Scanner) error
}

// Parse indexes a JSON object, in one pass with the hooks. Errors are of type *[Error], or a hook's.
func Parse(b []byte, hooks ...Hook) (*Body, error) {
	s := &Scanner{b: b}
	if err := s.encoding(); err != nil {
		return nil, err
	}
	if s.Peek() != '{' {
		if s.i == len(b) {
			return nil, &Error{Message: "the body is empty; send a JSON object"}
		}
		return nil, cmp.Or[error](s.Value(), s.end(), &Error{Message: "the body must be a JSON object"})
	}
	body := &Body{bytes: b, fields: make([]field, 0, 12)}
	err := s.Object(func(m Member) (err error) {
		start := s.i
		hook := slices.IndexFunc(hooks, func(h Hook) bool { return h.Name == string(m.Name) })
		known := slices.IndexFunc(indexed[:], func(name string) bool { return name == string(m.Name) })
		switch {
		case hook >= 0:
			err = hooks[hook].Read(s)
		case known >= 0 && s.Peek() == '{':
			body.members[known], err = s.members()
		default:
			err = s.Value()
		}
		if len(m.Name) > maxName {
			m.Name = nil
		}
		body.fields = append(body.fields, field{m.Name, m.Before, Range{start, s.i}})
		return err
	})
	if err != nil {
		return nil, err
	}
	body.end = s.i - 1
	return body, s.end()
}

// Value returns the value of a top-level member as written, nil if there is none.
func (b *Body) Value(name string) []byte {
	for _, f := range b.fields {
		if string(f.name) == name {
			return b.Slice(f.value)
		}
	}
	return nil
}

// Members returns the members of a top-level member that is indexed, nil if it is no object.
func (b *Body) Members(name string) Members { return b.members[slices.Index(indexed[:], name)] }

// Slice returns the bytes of a range, as written.
func (b *Body) Slice(r Range) []byte { return b.bytes[r.Start:r.End:r.End] }

// A Patch replaces a range of a body, which may be empty.
type Patch struct {
	Range
	With []byte
}

// Patched returns the body with these patches, in place of others. They must not overlap, and be in
// order if they begin at the same byte.
func (b *Body) Patched(patches []Patch) *Body {
	with := *b
	with.patches = slices.Clone(patches)
	slices.SortStableFunc(with.patches, func(x, y Patch) int { return x.Start - y.Start })
	return &with
}

// AppendPieces appends the bytes of a range, as patched.
func (b *Body) AppendPieces(pieces [][]byte, r Range) [][]byte {
	first, _ := slices.BinarySearchFunc(b.patches, r.Start, func(p Patch, start int) int { return p.Start - start })
	for _, p := range b.patches[first:] {
		if p.Start >= r.End {
			break
		}
		pieces = append(pieces, b.Slice(Range{r.Start, p.Start}))
		if p.With != nil {
			pieces = append(pieces, p.With)
		}
		r.Start = p.End
	}
	return append(pieces, b.Slice(r))
}

// An Edit changes a top-level member; see [Set] and [Remove].
type Edit struct {
	name  string
	value []byte // nil removes
}

// Set gives a member a value, valid JSON: in its place if the body has it, else at the end. Nil removes it.
func Set[T string | []byte](name string, value T) Edit { return Edit{name, []byte(value)} }

// Remove takes a member out, if the body has it.
func Remove(name string) Edit { return Edit{name, nil} }

// Rewrite applies edits, at most one for each member. All else stays byte for byte as it is.
func (b *Body) Rewrite(edits ...Edit) *Segments {
	parts := append(make([][]byte, 0, 4*len(edits)+2*len(b.patches)+3), []byte("{"))
	left, pos := 0, 0 // how many members are left, and the end of what has been dealt with
	for i, f := range b.fields {
		if left == 0 {
			pos = f.before + 1 // nothing is kept of what is before
		}
		n := slices.IndexFunc(edits, func(e Edit) bool { return e.name == string(f.name) })
		switch {
		case n < 0:
			left++
		case edits[n].value != nil:
			left++
			parts = append(b.AppendPieces(parts, Range{pos, f.value.Start}), edits[n].value)
			pos = f.value.End
		case left > 0: // goes with the comma before it
			parts = b.AppendPieces(parts, Range{pos, f.before})
			if pos = b.end; i+1 < len(b.fields) {
				pos = b.fields[i+1].before
			}
		}
	}
	if left > 0 {
		parts = b.AppendPieces(parts, Range{pos, b.end})
	}
	for _, e := range edits {
		if e.value == nil || b.Value(e.name) != nil {
			continue
		}
		comma := ""
		if left > 0 {
			comma = ","
		}
		left++
		parts = append(parts, []byte(comma+`"`+e.name+`":`), e.value)
	}
	return b.Join(append(parts, []byte("}"))...)
}
