package fakevllm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// object is a JSON object whose values are still raw. Names compare exactly:
// struct decoding would take "URL" for "url", which engines do not.
type object map[string]json.RawMessage

// parseObject reads exactly one JSON object, without duplicate members: two
// parsers that disagree about a duplicate disagree about the request.
func parseObject(raw []byte) (object, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	switch t, err := d.Token(); {
	case err != nil:
		return nil, fmt.Errorf("not JSON: %w", err)
	case t != json.Delim('{'):
		return nil, errors.New("not a JSON object")
	}
	members := make(object)
	for d.More() {
		if err := members.readMember(d); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("bytes after the JSON object")
	}
	return members, nil
}

func (o object) readMember(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	name := t.(string) // where a name is due, the decoder returns nothing else
	if _, twice := o[name]; twice {
		return fmt.Errorf("duplicate member %q", name)
	}
	var value json.RawMessage
	if err := d.Decode(&value); err != nil {
		return fmt.Errorf("not JSON: member %q: %w", name, err)
	}
	o[name] = value
	return nil
}

// has reports whether a member is there. null counts as absent, as in vLLM.
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

// stringOf reports false for everything but a string. It looks at the first
// byte before it decodes, as the value may be megabytes of something else.
func stringOf(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// array splits a JSON array into its elements.
func array(raw json.RawMessage) ([]json.RawMessage, error) {
	var elements []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' {
		return nil, errors.New("not a list")
	}
	err := json.Unmarshal(raw, &elements)
	return elements, err
}

// canonical is the same for values that differ only in spacing, escapes and the
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

// compact is the value without spacing. An absent value is null.
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

// marshal encodes what this package answers: UTF-8 as it is, as vLLM writes it.
func marshal(value any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		panic(err) // only a value that this package built wrongly
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}
