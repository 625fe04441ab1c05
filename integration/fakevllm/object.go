package fakevllm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"
)

// object is a JSON object with raw values. Names are compared exactly: decoding into a
// struct would accept "URL" for "url", which engines do not.
type object map[string]json.RawMessage

// parseBody reads exactly one JSON object.
func parseBody(raw []byte) (object, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("not UTF-8")
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("not JSON: %w", json.Unmarshal(raw, new(any))) // the error contains the position
	}
	return parseObject(bytes.TrimSpace(raw))
}

// parseObject reads an object from JSON that parseBody has found valid. Duplicate
// members are rejected: parsers differ in which of them they use.
func parseObject(raw []byte) (object, error) {
	if len(raw) == 0 || raw[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	members := make(object)
	for pair := range slices.Chunk(split(raw), 2) {
		name, _ := stringOf(pair[0])
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("duplicate member %q", name)
		}
		members[name] = pair[1]
	}
	return members, nil
}

// array reads a list from JSON that parseBody has found valid.
func array(raw json.RawMessage) ([]json.RawMessage, error) {
	if len(raw) == 0 || raw[0] != '[' {
		return nil, errors.New("not a list")
	}
	return split(raw), nil
}

// has reports whether a member exists. As in vLLM, null counts as absent.
func (o object) has(name string) bool {
	value, ok := o[name]
	return ok && string(value) != "null"
}

// is reports whether a member's value is this literal.
func (o object) is(name, literal string) bool {
	return string(o[name]) == literal
}

// text returns a member that must be a non-empty string.
func (o object) text(name string) (string, error) {
	s, _ := stringOf(o[name])
	if s == "" {
		return "", fmt.Errorf("%s must be a non-empty string", name)
	}
	return s, nil
}

// stringOf reports false if the value is not a string.
func stringOf(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	if !bytes.Contains(raw, []byte(`\`)) { // saves work: media are megabytes, without escapes
		return string(raw[1 : len(raw)-1]), true
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// canonical is equal for values that differ only in white space, escapes and the
// order of members. An absent value is null.
func canonical(raw json.RawMessage) string {
	if raw == nil {
		return "null"
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // block ids and sizes must not pass through a float
	var value any
	if err := d.Decode(&value); err != nil {
		return string(raw) // cannot happen: raw comes out of a decoder
	}
	return string(marshal(value))
}

// compact returns the value without white space. An absent value is null.
func compact(raw json.RawMessage) string {
	if raw == nil {
		return "null"
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return string(raw) // cannot happen: raw comes out of a decoder
	}
	return b.String()
}

// marshal encodes JSON without escaping HTML, as vLLM does.
func marshal(value any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		panic(err) // only if this package built an invalid value
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
