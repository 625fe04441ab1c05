package body

import (
	"bytes"
	"slices"
)

// Field is a top-level member that the proxy reads or writes. All others are
// passed on as they are.
type Field uint8

// The fields of requests and, for the last three, of engines' answers.
const (
	Model Field = iota
	Messages
	Stream
	StreamOptions
	MaxTokens
	MaxCompletionTokens
	MinTokens
	Stop
	StopTokenIDs
	IgnoreEOS
	ToolChoice
	MMProcessorKwargs
	MediaIOKwargs
	Priority
	SessionID
	VLLMXArgs
	Prompt
	PromptEmbeds
	N
	BestOf
	UseBeamSearch
	PromptLogprobs
	Echo
	Logprobs
	TruncatePromptTokens
	ChatTemplate
	ChatTemplateKwargs
	KVTransferParams
	ECTransferParams
	Usage
	numFields
)

var fieldNames = [numFields]string{
	Model:                "model",
	Messages:             "messages",
	Stream:               "stream",
	StreamOptions:        "stream_options",
	MaxTokens:            "max_tokens",
	MaxCompletionTokens:  "max_completion_tokens",
	MinTokens:            "min_tokens",
	Stop:                 "stop",
	StopTokenIDs:         "stop_token_ids",
	IgnoreEOS:            "ignore_eos",
	ToolChoice:           "tool_choice",
	MMProcessorKwargs:    "mm_processor_kwargs",
	MediaIOKwargs:        "media_io_kwargs",
	Priority:             "priority",
	SessionID:            "session_id",
	VLLMXArgs:            "vllm_xargs",
	Prompt:               "prompt",
	PromptEmbeds:         "prompt_embeds",
	N:                    "n",
	BestOf:               "best_of",
	UseBeamSearch:        "use_beam_search",
	PromptLogprobs:       "prompt_logprobs",
	Echo:                 "echo",
	Logprobs:             "logprobs",
	TruncatePromptTokens: "truncate_prompt_tokens",
	ChatTemplate:         "chat_template",
	ChatTemplateKwargs:   "chat_template_kwargs",
	KVTransferParams:     "kv_transfer_params",
	ECTransferParams:     "ec_transfer_params",
	Usage:                "usage",
}

// options are the fields whose members are indexed as well, if they are objects. None of
// these may have a member twice.
var options = [numFields]bool{
	MMProcessorKwargs: true, MediaIOKwargs: true, VLLMXArgs: true, KVTransferParams: true, ECTransferParams: true,
}

// String returns the member's name.
func (f Field) String() string { return fieldNames[f] }

// key is what stands before the field's value. It must not be changed.
func (f Field) key() []byte { return fieldKeys[f] }

var fieldKeys = func() (keys [numFields][]byte) {
	for f, name := range fieldNames {
		keys[f] = []byte(`"` + name + `":`)
	}
	return keys
}()

func fieldOf(name []byte) (Field, bool) {
	for f, n := range fieldNames {
		if string(name) == n {
			return Field(f), true
		}
	}
	return 0, false
}

// place is where a top-level member stands.
type place struct {
	value Range
	// before and after are where the delimiters around the member stand:
	// "{" or "," before it, "," or "}" behind it. after is 0 if there is no
	// such member.
	before, after int
}

// Body is the index of a JSON object. It refers to the bytes that it was made
// from, which must not change while it is in use.
type Body struct {
	// Memory is what the bytes are in; nil if they are nothing special.
	Memory *Memory

	bytes       []byte
	patches     []Patch // what is different in everything made of the body, in order
	open, close int     // the braces
	empty       bool
	fields      [numFields]place
	options     [numFields][]Entry
}

// A Hook has a top-level member read by somebody who looks into its value.
type Hook struct {
	// Name is the member's name.
	Name string

	// Read steps over the value, which the scanner stands before. Parse fails with its errors.
	Read func(*Scanner) error
}

// Parse indexes a JSON object, such as a request or an engine's answer. The value of a member
// that has a hook is read by the hook, in the same pass. Errors are of type *[Error], or
// a hook's.
func Parse(b []byte, hooks ...Hook) (*Body, error) {
	body := &Body{bytes: b}
	s := &Scanner{b: b}
	if err := s.encoding(); err != nil {
		return nil, err
	}
	if s.Peek() != '{' {
		return nil, notAnObject(s)
	}
	body.open = s.i
	body.empty = true
	var last *place
	err := s.Object(func(m Member) error {
		body.empty = false
		if last != nil {
			last.after, last = m.Before, nil
		}
		f, known := fieldOf(m.Name)
		start := s.i
		var err error
		hook := slices.IndexFunc(hooks, func(h Hook) bool { return h.Name == string(m.Name) })
		switch {
		case hook >= 0:
			err = hooks[hook].Read(s)
		case known && options[f] && s.Peek() == '{':
			body.options[f], err = s.entries()
		default:
			err = s.Value()
		}
		if known {
			last = &body.fields[f]
			*last = place{value: Range{start, s.i}, before: m.Before}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	body.close = s.i - 1
	if last != nil {
		last.after = body.close
	}
	return body, s.end()
}

// notAnObject tells apart what is no JSON at all from what is another value.
func notAnObject(s *Scanner) error {
	if len(s.b) == s.i {
		return &Error{Message: "the body is empty; send a JSON object"}
	}
	if err := s.Value(); err != nil {
		return err
	}
	if err := s.end(); err != nil {
		return err
	}
	return &Error{Message: "the body must be a JSON object"}
}

// Has reports whether the body has the field.
func (b *Body) Has(f Field) bool { return b.fields[f].after != 0 }

// Value returns the field's value as written, nil if the body does not have it.
func (b *Body) Value(f Field) []byte {
	if !b.Has(f) {
		return nil
	}
	return b.Slice(b.fields[f].value)
}

// Slice returns the bytes of a range, as written.
func (b *Body) Slice(r Range) []byte { return b.bytes[r.Start:r.End:r.End] }

// A Patch has something else stand in for a range of a body. The range may be empty.
type Patch struct {
	Range
	With []byte
}

// Patched returns the body with these patches, which must not overlap, in place of others.
// Those that begin at the same byte must be in order.
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

// An Entry is one member of an object, as written.
type Entry struct {
	Name  []byte // with quotes
	Value []byte
}

// Options returns the members of a field that is an object of options, nil if it is none.
func (b *Body) Options(f Field) []Entry { return b.options[f] }

// Option returns the value of a member of such a field, nil if there is none.
func (b *Body) Option(f Field, name string) []byte { return Find(b.options[f], name) }

// Find returns the value of the member of this name, nil if there is none.
func Find(entries []Entry, name string) []byte {
	for _, e := range entries {
		if IsString(e.Name, name) {
			return e.Value
		}
	}
	return nil
}

// Entries returns the members of a JSON object in order. A value that is no
// object is an error, and so is a member given twice.
func Entries(object []byte) ([]Entry, error) {
	s := &Scanner{b: object}
	if s.Peek() != '{' {
		return nil, &Error{Message: "not a JSON object"}
	}
	entries, err := s.entries()
	if err != nil {
		return nil, err
	}
	return entries, s.end()
}

// IsSeveral reports whether a value, as a body holds it, is a list of several strings or
// lists. Numbers, however many, are the tokens of one.
func IsSeveral(value []byte) bool {
	s := &Scanner{b: value}
	if s.Peek() != '[' {
		return false
	}
	s.i++
	if c := s.Peek(); c != '"' && c != '[' {
		return false
	}
	return s.Value() == nil && s.Peek() == ','
}

// IsBool reports whether a value is true or false.
func IsBool(value []byte) bool { return string(value) == "true" || string(value) == "false" }

// entries steps over an object.
func (s *Scanner) entries() (entries []Entry, err error) {
	err = s.Object(func(m Member) error {
		start := s.i
		err := s.Value()
		entries = append(entries, Entry{Name: s.b[m.Raw.Start:m.Raw.End], Value: s.b[start:s.i]})
		return err
	})
	return entries, err
}

// HoldsText reports whether there is a string anywhere in a value of a body. Names are none.
func HoldsText(value []byte) bool { return (&Scanner{b: value}).holdsText() }

func (s *Scanner) holdsText() (found bool) {
	look := func() error {
		found = s.holdsText() || found
		return nil
	}
	switch s.Peek() {
	case '{':
		_ = s.object(nil, func(Member) error { return look() })
	case '[':
		_ = s.List(func(int) error { return look() })
	default:
		found = s.Peek() == '"'
		_ = s.Value()
	}
	return found
}

// IsNull reports whether a value is the literal null.
func IsNull(value []byte) bool { return bytes.Equal(value, []byte("null")) }

// IsObject reports whether a value, as a body holds it, is an object.
func IsObject(value []byte) bool { return len(value) > 0 && value[0] == '{' }

// IsString reports whether a value is a string that stands for s.
func IsString(value []byte, s string) bool {
	// what is longer than the longest way to write it need not be looked at
	return len(value) >= 2 && len(value) <= 2+len(`\u0000`)*len(s) && value[0] == '"' && string(Unescape(value[1:len(value)-1])) == s
}
